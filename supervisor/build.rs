//! Links the runtime so that it begins in `kitbag-entry`, where that crate has an entry point.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = |name: &str| std::env::var(format!("CARGO_CFG_TARGET_{name}")).unwrap_or_default();
    if target("ARCH") == "x86_64" && target("OS") == "linux" && target("POINTER_WIDTH") == "64" {
        // Linkers only warn about a missing entry point and begin anywhere. An alias of it is an error.
        println!("cargo::rustc-link-arg-bins=-Wl,-e,kitbag_entry,--defsym=kitbag_begins_at=kitbag_entry");
    }
    if target("OS") == "linux" && std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        small(&target("ENV"));
    }
}

/// Leaves out what the released runtime never uses: tables for unwinding (it aborts on panic), second copies of
/// equal functions, and the long form of relocations where libc knows the short one.
fn small(libc: &str) {
    let script = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default() + "/runtime.ld";
    println!("cargo::rerun-if-changed={script}");
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{script},--no-eh-frame-hdr,--icf=all");
    if libc == "gnu" && has_relr() {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// A static-pie relocates itself, with code of the libc that it was linked with; glibc's knows DT_RELR since 2.36
/// (NEWS for that version). The build machine's is the one that is linked, unless this is a cross build.
fn has_relr() -> bool {
    let same = std::env::var("HOST").ok() == std::env::var("TARGET").ok();
    let version = std::process::Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let text = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let minor = text.trim().strip_prefix("glibc 2.").and_then(|minor| minor.parse::<u32>().ok());
    same && minor.is_some_and(|minor| minor >= 36)
}
