//! Bytecode ahead of time: an unchecked hash-based `.pyc` (PEP 552) beside each module, which is used as it is,
//! whatever the times of the files are.
//!
//! Each file is compiled in a process of its own, forked from one that has done nothing else: what `marshal` writes
//! depends on which objects are shared, and so on what was compiled before. The same source gives the same bytes.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use kitbag_format::Digest;
use rayon::prelude::*;

use super::Facts;
use crate::cache;
use crate::diagnostic::Diagnostic;
use crate::preset::said;
use crate::scan::Seen;
use crate::tree::{Kind, Tree};

/// Compiled files go when they were made so long ago, and are compiled again.
const UNUSED: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// Reads `source NUL name NUL target NUL`…; what is no Python becomes an empty file.
const COMPILE: &str = r#"
import importlib.util, os, sys, traceback, warnings
from importlib._bootstrap_external import _code_to_hash_pyc
warnings.simplefilter("ignore")
fields = sys.stdin.buffer.read().split(b"\0")

def compile_file(source, name, target):
    with open(source, "rb") as file:
        data = file.read()
    try:
        code = compile(data, os.fsdecode(name), "exec", dont_inherit=True, optimize=0)
        bytecode = _code_to_hash_pyc(code, importlib.util.source_hash(data), False)
    except (SyntaxError, ValueError, RecursionError):
        bytecode = b""
    work = target + b".%d" % os.getpid()
    with open(work, "wb") as file:
        file.write(bytecode)
    os.replace(work, target)

running, failed, most = 0, 0, os.cpu_count() or 1
def wait():
    global running, failed
    _, status = os.wait()
    running -= 1
    failed |= status

for job in zip(fields[0::3], fields[1::3], fields[2::3]):
    if running == most:
        wait()
    if os.fork() == 0:
        try:
            compile_file(*job)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    running += 1
while running:
    wait()
sys.exit(1 if failed else 0)
"#;

/// Compiles the modules of a tree, and remembers what it compiled in kitbag's cache.
#[derive(Debug)]
pub struct Compiler {
    python: PathBuf,
    tag: String,
    release: String,
}

/// A compiled file: its place in the tree, and where it is.
pub type Compiled = (Vec<u8>, PathBuf, Seen);

impl Compiler {
    pub(super) fn new(facts: &Facts) -> Self {
        Self {
            python: facts.executable.clone(),
            tag: facts.tag.clone(),
            release: format!("{} {}", facts.executable.display(), facts.release),
        }
    }

    /// Compiles what is not in the cache: all that ends with `.py`, but for scripts in `bin`.
    pub fn compile(&self, tree: &Tree) -> Result<Vec<Compiled>, Diagnostic> {
        let folder = cache::folder("python/compiled");
        let failed = |why: String| Diagnostic::new("cannot compile the app's modules").help(why);
        fs::create_dir_all(&folder).map_err(|error| failed(format!("{}: {error}", folder.display())))?;
        cache::forget(&folder, UNUSED);
        let jobs = self.jobs(tree, &folder);
        let missing: Vec<&Job> = jobs.par_iter().filter(|job| fs::metadata(&job.target).is_err()).collect();
        if !missing.is_empty() {
            self.run(&missing).map_err(failed)?;
        }
        let found = |job: Job| {
            let metadata = fs::metadata(&job.target).ok().filter(|found| found.len() > 0)?;
            Some((job.place, job.target, Seen::from(&metadata)))
        };
        Ok(jobs.into_par_iter().filter_map(found).collect())
    }

    fn jobs(&self, tree: &Tree, folder: &Path) -> Vec<Job> {
        let mut jobs = Vec::new();
        let mut places = BTreeSet::new();
        for (path, node) in &tree.nodes {
            let Kind::File { seen, .. } = &node.kind else { continue };
            let Some((parent, stem)) = module(path) else { continue };
            let place = [parent, b"__pycache__/", stem, b".", self.tag.as_bytes(), b".pyc"].concat();
            if tree.nodes.contains_key(&place) || !places.insert(place.clone()) {
                continue;
            }
            let Ok(source) = std::path::absolute(&node.source) else { continue };
            let key = (&self.release, path, source.as_os_str().as_bytes(), seen);
            let Ok(key) = postcard::to_allocvec(&key) else { continue };
            let target = folder.join(format!("{}.pyc", Digest::of(&key)));
            jobs.push(Job { source, name: path.clone(), place, target });
        }
        jobs
    }

    fn run(&self, jobs: &[&Job]) -> Result<(), String> {
        let mut python = Command::new(&self.python);
        // Nothing of the user's own set-up; hashes, and so the order of sets, are the same each time.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_bytes().starts_with(b"PYTHON")) {
            python.env_remove(name);
        }
        python.env("PYTHONHASHSEED", "0").args(["-s", "-S", "-B", "-c", COMPILE]).current_dir("/");
        python.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = python.spawn().map_err(|error| format!("{}: {error}", self.python.display()))?;
        let mut input = Vec::new();
        for field in jobs
            .iter()
            .flat_map(|job| [job.source.as_os_str().as_bytes(), &job.name, job.target.as_os_str().as_bytes()])
        {
            input.extend_from_slice(field);
            input.push(0);
        }
        // It reads all before it does anything, so neither waits for the other.
        let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(&input));
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        if output.status.success() && written.is_ok() { Ok(()) } else { Err(said(&output.stderr)) }
    }
}

/// A file to compile.
struct Job {
    source: PathBuf,
    /// What tracebacks call it until it is loaded: its path in the tree.
    name: Vec<u8>,
    place: Vec<u8>,
    target: PathBuf,
}

/// The folder, with `/` at its end, and the name of the module at `path`.
fn module(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let stem = path.strip_suffix(b".py")?;
    let at = stem.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    let (parent, name) = stem.split_at(at);
    let is_script = parent == b"bin/" || OsStr::from_bytes(name).is_empty();
    (!is_script).then_some((parent, name))
}
