//! Trees to pack, made of what the machine has; they are kept between runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::measure::{on_path, remove, shell, tool, walk};

const HELLO: &str = include_str!("hello.c");
/// `large` ends with so many files or bytes.
const LARGE: (usize, u64) = (20_000, 400_000_000);
/// What `large` is made of where BENCH_LARGE names nothing: until it is large enough.
const LARGE_FROM: [&str; 4] = ["/usr/lib/python3", "/usr/lib/gcc", "/usr/share", "/usr/lib/x86_64-linux-gnu"];

/// A tree whose program is `bin/hello`.
#[derive(Debug, Clone)]
pub struct Input {
    /// Its name in tables.
    pub name: String,
    /// Where it lies.
    pub dir: PathBuf,
}

impl Input {
    /// The program.
    pub fn entry(&self) -> PathBuf {
        self.dir.join("bin/hello")
    }
}

/// Where inputs are made.
pub struct Inputs {
    base: PathBuf,
}

impl Inputs {
    /// Inputs below `work`.
    pub fn new(work: &Path) -> Inputs {
        Inputs { base: work.join("inputs") }
    }

    /// The tree `name`: tiny, medium, large, or `many`, which has exactly 20,000 files and the program.
    pub fn tree(&self, name: &str) -> Result<Input, String> {
        self.made(name, |dir| {
            match name {
                "tiny" => Ok(()),
                "medium" => python(dir),
                "large" => large(dir),
                "many" => many(dir),
                _ => Err(format!("there is no input `{name}`; there are tiny, medium and large")),
            }?;
            hello(dir, "1")
        })
    }

    /// The tree of `input` with one text file changed and the program compiled anew.
    pub fn changed(&self, input: &Input) -> Result<Input, String> {
        self.made(&format!("{}-changed", input.name), |dir| {
            shell("cp -a --no-target-directory \"$1\" \"$2\"", &[&input.dir, dir])?;
            let texts = walk(dir).into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "py"));
            if let Some(text) = texts.max_by_key(|path| path.ends_with("argparse.py")) {
                let mut bytes = fs::read(&text).map_err(|error| error.to_string())?;
                bytes.extend_from_slice(b"\n# changed in version 2\n");
                fs::write(&text, bytes).map_err(|error| error.to_string())?;
            }
            hello(dir, "2")
        })
    }

    /// The pair `small`, `packages` or `binary`: version 1 and version 2.
    pub fn pair(&self, name: &str) -> Result<(Input, Input), String> {
        match name {
            "small" => {
                let first = self.tree("medium")?;
                let second = self.changed(&first)?;
                Ok((first, second))
            }
            "packages" => Ok((self.packages("1")?, self.packages("2")?)),
            "binary" => Ok((self.program("1")?, self.program("2")?)),
            _ => Err(format!("there is no pair `{name}`")),
        }
    }

    /// Wheels: BENCH_WHEELS_V1 and _V2, or numpy 1.26.3 and 1.26.4 beside an unchanged Django.
    fn packages(&self, version: &str) -> Result<Input, String> {
        self.made(&format!("packages-v{version}"), |dir| {
            let wheels = match std::env::var_os(format!("BENCH_WHEELS_V{version}")) {
                Some(dir) => PathBuf::from(dir),
                None => download_wheels(&self.base.join(format!("wheels-v{version}")), version)?,
            };
            shell(
                "mkdir \"$2/site\"; for w in \"$1\"/*.whl; do python3 -m zipfile -e \"$w\" \"$2/site\"; done",
                &[&wheels, dir],
            )?;
            hello(dir, version)
        })
    }

    /// Two builds of one program: BENCH_BIN_V1 and _V2, or a small one with well-known crates.
    fn program(&self, version: &str) -> Result<Input, String> {
        self.made(&format!("binary-v{version}"), |dir| {
            let program = match std::env::var_os(format!("BENCH_BIN_V{version}")) {
                Some(file) => PathBuf::from(file),
                None => build_program(&self.base.join("program"), version)?,
            };
            hello(dir, version)?;
            fs::copy(program, dir.join("bin/program")).map(drop).map_err(|error| error.to_string())
        })
    }

    fn made(&self, name: &str, make: impl FnOnce(&Path) -> Result<(), String>) -> Result<Input, String> {
        let dir = self.base.join(name);
        if !dir.exists() {
            eprintln!("making input {name}");
            let part = self.base.join(format!("{name}.part"));
            remove(&part);
            fs::create_dir_all(&part).map_err(|error| format!("{}: {error}", part.display()))?;
            make(&part).map_err(|why| format!("input {name}: {why}"))?;
            shell("find \"$1\" -exec touch -hd @1700000000 {} +", &[&part])?;
            fs::rename(&part, &dir).map_err(|error| error.to_string())?;
        }
        Ok(Input { name: name.to_owned(), dir })
    }
}

/// Compiles the program into `dir/bin/hello`, static and stripped.
fn hello(dir: &Path, version: &str) -> Result<(), String> {
    fs::create_dir_all(dir.join("bin")).map_err(|error| error.to_string())?;
    let source = dir.with_extension("c");
    fs::write(&source, HELLO).map_err(|error| error.to_string())?;
    let define = format!("-DVERSION=\"{version}\"");
    let out = dir.join("bin/hello").display().to_string();
    let made = tool(&["cc", "-O2", "-s", "-static", &define, "-o", &out, &source.display().to_string()]);
    let _ = fs::remove_file(&source);
    made.map(drop).map_err(|why| format!("{why} (Debian: apt-get install gcc libc6-dev)"))
}

/// The system's Python with its standard library.
fn python(dir: &Path) -> Result<(), String> {
    let python = std::env::var("BENCH_PYTHON").unwrap_or("/usr/bin/python3".to_owned());
    let ask =
        "import sys,os,sysconfig;print(os.path.realpath(sys.executable));print(sysconfig.get_path('stdlib'))";
    let said =
        tool(&[&python, "-c", ask]).map_err(|why| format!("{why} (Debian: apt-get install python3)"))?;
    let mut lines = said.lines();
    let (program, library) = (lines.next().unwrap_or_default(), Path::new(lines.next().unwrap_or_default()));
    let name = library.file_name().unwrap_or("python3".as_ref());
    copy(library, &dir.join("lib").join(name), (usize::MAX, u64::MAX))?;
    copy(Path::new(program), &dir.join("bin/python3"), (1, u64::MAX)).map(drop)
}

/// 20,000 small files, each different.
fn many(dir: &Path) -> Result<(), String> {
    for number in 0..20_000 {
        let folder = dir.join(format!("files/{:03}", number / 100));
        fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        fs::write(folder.join(format!("{number}")), format!("file {number}\n"))
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// A JDK and Python packages, or whatever libraries are there.
fn large(dir: &Path) -> Result<(), String> {
    let (mut files, mut bytes) = LARGE;
    for (number, from) in large_sources().iter().enumerate() {
        let name = from.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (n, size) = copy(from, &dir.join(format!("{number}-{name}")), (files, bytes))?;
        (files, bytes) = (files - n, bytes - size);
    }
    if bytes > LARGE.1 / 10 && files > LARGE.0 / 10 {
        eprintln!(
            "note: `large` has {} MB in {} files; name more folders in BENCH_LARGE",
            (LARGE.1 - bytes) / 1_000_000,
            LARGE.0 - files
        );
    }
    Ok(())
}

fn large_sources() -> Vec<PathBuf> {
    if let Some(dirs) = std::env::var_os("BENCH_LARGE") {
        return std::env::split_paths(&dirs).collect();
    }
    let jdk = on_path("java").and_then(|java| Some(java.canonicalize().ok()?.parent()?.parent()?.to_owned()));
    let site = tool(&["python3", "-c", "import sysconfig;print(sysconfig.get_path('purelib'))"]).ok();
    let site = site.map(|said| PathBuf::from(said.trim())).filter(|dir| dir.exists());
    jdk.into_iter()
        .chain(site)
        .chain(LARGE_FROM.iter().map(PathBuf::from).filter(|dir| dir.exists()))
        .collect()
}

/// Copies files, and links that stay inside, until a limit of files and bytes. What was copied.
fn copy(from: &Path, to: &Path, limit: (usize, u64)) -> Result<(usize, u64), String> {
    let (mut files, mut bytes) = (0, 0);
    let paths = if from.is_dir() { walk(from) } else { vec![from.to_owned()] };
    for path in paths {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let place = path.strip_prefix(from).map_or(to.to_owned(), |rest| {
            if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) }
        });
        if path.components().any(|part| part.as_os_str() == "__pycache__") && limit.0 != usize::MAX {
            continue;
        }
        if meta.is_symlink() {
            link(from, &path, &place);
        } else if meta.is_file() && files < limit.0 && bytes + meta.len() <= limit.1 && readable(&path) {
            copy_file(&path, &place).map_err(|error| format!("{}: {error}", path.display()))?;
            files += 1;
            bytes += meta.len();
        }
    }
    Ok((files, bytes))
}

fn readable(path: &Path) -> bool {
    fs::File::open(path).is_ok()
}

fn copy_file(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to.parent().unwrap_or(Path::new("/")))?;
    fs::copy(from, to)?;
    let executable = fs::metadata(from)?.permissions().mode() & 0o111 != 0;
    fs::set_permissions(to, fs::Permissions::from_mode(if executable { 0o755 } else { 0o644 }))
}

/// A link that is relative and leads to a file within `root`; others would dangle in the copy.
fn link(root: &Path, path: &Path, place: &Path) {
    let (Ok(target), Ok(root)) = (fs::read_link(path), root.canonicalize()) else { return };
    let inside = path.canonicalize().is_ok_and(|real| real.is_file() && real.starts_with(&root));
    if target.is_relative() && inside {
        let _ = fs::create_dir_all(place.parent().unwrap_or(Path::new("/")));
        let _ = std::os::unix::fs::symlink(target, place);
    }
}

fn download_wheels(dir: &Path, version: &str) -> Result<PathBuf, String> {
    let numpy = if version == "1" { "numpy==1.26.3" } else { "numpy==1.26.4" };
    let to = dir.display().to_string();
    let wanted = [
        "--no-deps",
        "--only-binary=:all:",
        "--python-version",
        "3.11",
        "--platform",
        "manylinux2014_x86_64",
    ];
    let mut argv = vec!["python3", "-m", "pip", "download", "-q", "-d", &to];
    argv.extend(wanted);
    argv.extend([numpy, "django==5.0.1"]);
    tool(&argv).map_err(|why| format!("{why} (or name folders of wheels in BENCH_WHEELS_V1 and _V2)"))?;
    Ok(dir.to_owned())
}

/// Builds `program/`, whose second version has a line more, with symbols, as people ship it by mistake.
fn build_program(dir: &Path, version: &str) -> Result<PathBuf, String> {
    let source = include_str!("program.rs");
    let source = if version == "1" { source.to_owned() } else { source.replace("// version 2: ", "") };
    let write = |name: &str, text: &str| fs::write(dir.join(name), text).map_err(|error| error.to_string());
    fs::create_dir_all(dir.join("src")).map_err(|error| error.to_string())?;
    write("Cargo.toml", include_str!("program.toml"))?;
    write("src/main.rs", &source)?;
    shell("cd \"$1\" && CARGO_TARGET_DIR=target cargo build -q --release --target-dir target", &[dir])?;
    let made = walk(&dir.join("target")).into_iter().find(|path| path.ends_with("release/program"));
    made.ok_or("cargo made no program".to_owned())
}

/// The virtual environment at `dir` with these packages of PyPI: made once.
pub fn venv(dir: &Path, interpreter: &str, packages: &[&str]) -> Result<PathBuf, String> {
    let made = dir.join("made");
    if fs::read_to_string(&made).is_ok_and(|found| found == packages.join("\n")) {
        return Ok(dir.to_owned());
    }
    eprintln!("installing {}", packages.join(", "));
    let shown = dir.display().to_string();
    tool(&[interpreter, "-m", "venv", "--clear", &shown])
        .map_err(|why| format!("{why} (Debian: apt-get install python3-venv)"))?;
    let pip = format!("{shown}/bin/pip");
    let install = ["install", "-q", "--disable-pip-version-check", "--only-binary=:all:"];
    tool(&[&[pip.as_str()], &install[..], packages].concat())?;
    fs::write(&made, packages.join("\n")).map_err(|error| error.to_string())?;
    Ok(dir.to_owned())
}
