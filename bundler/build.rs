//! Builds the runtime that every bundle starts with, so that `kitbag` carries it inside itself.
//!
//! A nested cargo builds `kitbag-supervisor` for the target that `kitbag` is built for. Its target folder
//! is its own (`<target>/<triple>/kitbag-runtime`): the outer cargo holds the lock of the one it builds in,
//! and waits for us. Debug and release builds of `kitbag`, tests and clippy share it.
//!
//! Exports `KITBAG_RUNTIME`, the path of the executable, for `include_bytes!(env!("KITBAG_RUNTIME"))`.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Variables of the outer build that would change the nested one, or make it start over each time the
/// outer profile changes.
const OUTER: &[&str] = &[
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "DEBUG",
    "HOST",
    "NUM_JOBS",
    "OPT_LEVEL",
    "OUT_DIR",
    "PROFILE",
    "RUSTC_LINKER",
    // `cargo clippy` checks through this one, and links nothing.
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
    "TARGET",
];

/// Beginnings of such names.
const OUTER_PREFIXES: &[&str] = &["CARGO_CFG_", "CARGO_FEATURE_", "CARGO_MANIFEST_", "CARGO_PKG_", "DEP_"];

/// zstd's decoder for distant matches serves windows far beyond a frame's two megabytes, and its second Huffman decoder
/// some texts that are a few percent faster with it; the runtime says in its own words what is wrong with a frame: 70 kB.
const ZSTD_FLAGS: &str =
    "-DZSTD_FORCE_DECOMPRESS_SEQUENCES_SHORT=1 -DHUF_FORCE_DECOMPRESS_X1=1 -DZSTD_STRIP_ERROR_STRINGS=1";

fn main() -> ExitCode {
    match build() {
        Ok(runtime) => {
            println!("cargo:rustc-env=KITBAG_RUNTIME={}", runtime.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<PathBuf, Box<dyn Error>> {
    let bundler = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = bundler.parent().ok_or("bundler/ has no parent folder")?;
    for source in ["Cargo.toml", "Cargo.lock", "format", "supervisor"] {
        println!("cargo:rerun-if-changed={}", workspace.join(source).display());
    }
    let (out, triple) = (PathBuf::from(variable("OUT_DIR")?), variable("TARGET")?);
    let target_dir = target_dir(&out)?;
    let status = nested_cargo(workspace, &target_dir, &triple)?
        .status()
        .map_err(|error| format!("cannot start cargo to build the runtime: {error}"))?;
    if !status.success() {
        return Err(runtime_failed(&triple, &status.to_string()).into());
    }
    // A copy of our own: another build may replace the original while rustc reads it.
    let built = target_dir.join(&triple).join("runtime/kitbag-supervisor");
    let copy = out.join("kitbag-runtime");
    fs::copy(&built, &copy).map_err(|error| format!("cannot copy {}: {error}", built.display()))?;
    Ok(copy)
}

/// `OUT_DIR` is `<target>/<triple>/<profile>/build/<package>/out`; this is `<target>/<triple>/kitbag-runtime`.
fn target_dir(out: &Path) -> Result<PathBuf, String> {
    out.ancestors()
        .find(|folder| folder.ends_with("build"))
        .and_then(|build| build.parent()?.parent())
        .map(|triple| triple.join("kitbag-runtime"))
        .ok_or_else(|| format!("OUT_DIR {} has no folder `build` in it", out.display()))
}

fn nested_cargo(workspace: &Path, target_dir: &Path, triple: &str) -> Result<Command, String> {
    let mut cargo = Command::new(variable("CARGO")?);
    for (name, _) in env::vars_os() {
        if is_outer(&name) {
            cargo.env_remove(name);
        }
    }
    // Static, and the same bytes wherever the sources lie. `\x1f` separates flags.
    let flags = [
        "-Ctarget-feature=+crt-static".to_owned(),
        format!("--remap-path-prefix={}=kitbag", workspace.display()),
        format!("--remap-path-prefix={}=cargo", cargo_home().display()),
    ];
    cargo
        .current_dir(workspace)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CFLAGS", ZSTD_FLAGS)
        .args(["build", "--package", "kitbag-supervisor", "--bin", "kitbag-supervisor"])
        .args(["--profile", "runtime", "--target", triple, "--target-dir"])
        .arg(target_dir);
    Ok(cargo)
}

fn is_outer(name: &OsString) -> bool {
    name.to_str().is_some_and(|name| {
        OUTER.contains(&name) || OUTER_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    })
}

fn cargo_home() -> PathBuf {
    let default = || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cargo");
    env::var_os("CARGO_HOME").map_or_else(default, PathBuf::from)
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}

fn runtime_failed(triple: &str, status: &str) -> String {
    format!(
        "the runtime that kitbag carries inside itself could not be built for {triple} ({status})\n  \
         cargo's own message stands above\n  \
         to try alone   cargo build -p kitbag-supervisor --profile runtime --target {triple}\n  \
         if the target is missing   rustup target add {triple}"
    )
}
