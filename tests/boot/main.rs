//! A bundle is the only program of a machine: Debian's kernel, and an initramfs that holds the file alone.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kitbag_tests::{App, Bundle, Cmd, Folder, Running, eventually, kept, tools, unmet, workspace};

mod limits;

/// How long an emulated machine may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Debian's kernel for virtual machines. None if it cannot be had: the test is unmet and has to return.
fn kernel() -> Option<PathBuf> {
    if !cfg!(target_arch = "x86_64") {
        unmet("needs x86-64: the machine is emulated");
        return None;
    }
    if !tools(&["qemu-system-x86_64", "gcc", "apt-get", "dpkg-deb"]) {
        return None;
    }
    let folder = kept("cloud-kernel", |folder| {
        let script = "set -eu; cd \"$1\"
            # The package without a version is a name for the newest one.
            package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \\(linux-image-.*\\)/\\1/p' | head -n 1)
            apt-get -qq -o APT::Sandbox::User=root download \"$package\"
            dpkg-deb --fsys-tarfile ./*.deb | tar -x --wildcards './boot/vmlinuz-*'
            rm ./*.deb; mv boot/vmlinuz-* vmlinuz";
        let done = Command::new("sh").args(["-c", script, "sh"]).arg(folder).output();
        let done = done.map_err(|error| error.to_string())?;
        done.status.success().then_some(()).ok_or_else(|| String::from_utf8_lossy(&done.stderr).into_owned())
    })?;
    Some(folder.join("vmlinuz"))
}

/// A program of this folder as one static file, and the folder that has it.
fn compiled(name: &str) -> (Folder, PathBuf) {
    let folder = Folder::new();
    let program = folder.join(name);
    let source = workspace().join(format!("tests/boot/{name}.c"));
    let mut gcc = Command::new("gcc");
    let made = gcc.args(["-static", "-O1", "-o"]).arg(&program).arg(source).output().expect("gcc");
    assert!(made.status.success(), "{made:?}");
    (folder, program)
}

/// The bundle: one service, which looks around, and then ends or stays.
fn bundle(arguments: &[&str]) -> Bundle {
    let (_folder, program) = compiled("first");
    let quoted: Vec<String> = arguments.iter().map(|argument| format!(", \"{argument}\"")).collect();
    let manifest = format!(
        "name = \"alone\"\nversion = \"1\"\n[[include]]\nfrom = \"tree\"\nto = \".\"\n\
         [services.first]\nargv = [\"bin/first\"{}]\nrestart = \"never\"\n",
        quoted.concat()
    );
    App::with_manifest(&manifest).program("bin/first", &program).pack()
}

/// An emulated machine.
struct Machine {
    running: Running,
    monitor: PathBuf,
    _folder: Folder,
}

impl Machine {
    /// Boots a bundle as the first process.
    fn boot(kernel: &Path, bundle: &Bundle, kind: &str) -> Self {
        Self::boot_with(kernel, &[("init", bundle)], kind, "quiet")
    }

    /// The same with these files at the root, `init` among them, and more for the kernel's command line.
    fn boot_with(kernel: &Path, files: &[(&str, &Bundle)], kind: &str, options: &str) -> Self {
        let folder = Folder::new();
        let (initramfs, monitor) = (folder.join("initramfs"), folder.join("monitor"));
        let read = |(name, bundle): &(_, &Bundle)| (*name, fs::read(&bundle.file).expect("the bundle"));
        fs::write(&initramfs, archive(&files.iter().map(read).collect::<Vec<_>>())).expect("a file");
        let qemu = Cmd::new("qemu-system-x86_64")
            .args(["-M", kind, "-cpu", "max", "-m", "256", "-no-reboot", "-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-serial", "stdio", "-monitor"])
            .arg(format!("unix:{},server,nowait", monitor.display()))
            .args([Path::new("-kernel"), kernel, Path::new("-initrd"), &initramfs])
            // A kernel that has lost its first process panics, and then restarts: qemu ends.
            // Told how fast the clock is, it needs not measure: in one boot of ten of an emulated microvm that never ends.
            .arg("-append")
            .arg(format!("console=ttyS0 panic=-1 tsc_early_khz=2000000 {options}"));
        Self { running: qemu.start(), monitor, _folder: folder }
    }

    fn wait_for(&mut self, text: &str) {
        eventually(PATIENCE, text, || {
            assert!(!self.running.has_ended(), "it ended before `{text}`:\n{}", self.running.text());
            self.running.text().contains(text)
        });
    }

    /// All that it printed until it was switched off.
    fn until_off(mut self) -> String {
        let begin = Instant::now();
        while !self.running.has_ended() {
            assert!(begin.elapsed() < PATIENCE, "it is not switched off:\n{}", self.running.text());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.running.text()
    }

    fn press_ctrl_alt_del(&self) {
        let mut monitor = UnixStream::connect(&self.monitor).expect("qemu's monitor");
        monitor.write_all(b"sendkey ctrl-alt-delete\n").expect("it listens");
        // The keys are pressed once it asks for the next command, after it has echoed this one.
        let mut said = Vec::new();
        eventually(PATIENCE, "the monitor answers", || {
            let mut some = [0; 4096];
            let length = monitor.read(&mut some).expect("it answers");
            said.extend_from_slice(&some[..length]);
            said.windows(6).filter(|part| part == b"(qemu)").count() > 1
        });
    }
}

/// A cpio archive of executable files, as the kernel reads it (Documentation/driver-api/early-userspace/buffer-format).
fn archive(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let trailer = ("TRAILER!!!", Vec::new());
    for (number, (name, contents)) in (1..).zip(files.iter().chain([&trailer])) {
        let mode = if contents.is_empty() { 0 } else { 0o100_755_u32 };
        let fields = [number, mode, 0, 0, 1, 0, contents.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        bytes.extend_from_slice(b"070701");
        fields.iter().for_each(|field| bytes.extend_from_slice(format!("{field:08X}").as_bytes()));
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend_from_slice(contents);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

#[test]
fn it_has_all_that_a_machine_needs_and_powers_off_at_its_end() {
    let Some(kernel) = kernel() else { return };
    let machine = Machine::boot(&kernel, &bundle(&[]), "microvm");
    let said = machine.until_off();
    for expected in ["machine alone, terminal 0", "loopback works", "orphans 1 then 0", "all looked at"] {
        assert!(said.contains(expected), "`{expected}` in\n{said}");
    }
    assert!(!said.contains("is missing") && !said.contains("cannot"), "{said}");
    assert!(said.contains("service first exited with status 0"), "{said}");
    assert!(said.contains("reboot: Power down"), "{said}");
}

#[test]
fn ctrl_alt_del_stops_it_and_powers_off() {
    let Some(kernel) = kernel() else { return };
    // The machine with a keyboard.
    let mut machine = Machine::boot(&kernel, &bundle(&["stay"]), "q35");
    machine.wait_for("all looked at");
    machine.press_ctrl_alt_del();
    let said = machine.until_off();
    assert!(said.contains("stopping alone (SIGINT)"), "{said}");
    assert!(said.contains("reboot: Power down"), "{said}");
}
