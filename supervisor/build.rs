//! Links the runtime so that it begins in `kitbag-entry`, where that crate has an entry point.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = |name: &str| std::env::var(format!("CARGO_CFG_TARGET_{name}")).unwrap_or_default();
    if target("ARCH") == "x86_64" && target("OS") == "linux" && target("POINTER_WIDTH") == "64" {
        // Linkers only warn about a missing entry point and begin anywhere. An alias of it is an error.
        println!("cargo::rustc-link-arg-bins=-Wl,-e,kitbag_entry,--defsym=kitbag_begins_at=kitbag_entry");
    }
}
