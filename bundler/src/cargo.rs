//! Cargo projects: finds the package and its bins, and builds them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cargo_metadata::{Message, Metadata, MetadataCommand, Package, Target};
use kitbag_format::exit;

use crate::diagnostic::{Diagnostic, Failure, near_miss};
use crate::manifest::CargoOptions;

/// Linked so, an executable needs no library of the host (static-pie on `*-linux-gnu`).
const STATIC: &str = "-Ctarget-feature=+crt-static";

/// A package to build.
#[derive(Debug)]
pub struct CargoPackage {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its description, possibly empty.
    pub description: String,
    /// The bin targets to build.
    pub bins: Vec<String>,
    manifest_path: PathBuf,
}

/// Asks Cargo about the package in folder `dir` that `options` choose.
///
/// Fails where cargo cannot be started or refuses the project, and where the package or a bin does not exist.
pub fn find(dir: &Path, options: &CargoOptions) -> Result<CargoPackage, Vec<Diagnostic>> {
    let metadata = MetadataCommand::new()
        .current_dir(dir)
        .no_deps()
        .exec()
        .map_err(|error| vec![cannot_ask(dir, &error)])?;
    let package = choose_package(dir, &metadata, options).map_err(|error| vec![error])?;
    let bins = choose_bins(package, options)?;
    Ok(CargoPackage {
        name: package.name.to_string(),
        version: package.version.to_string(),
        description: package.description.clone().unwrap_or_default(),
        bins,
        manifest_path: package.manifest_path.clone().into_std_path_buf(),
    })
}

/// Packages with bins: whether it is the folder's own, its name, its bins. The folder's own stands first, or none.
pub fn with_bins(dir: &Path) -> Vec<(bool, String, Vec<String>)> {
    let Ok(metadata) = MetadataCommand::new().current_dir(dir).no_deps().exec() else { return Vec::new() };
    let beside = dir.join("Cargo.toml").canonicalize().unwrap_or_default();
    let packages = metadata.workspace_packages().into_iter().map(|package| {
        let is_own = package.manifest_path.as_std_path() == beside;
        let bins = choose_bins(package, &CargoOptions::default()).unwrap_or_default();
        (is_own, package.name.to_string(), bins)
    });
    let mut packages: Vec<_> = packages.filter(|(_, _, bins)| !bins.is_empty()).collect();
    packages.sort_by_key(|(is_own, ..)| !is_own);
    packages
}

fn cannot_ask(dir: &Path, error: &cargo_metadata::Error) -> Diagnostic {
    let said = match error {
        cargo_metadata::Error::CargoMetadata { stderr } => stderr.trim().to_owned(),
        cargo_metadata::Error::Io(error) => {
            return Diagnostic::new(format!("cannot start cargo: {error}"))
                .help("install the Rust toolchain (https://rustup.rs), or name cargo in the variable CARGO");
        }
        other => other.to_string(),
    };
    Diagnostic::new(format!("cargo cannot read the project in `{}`", dir.display())).help(said)
}

fn choose_package<'a>(
    dir: &Path,
    metadata: &'a Metadata,
    options: &CargoOptions,
) -> Result<&'a Package, Diagnostic> {
    let packages = metadata.workspace_packages();
    let Some(wanted) = &options.package else {
        let beside = dir.join("Cargo.toml").canonicalize().unwrap_or_default();
        let found = packages.iter().find(|package| package.manifest_path.as_std_path() == beside);
        return found.copied().ok_or_else(|| {
            let error = Diagnostic::new("the Cargo.toml in this folder is a workspace without a package");
            error
                .at(options.span.clone().unwrap_or_default(), "expected `package` in here")
                .help(format!("write `package = \"{}\"`", packages.first().map_or("…", |first| &first.name)))
        });
    };
    let found = packages.iter().find(|package| package.name.as_str() == wanted.get_ref());
    found.copied().ok_or_else(|| {
        Diagnostic::new(format!("there is no package `{}` in this workspace", wanted.get_ref()))
            .at(wanted.span(), "")
            .near(near_miss(wanted.get_ref(), packages.iter().map(|package| package.name.as_str())))
    })
}

/// The bins that are asked for; by default all that need no feature beyond `options.features`.
fn choose_bins(package: &Package, options: &CargoOptions) -> Result<Vec<String>, Vec<Diagnostic>> {
    let bins = || package.targets.iter().filter(|target| target.is_bin());
    let Some(wanted) = &options.bins else {
        let has = |feature: &String| options.features.iter().any(|given| given.get_ref() == feature);
        let buildable = |target: &&Target| target.required_features.iter().all(has);
        return Ok(bins().filter(buildable).map(|target| target.name.clone()).collect());
    };
    let mut errors = Vec::new();
    for bin in wanted {
        if !bins().any(|target| target.name == *bin.get_ref()) {
            let error = Diagnostic::new(format!("package `{}` has no bin `{}`", package.name, bin.get_ref()))
                .at(bin.span(), "")
                .near(near_miss(bin.get_ref(), bins().map(|target| target.name.as_str())));
            errors.push(error);
        }
    }
    if errors.is_empty() { Ok(wanted.iter().map(|bin| bin.get_ref().clone()).collect()) } else { Err(errors) }
}

/// Builds the package's bins; returns the executables by name. Cargo's own messages go to stderr.
///
/// Fails with [`exit::FAILURE`] where the build fails.
pub fn build(
    dir: &Path,
    package: &CargoPackage,
    options: &CargoOptions,
    quiet: bool,
) -> Result<BTreeMap<String, PathBuf>, Failure> {
    if package.bins.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut cargo = command(dir, package, options, quiet);
    let mut child = cargo
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::new(exit::FAILURE, format!("cannot start cargo: {error}")))?;
    let mut built = BTreeMap::new();
    if let Some(stdout) = child.stdout.take() {
        for message in Message::parse_stream(BufReader::new(stdout)).flatten() {
            if let Message::CompilerArtifact(artifact) = message
                && let Some(executable) = artifact.executable
                && artifact.target.is_bin()
            {
                built.insert(artifact.target.name, executable.into_std_path_buf());
            }
        }
    }
    let status = child
        .wait()
        .map_err(|error| Failure::new(exit::FAILURE, format!("cannot wait for cargo: {error}")))?;
    if !status.success() {
        return Err(not_built(package, options, &status.to_string()));
    }
    match package.bins.iter().find(|bin| !built.contains_key(*bin)) {
        Some(bin) => {
            let title = format!("cargo built `{}` but reported no executable `{bin}`", package.name);
            Err(Failure::new(exit::FAILURE, title))
        }
        None => Ok(built),
    }
}

fn not_built(package: &CargoPackage, options: &CargoOptions, status: &str) -> Failure {
    let failure =
        Failure::new(exit::FAILURE, format!("`cargo build` of `{}` failed ({status})", package.name))
            .help("cargo's own message stands above; nothing was packed");
    if options.link_static {
        failure.help("if it cannot be linked statically: `static = false` in `[cargo]`")
    } else {
        failure
    }
}

fn command(dir: &Path, package: &CargoPackage, options: &CargoOptions, quiet: bool) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    // Cargo reads the project's own .cargo/config.toml from where it is started.
    cargo.current_dir(dir).arg("build").arg("--manifest-path").arg(&package.manifest_path);
    cargo.args(["--message-format=json-render-diagnostics", "--profile", &options.profile]);
    for bin in &package.bins {
        cargo.args(["--bin", bin]);
    }
    for feature in &options.features {
        cargo.args(["--features", feature.get_ref()]);
    }
    if !options.default_features {
        cargo.arg("--no-default-features");
    }
    if quiet {
        cargo.arg("--quiet");
    }
    // With a target, flags keep away from build scripts and macros, which cannot be static.
    match &options.target {
        Some(target) => cargo.args(["--target", target]),
        None if options.link_static => cargo.args(["--target", "host-tuple"]),
        None => &mut cargo,
    };
    if options.link_static {
        link_static(&mut cargo);
    }
    cargo
}

/// Adds [`STATIC`] to the flags that cargo will use. The variables, where set, replace those of the
/// configuration (<https://doc.rust-lang.org/cargo/reference/config.html#buildrustflags>).
fn link_static(cargo: &mut Command) {
    let add = |name: &str, separator: &str| {
        let flags = std::env::var(name).ok()?;
        Some(if flags.is_empty() { STATIC.to_owned() } else { format!("{flags}{separator}{STATIC}") })
    };
    if let Some(flags) = add("CARGO_ENCODED_RUSTFLAGS", "\x1f") {
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags);
    } else if let Some(flags) = add("RUSTFLAGS", " ") {
        cargo.env("RUSTFLAGS", flags);
    } else {
        cargo.arg("--config").arg(format!("target.'cfg(all())'.rustflags=[\"{STATIC}\"]"));
    }
}
