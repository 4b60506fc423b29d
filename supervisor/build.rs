//! Links the runtime so that it begins in `kitbag-entry`, where that crate has an entry point.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(less_glibc)");
    let target = |name: &str| std::env::var(format!("CARGO_CFG_TARGET_{name}")).unwrap_or_default();
    if target("ARCH") == "x86_64" && target("OS") == "linux" && target("POINTER_WIDTH") == "64" {
        // Linkers only warn about a missing entry point and begin anywhere. An alias of it is an error.
        println!("cargo::rustc-link-arg-bins=-Wl,-e,kitbag_entry,--defsym=kitbag_begins_at=kitbag_entry");
    }
    if target("OS") == "linux" && std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        small(&target);
    }
}

/// Leaves out what the released runtime never uses: tables for unwinding (it aborts on panic), second copies of
/// equal functions, the long form of relocations where libc knows the short one, and parts of libc.
fn small(target: &dyn Fn(&str) -> String) {
    let script = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default() + "/runtime.ld";
    println!("cargo::rerun-if-changed={script}");
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{script},--no-eh-frame-hdr,--icf=all");
    let Some(glibc) = glibc_minor().filter(|_| target("ENV") == "gnu") else { return };
    if glibc >= RELR_SINCE {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    let is_static = target("FEATURE").split(',').any(|feature| feature == "crt-static");
    if target("ARCH") == "x86_64" && is_static && LESS_GLIBC.contains(&glibc) {
        println!("cargo::rustc-cfg=less_glibc");
    }
}

/// A static-pie relocates itself, with code of the libc that it was linked with; glibc's knows DT_RELR since 2.36
/// (NEWS for that version).
const RELR_SINCE: u32 = 36;

/// Versions 2.x of glibc with which `src/sys/glibc.rs` links and passes the tests; with others the runtime is 400 kB
/// larger. To add one, build and test on a system that has it.
const LESS_GLIBC: &[u32] = &[36];

/// The 2.x of the glibc that is linked: the build machine's, unless this is a cross build.
fn glibc_minor() -> Option<u32> {
    let same = std::env::var("HOST").ok() == std::env::var("TARGET").ok();
    let version = std::process::Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(version.stdout).ok()?;
    text.trim().strip_prefix("glibc 2.")?.parse().ok().filter(|_| same)
}
