//! Supervisors: how each is told of its services, and started. Debian has all peers but dinit, which is measured where
//! it is on PATH or BENCH_DINIT names its file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::measure::{on_path, tool};

/// A service to be supervised.
pub struct Service {
    /// Its name.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
}

/// What becomes of the services' output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logs {
    /// Nobody reads it.
    None,
    /// Files of 16 MB, as they come.
    Plain,
    /// The same, with the time before each line.
    Stamped,
}

/// A supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Supervisor {
    /// This one; `kitbag` packs its bundles.
    Kitbag(PathBuf),
    /// No supervisor, but its least possible work.
    Floor,
    /// No supervisor either: orphans come to a process for which the kernel reaps (sigaction(2) `SA_NOCLDWAIT`).
    Nobody,
    /// dinit, by its path: from Alpine, Void or its own site.
    Dinit(PathBuf),
    /// runit: runsvdir, a runsv and an svlogd for each service.
    Runit,
    /// s6: s6-svscan, an s6-supervise and an s6-log for each service.
    S6,
    /// supervisord, in Python.
    Supervisord,
    /// tini with `-s`: starts one program, adopts orphans and reaps them.
    Tini,
    /// dumb-init: the same as PID 1 alone.
    DumbInit,
}

impl Supervisor {
    /// As the table calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kitbag(_) => "kitbag",
            Self::Floor => "vfork, exec, wait",
            Self::Nobody => "the kernel alone",
            Self::Dinit(_) => "dinit",
            Self::Runit => "runit",
            Self::S6 => "s6",
            Self::Supervisord => "supervisord",
            Self::Tini => "tini -s",
            Self::DumbInit => "dumb-init",
        }
    }

    /// kitbag first, then the peers that are installed.
    pub fn all(kitbag: &Path) -> Vec<Self> {
        let debian = installed([
            (Self::Runit, "runsvdir"),
            (Self::S6, "s6-svscan"),
            (Self::Supervisord, "supervisord"),
        ]);
        [Self::Kitbag(kitbag.to_owned()), Self::Floor]
            .into_iter()
            .chain(dinit().map(Self::Dinit))
            .chain(debian)
            .collect()
    }

    /// Those that adopt orphans and supervise nothing, where they are installed.
    pub fn adopters() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Nobody).chain(installed([(Self::Tini, "tini"), (Self::DumbInit, "dumb-init")]))
    }

    /// Whether it can log so.
    pub fn can(&self, logs: Logs) -> bool {
        match self {
            Self::Kitbag(_) => true,
            Self::Runit | Self::S6 => logs != Logs::None,
            // The floor's logger is `cat`.
            Self::Supervisord | Self::Floor => logs == Logs::Plain,
            Self::Nobody | Self::Dinit(_) | Self::Tini | Self::DumbInit => false,
        }
    }

    /// Describes the services in the empty folder `dir`. Returns the command that supervises them in the foreground.
    /// Logs are written below `dir/log`.
    pub fn lay_out(&self, dir: &Path, services: &[Service], logs: Logs) -> Result<Vec<String>, String> {
        let path = |name: &str| dir.join(name).display().to_string();
        match self {
            Self::Kitbag(kitbag) => bundle(kitbag, dir, services, logs),
            Self::Floor if logs == Logs::Plain => {
                make(&dir.join("log"))?;
                let argv = services.first().map(|service| service.argv.join(" ")).ok_or("no service")?;
                Ok(["sh", "-c", &format!("{argv} | cat > '{}'", path("log/current"))]
                    .map(str::to_owned)
                    .into())
            }
            Self::Floor => {
                let service = services.first().ok_or("no service")?;
                let (program, fifo) = (service.argv[0].clone(), service.argv[2].clone());
                Ok(vec![program, "floor".to_owned(), fifo, services.len().to_string()])
            }
            Self::Nobody => {
                let [program, mode, fifo, id, count] = &services.first().ok_or("no service")?.argv[..] else {
                    return Err("not for orphans".to_owned());
                };
                Ok([program, "nobody", fifo, id, mode, count].map(str::to_owned).into())
            }
            Self::Tini | Self::DumbInit => {
                let service = services.first().ok_or("no service")?;
                let own: &[&str] = if *self == Self::Tini { &["tini", "-s", "--"] } else { &["dumb-init"] };
                Ok(own.iter().map(|&word| word.to_owned()).chain(service.argv.iter().cloned()).collect())
            }
            Self::Dinit(dinit) => {
                let mut boot = "type = internal\n".to_owned();
                for service in services {
                    let text = format!(
                        "type = process\ncommand = {}\nsmooth-recovery = true\nrestart-limit-count = 0\n",
                        service.argv.join(" ")
                    );
                    write(&dir.join("services").join(&service.name), &text, 0o644)?;
                    boot.push_str(&format!("waits-for = {}\n", service.name));
                }
                write(&dir.join("services/boot"), &boot, 0o644)?;
                let (socket, services) = (path("control"), path("services"));
                let dinit = dinit.display().to_string();
                // `-o`: as PID 1 it is a container's, not a machine's.
                Ok([&dinit, "-o", "-q", "-p", &socket, "-d", &services].map(str::to_owned).into())
            }
            Self::Runit => {
                for service in services {
                    let folder = dir.join("services").join(&service.name);
                    write(&folder.join("run"), &script(&service.argv), 0o755)?;
                    if logs != Logs::None {
                        let to = dir.join("log").join(&service.name);
                        make(&to)?;
                        write(&to.join("config"), "s16777215\nn100\n", 0o644)?;
                        let stamp = if logs == Logs::Stamped { "-tt" } else { "" };
                        let run = format!("#!/bin/sh\nexec svlogd {stamp} '{}'\n", to.display());
                        write(&folder.join("log/run"), &run, 0o755)?;
                    }
                }
                Ok(["runsvdir", "-P", &path("services")].map(str::to_owned).into())
            }
            Self::S6 => {
                for service in services {
                    let folder = dir.join("services").join(&service.name);
                    write(&folder.join("run"), &script(&service.argv), 0o755)?;
                    if logs != Logs::None {
                        let to = dir.join("log").join(&service.name);
                        let stamp = if logs == Logs::Stamped { "t" } else { "" };
                        let run =
                            format!("#!/bin/sh\nexec s6-log {stamp} n100 s16777215 '{}'\n", to.display());
                        write(&folder.join("log/run"), &run, 0o755)?;
                        make(&dir.join("log"))?;
                    }
                }
                Ok(["s6-svscan", "-c", "4000", &path("services")].map(str::to_owned).into())
            }
            Self::Supervisord => {
                let mut text = format!(
                    "[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\nminfds=4000\n\
                     pidfile={}\nchildlogdir={}\n",
                    path("pid"),
                    dir.display()
                );
                make(&dir.join("log"))?;
                for service in services {
                    let log = if logs == Logs::None {
                        "stdout_logfile=/dev/null\nstdout_logfile_maxbytes=0".to_owned()
                    } else {
                        format!(
                            "stdout_logfile={}/{}\nstdout_logfile_maxbytes=16777215\nstdout_logfile_backups=100",
                            path("log"),
                            service.name
                        )
                    };
                    text.push_str(&format!(
                        "[program:{}]\ncommand={}\nautorestart=true\n{log}\nstderr_logfile=/dev/null\n\
                         stderr_logfile_maxbytes=0\n",
                        service.name,
                        service.argv.join(" ")
                    ));
                }
                write(&dir.join("conf"), &text, 0o644)?;
                Ok(["supervisord", "-c", &path("conf")].map(str::to_owned).into())
            }
        }
    }
}

/// A bundle whose one program is the service, for as many services. It runs from the tree in its store, as a second
/// start does.
fn bundle(kitbag: &Path, dir: &Path, services: &[Service], logs: Logs) -> Result<Vec<String>, String> {
    let program = services.first().map(|service| service.argv[0].clone()).ok_or("no service")?;
    let format = if logs == Logs::Stamped { "stamped" } else { "plain" };
    let logs = match logs {
        Logs::None => "[logs]\nto = \"stdout\"\n".to_owned(),
        _ => format!(
            "[logs]\nto = {{ files = \"{}\" }}\nformat = \"{format}\"\nmax-size = 16777215\nkeep = 100\n\
             compress = false\n",
            dir.join("log").display()
        ),
    };
    let mut text = format!(
        "name = \"bench\"\nversion = \"1\"\n{logs}\n[[include]]\nfrom = \"{program}\"\nto = \"bin/service\"\n"
    );
    for service in services {
        let rest: Vec<String> = service.argv[1..].iter().map(|text| format!(", \"{text}\"")).collect();
        text.push_str(&format!("[services.{}]\nargv = [\"bin/service\"{}]\n", service.name, rest.concat()));
    }
    // Tables come last in TOML.
    write(&dir.join("project/kitbag.toml"), &text, 0o644)?;
    let file = dir.join("bundle").display().to_string();
    let project = dir.join("project").display().to_string();
    tool(&[&kitbag.display().to_string(), "pack", &project, "-o", &file])?;
    Ok(vec![file])
}

/// dinit's file, if there is one.
pub fn dinit() -> Option<PathBuf> {
    std::env::var_os("BENCH_DINIT").map(PathBuf::from).or_else(|| on_path("dinit"))
}

fn installed<const N: usize>(all: [(Supervisor, &'static str); N]) -> impl Iterator<Item = Supervisor> {
    all.into_iter().filter(|(_, command)| on_path(command).is_some()).map(|(who, _)| who)
}

fn script(argv: &[String]) -> String {
    format!("#!/bin/sh\nexec {}\n", argv.join(" "))
}

fn make(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), String> {
    make(path.parent().unwrap_or(path))?;
    let done =
        fs::write(path, text).and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)));
    done.map_err(|error| format!("{}: {error}", path.display()))
}
