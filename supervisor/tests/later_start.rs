//! A tool's later start, seen from outside: a head is patched into the runtime as `kitbag pack` does, a start
//! record is written as a full start does, and the file is run. Where the record does not hold, the runtime
//! goes on to `main`, which refuses these bundles; here it only matters that the program has not run.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, symlink},
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, SystemTime},
};

#[allow(dead_code)]
#[path = "../src/tool/start_record.rs"]
mod start_record;
use start_record::{CheckedFile, Guard, Piece, StartRecord};

const RUNTIME: &str = env!("CARGO_BIN_EXE_kitbag-supervisor");
const NOTE: &[u8] = b"\x07\0\0\0\x00\x04\0\0\x01\0\0\0kitbag\0\0";
/// Says how it was called, on one line each.
const PROGRAM: &str =
    "#!/bin/sh\necho ran as \"$0\"\nfor arg; do echo \"[$arg]\"; done\necho \"A=$A B=$B\"\npwd\nexit 7\n";

/// An unpacked tool in a folder of its own, removed on drop.
struct Tool {
    root: PathBuf,
    bundle: PathBuf,
    folder: PathBuf,
    record: StartRecord,
}

impl Tool {
    fn new(name: &str) -> Self {
        let root = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("later-{name}"));
        let _ = fs::remove_dir_all(&root);
        let folder = root.join("store/v1/trees").join("d1".repeat(32));
        fs::create_dir_all(folder.join("tree")).unwrap();
        let (bundle, program) = (root.join("bundle"), folder.join("tree/app"));
        fs::write(&program, PROGRAM).unwrap();
        fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let head_prefix = pack(&bundle);
        let argv = vec![vec![Piece::Literal(program.clone().into())], vec![Piece::Literal("first".into())]];
        let record = StartRecord {
            head_prefix,
            folder: folder.clone(),
            guards: vec![],
            needs: None,
            files: vec![CheckedFile::now(&program).unwrap()],
            keep_loader_variables: true,
            boot_id: None,
            cwd: None,
            argv,
            env: vec![("A".into(), vec![Piece::Env("A".into(), Some("none".into()))])],
        };
        let tool = Self { root, bundle, folder, record };
        tool.write();
        tool
    }

    fn record_path(&self) -> PathBuf {
        self.folder.join("start")
    }

    fn program(&self) -> PathBuf {
        self.folder.join("tree/app")
    }

    fn write(&self) {
        self.write_bytes(&self.record.to_bytes().unwrap());
    }

    fn write_bytes(&self, bytes: &[u8]) {
        let new = self.folder.join("start.new");
        fs::write(&new, bytes).unwrap();
        fs::set_permissions(&new, PermissionsExt::from_mode(0o600)).unwrap();
        fs::rename(new, self.record_path()).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.bundle);
        command.env_clear().env("KITBAG_STORE", self.root.join("store")).env("PATH", "/usr/bin:/bin");
        command.current_dir(&self.root);
        command
    }

    fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.command().args(args).output().unwrap()
    }

    fn starts(&self) -> bool {
        ran(&self.run([""; 0]))
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Copies the runtime to `bundle` with a tool's head in its note; the head's first 64 bytes.
fn pack(bundle: &Path) -> [u8; 64] {
    let mut file = fs::read(RUNTIME).unwrap();
    let mut head = [0; 64];
    head[..8].copy_from_slice(b"\x89KITBAG\n");
    (head[8], head[16]) = (1, 1);
    head[24..32].copy_from_slice(&(file.len() as u64).to_le_bytes());
    head[32..].fill(0xd1);
    let at =
        file.windows(NOTE.len()).position(|bytes| bytes == NOTE).expect("the runtime's note") + NOTE.len();
    file[at..at + 64].copy_from_slice(&head);
    // Through cp(1): a descriptor open for writing here, inherited by a child of another test's thread between
    // fork and exec, would make this bundle's start fail (ETXTBSY).
    let patched = bundle.with_extension("patched");
    fs::write(&patched, file).unwrap();
    assert!(Command::new("cp").arg(&patched).arg(bundle).status().unwrap().success());
    fs::set_permissions(bundle, PermissionsExt::from_mode(0o755)).unwrap();
    head
}

fn ran(output: &Output) -> bool {
    String::from_utf8_lossy(&output.stdout).contains("ran as")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn arguments_environment_folder_and_status_are_the_programs() {
    let tool = Tool::new("passes");
    let output = tool.command().args(["a", "", "b c", "--kitbag"]).env("B", "b").output().unwrap();
    let (program, root) = (tool.program(), &tool.root);
    let expected = format!(
        "ran as {}\n[first]\n[a]\n[]\n[b c]\n[--kitbag]\nA=none B=b\n{}\n",
        program.display(),
        root.display()
    );
    assert_eq!(text(&output), expected);
    assert_eq!(output.status.code(), Some(7));

    let output = tool.command().env("A", "set").output().unwrap();
    assert!(text(&output).contains("A=set"), "{output:?}");
    let many: Vec<String> = (0..5000).map(|at| at.to_string()).collect();
    assert!(text(&tool.run(&many)).contains("[4999]\n"));
}

#[test]
fn a_signal_is_the_programs_own() {
    let mut tool = Tool::new("signal");
    fs::write(tool.program(), "#!/bin/sh\necho ran as\nkill -TERM $$\n").unwrap();
    tool.record.files = vec![CheckedFile::now(&tool.program()).unwrap()];
    tool.write();
    let output = tool.run([""; 0]);
    assert!(ran(&output));
    assert_eq!(output.status.signal(), Some(15));
}

#[test]
fn kitbags_own_arguments_do_not_reach_the_program() {
    let tool = Tool::new("own-arguments");
    assert!(tool.starts());
    for first in ["--kitbag", "--kitbag=x"] {
        assert!(!ran(&tool.run([first])), "{first}");
    }
    assert!(ran(&tool.run(["--kitba"])));
}

#[test]
fn more_arguments_than_fit_are_left_to_the_full_start() {
    let tool = Tool::new("many");
    assert!(!ran(&tool.run(vec!["x"; 9000])));
    assert!(!ran(&tool.command().arg0("").env("KITBAG_STORE", "relative").output().unwrap()));
}

#[test]
fn a_damaged_record_is_not_used() {
    let tool = Tool::new("damaged");
    let bytes = tool.record.to_bytes().unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        tool.write_bytes(&damaged);
        assert!(!tool.starts(), "byte {at}");
    }
    for length in [0, 1, 23, 24, 127, 128, bytes.len() / 2, bytes.len() - 1] {
        tool.write_bytes(&bytes[..length]);
        assert!(!tool.starts(), "cut at {length}");
    }
    tool.write_bytes(&[&bytes[..], b"\0"].concat());
    assert!(!tool.starts(), "longer");
    tool.write_bytes(&[&bytes[..], &[0; 20_000]].concat());
    assert!(!tool.starts(), "too long");
    tool.write();
    assert!(tool.starts(), "as it was");
}

#[test]
fn a_record_that_others_could_have_planted_is_not_used() {
    let tool = Tool::new("planted");
    let path = tool.record_path();
    for mode in [0o620, 0o602, 0o666] {
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        assert!(!tool.starts(), "mode {mode:o}");
    }
    fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    assert!(tool.starts());
    fs::hard_link(&path, tool.folder.join("second")).unwrap();
    assert!(!tool.starts(), "two links");
    fs::remove_file(&path).unwrap();
    symlink("second", &path).unwrap();
    assert!(!tool.starts(), "a symbolic link");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(!tool.starts(), "a folder");
    fs::remove_dir(&path).unwrap();
    assert!(!tool.starts(), "none");
    // A fifo must not make the start wait.
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let timed = Command::new("timeout")
        .arg("5")
        .arg(&tool.bundle)
        .env("KITBAG_STORE", tool.root.join("store"))
        .output();
    let timed = timed.unwrap();
    assert!(!ran(&timed) && timed.status.code() != Some(124), "a fifo: {timed:?}");
}

#[test]
fn a_record_or_program_of_another_user_is_not_used() {
    let tool = Tool::new("owner");
    if fs::metadata(&tool.root).unwrap().uid() != 0 {
        return eprintln!("not run: only root can give files away");
    }
    std::os::unix::fs::chown(tool.record_path(), Some(12345), None).unwrap();
    assert!(!tool.starts(), "the record's owner");
    let mut tool = Tool::new("owner");
    std::os::unix::fs::chown(tool.program(), Some(12345), None).unwrap();
    tool.record.files = vec![CheckedFile::now(&tool.program()).unwrap()];
    tool.write();
    assert!(!tool.starts(), "the program's owner");
}

#[test]
fn a_changed_program_is_not_run() {
    let tool = Tool::new("changed");
    let (program, before) = (tool.program(), fs::metadata(tool.program()).unwrap());
    fs::write(&program, PROGRAM.replace("exit 7", "exit 8")).unwrap();
    fs::File::options().write(true).open(&program).unwrap().set_modified(before.modified().unwrap()).unwrap();
    let after = fs::metadata(&program).unwrap();
    assert_eq!((before.len(), before.modified().unwrap()), (after.len(), after.modified().unwrap()));
    assert!(!tool.starts(), "changed, with size and mtime put back");

    let mut tool = Tool::new("changed");
    fs::copy(&program, tool.folder.join("copy")).unwrap();
    fs::rename(tool.folder.join("copy"), &program).unwrap();
    assert!(!tool.starts(), "replaced");
    tool.record.files = vec![CheckedFile::now(&program).unwrap()];
    tool.write();
    assert!(tool.starts(), "recorded anew");
    fs::File::create(&program).unwrap();
    assert!(!tool.starts(), "emptied");
    fs::remove_file(&program).unwrap();
    assert!(!tool.starts(), "deleted");
}

#[test]
fn a_bundle_of_another_length_or_head_is_not_used() {
    let tool = Tool::new("bundle");
    let whole = fs::read(&tool.bundle).unwrap();
    let note = whole.windows(NOTE.len()).position(|bytes| bytes == NOTE).unwrap() + NOTE.len();
    let starts_as = |bytes: &[u8]| {
        let patched = tool.bundle.with_extension("patched");
        fs::write(&patched, bytes).unwrap();
        fs::remove_file(&tool.bundle).unwrap();
        assert!(Command::new("cp").arg(&patched).arg(&tool.bundle).status().unwrap().success());
        fs::set_permissions(&tool.bundle, PermissionsExt::from_mode(0o755)).unwrap();
        tool.starts()
    };
    assert!(starts_as(&whole));
    assert!(!starts_as(&whole[..whole.len() - 1]), "truncated");
    assert!(!starts_as(&[&whole[..], b"x"].concat()), "extended");
    for at in 0..64 {
        let mut flipped = whole.clone();
        flipped[note + at] ^= 4;
        assert!(!starts_as(&flipped), "byte {at} of the head");
    }
}

#[test]
fn a_moved_store_is_not_used() {
    let tool = Tool::new("moved");
    fs::rename(tool.root.join("store"), tool.root.join("other")).unwrap();
    symlink("other", tool.root.join("third")).unwrap();
    for store in ["other", "third"] {
        let output = tool.command().env("KITBAG_STORE", tool.root.join(store)).output().unwrap();
        assert!(!ran(&output), "{store}");
    }
}

#[test]
fn guards_needed_folder_and_boot_id_must_agree() {
    let mut tool = Tool::new("guards");
    tool.record.guards = vec![Guard { name: "G".into(), value: Some("g".into()) }];
    tool.write();
    assert!(!tool.starts());
    assert!(ran(&tool.command().env("G", "g").output().unwrap()));
    tool.record.guards = vec![Guard { name: "G".into(), value: None }];
    tool.record.needs = Some(tool.root.join("state"));
    tool.write();
    assert!(!tool.starts(), "no state folder");
    fs::write(tool.root.join("state"), "").unwrap();
    assert!(!tool.starts(), "a file");
    fs::remove_file(tool.root.join("state")).unwrap();
    fs::create_dir(tool.root.join("state")).unwrap();
    assert!(tool.starts());

    let boot = fs::read("/proc/sys/kernel/random/boot_id").unwrap();
    tool.record.boot_id = boot[..36].try_into().ok();
    tool.write();
    assert!(tool.starts(), "this boot");
    tool.record.boot_id = Some([b'0'; 36]);
    tool.write();
    assert!(!tool.starts(), "another boot");
}

#[test]
fn a_start_that_fails_leaves_the_folder_as_it_was() {
    let mut tool = Tool::new("cwd");
    tool.record.cwd = Some(vec![Piece::Literal("/".into())]);
    tool.write();
    assert!(text(&tool.run([""; 0])).ends_with("\n/\n"));
    // The program cannot be executed: after chdir, a relative path to the bundle must still be right for the
    // full start, so it has to be back where it was.
    fs::set_permissions(tool.program(), PermissionsExt::from_mode(0o644)).unwrap();
    tool.record.files = vec![CheckedFile::now(&tool.program()).unwrap()];
    tool.write();
    let Ok(trace) = strace(&tool) else { return eprintln!("not run: there is no strace") };
    let calls: Vec<&str> = trace.lines().filter_map(|line| line.split('(').next()).collect();
    let at = |name: &str| calls.iter().rposition(|call| *call == name);
    assert!(at("execve") > at("chdir") && at("fchdir") > at("execve"), "{trace}");
}

#[test]
fn the_last_use_is_renewed_when_it_is_older_than_ten_seconds() {
    let tool = Tool::new("last-use");
    let set = |time| fs::File::open(tool.record_path()).unwrap().set_modified(time).unwrap();
    let get = || fs::metadata(tool.record_path()).unwrap().modified().unwrap();
    for (time, renewed) in [
        (SystemTime::now() - Duration::from_secs(3), false),
        (SystemTime::now() - Duration::from_secs(100), true),
        (SystemTime::now() + Duration::from_secs(100), true),
    ] {
        set(time);
        assert!(tool.starts());
        let age = SystemTime::now().duration_since(get()).expect("not in the future");
        assert_eq!(get() != time, renewed, "{age:?}");
        assert!(age < Duration::from_secs(10), "{age:?}");
    }
}

#[test]
fn variables_for_loaders_reach_a_program_unless_it_has_its_own() {
    let mut tool = Tool::new("loaders");
    fs::write(tool.program(), "#!/bin/sh\necho ran as\necho \"LD_X=$LD_X LDX=$LDX LD_SET=$LD_SET\"\n")
        .unwrap();
    tool.record.files = vec![CheckedFile::now(&tool.program()).unwrap()];
    tool.record.env = vec![("LD_SET".into(), vec![Piece::Literal("ours".into())])];
    for (keep, expected) in [(true, "LD_X=x LDX=y LD_SET=ours\n"), (false, "LD_X= LDX=y LD_SET=ours\n")] {
        tool.record.keep_loader_variables = keep;
        tool.write();
        let output = tool.command().env("LD_X", "x").env("LDX", "y").env("LD_SET", "z").output().unwrap();
        assert!(text(&output).ends_with(expected), "{output:?}");
    }
}

#[test]
fn a_changed_library_is_not_loaded() {
    let mut tool = Tool::new("library");
    let library = tool.folder.join("tree/lib.so");
    fs::write(&library, "library").unwrap();
    tool.record.files.push(CheckedFile::now(&library).unwrap());
    tool.write();
    assert!(tool.starts());
    fs::write(&library, "Library").unwrap();
    assert!(!tool.starts());
}

#[test]
fn a_later_start_takes_at_most_twelve_system_calls() {
    let tool = Tool::new("calls");
    let Ok(trace) = strace(&tool) else { return eprintln!("not run: there is no strace") };
    let calls = trace.lines().take_while(|line| !line.contains("tree/app\", [")).count();
    assert!((1..=12).contains(&calls), "{calls} calls:\n{trace}");
}

fn strace(tool: &Tool) -> std::io::Result<String> {
    let out = tool.root.join("trace");
    let store = tool.root.join("store");
    Command::new("strace").arg("-o").arg(&out).arg(&tool.bundle).env("KITBAG_STORE", store).output()?;
    fs::read_to_string(out)
}

#[test]
fn the_entry_calls_nothing_that_needs_relocation() {
    let objdump = Command::new("objdump").args(["-d", "--no-show-raw-insn", RUNTIME]).output();
    let Ok(objdump) = objdump else { return eprintln!("not run: there is no objdump (Debian: binutils)") };
    let code = Code::parse(&text(&objdump));
    let tables = Tables::of(RUNTIME);
    // kitbag_entry ends with the only jump that leaves the crate: to libc's `_start`.
    let entry: Vec<u64> = code.0.range(tables.entry..).map(|(at, _)| *at).take(7).collect();
    let mut seen = BTreeSet::new();
    let mut queue = vec![entry[0]];
    while let Some(at) = queue.pop() {
        if !seen.insert(at) {
            continue;
        }
        let (words, next) = &code.0[&at];
        let (name, operand) = words.split_once(char::is_whitespace).unwrap_or((words, ""));
        // `call 1f00 <name>`, or `call 0x1f00` in a stripped file.
        let target = || hex(operand.split_whitespace().next().unwrap()).unwrap();
        assert!(!tables.hold(operand), "{at:x}: {words}: reads what is not relocated yet");
        let (jump, call) = (name.starts_with('j'), name == "call");
        assert!(!((jump || call) && operand.contains('*')), "{at:x}: {words}: goes to an address in data");
        if at == entry[6] {
            assert_eq!(name, "jmp", "kitbag_entry's last instruction");
            continue;
        }
        if jump || call {
            queue.push(target());
        }
        if !matches!(name, "ret" | "jmp" | "ud2") {
            queue.push(*next);
        }
    }
    assert!(seen.len() > 300, "only {} instructions seen", seen.len());
}

fn hex(word: &str) -> Option<u64> {
    u64::from_str_radix(word.trim_start_matches("0x"), 16).ok()
}

/// Disassembled code: address -> (instruction, next address).
struct Code(BTreeMap<u64, (String, u64)>);

impl Code {
    fn parse(objdump: &str) -> Self {
        let lines = objdump.lines().filter_map(|line| {
            let (address, words) = line.trim_start().split_once(":\t")?;
            Some((hex(address)?, words.trim().to_owned()))
        });
        let lines: Vec<_> = lines.collect();
        let after = lines.iter().skip(1).map(|(at, _)| *at).chain([0]);
        Self(lines.iter().zip(after).map(|((at, words), next)| (*at, (words.clone(), next))).collect())
    }
}

/// The runtime's entry point, and the addresses of what relocation changes.
struct Tables {
    entry: u64,
    relocated: Vec<std::ops::Range<u64>>,
}

impl Tables {
    fn of(file: &str) -> Self {
        let bytes = fs::read(file).unwrap();
        let entry = u64::from_le_bytes(bytes[24..32].try_into().unwrap());
        let sections = text(&Command::new("objdump").args(["-h", file]).output().unwrap());
        let relocated = sections.lines().filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, name, size, start, ..] = words[..] else { return None };
            let data = name.starts_with(".got") || name.starts_with(".data") || name.starts_with(".tdata");
            data.then_some(())?;
            Some(hex(start)?..hex(start)? + hex(size)?)
        });
        Self { entry, relocated: relocated.collect() }
    }

    /// True where `operand`, as objdump explains it after `#`, lies in one of them.
    fn hold(&self, operand: &str) -> bool {
        let address = operand.split_once("# ").and_then(|(_, rest)| rest.split_whitespace().next());
        let address = address.and_then(hex);
        address.is_some_and(|address| self.relocated.iter().any(|range| range.contains(&address)))
    }
}
