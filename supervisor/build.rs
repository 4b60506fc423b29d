//! Links the runtime so that it begins in `kitbag-entry`, where that crate has an entry point.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("PROFILE").is_ok() {
        let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{dir}/runtime.ld,--icf=all,--no-eh-frame-hdr,-O2");
    }
    let target = |name: &str| std::env::var(format!("CARGO_CFG_TARGET_{name}")).unwrap_or_default();
    if target("ARCH") == "x86_64" && target("OS") == "linux" && target("POINTER_WIDTH") == "64" {
        // Linkers only warn about a missing entry point and begin anywhere. An alias of it is an error.
        println!("cargo::rustc-link-arg-bins=-Wl,-e,kitbag_entry,--defsym=kitbag_begins_at=kitbag_entry");
    }
}
