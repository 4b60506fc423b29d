//! `exec`: a command beside a service's processes, in this terminal: with their environment, folder and identity, and
//! with their limits, priority and cgroup as far as the caller may give it those, or, beside another user's bundle, as far
//! as that user may. What he may not is said.

use std::ffi::{CString, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use lexopt::prelude::*;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, umask};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use nix::unistd::{Gid, execve, getegid, geteuid, getgid, getgroups, getuid};
use serde_json::Value as Json;

use super::{PATIENCE, Running, good, named};
use crate::commands::{Failure, say};
use crate::control::Identity;
use crate::control::http::encoded;
use crate::open::Own;
use crate::spawn::limits;
use crate::status::usage;
use crate::sys::background::become_user;
use crate::sys::{self, Errno};

/// Where programs are looked for if the service's environment does not say (execvp(3)).
const PATH: &str = "/usr/local/bin:/bin:/usr/bin";

/// `exec SVC [--] CMD [ARGUMENTS]`: becomes the command, so its exit status is the command's.
pub fn exec(own: &Own, mut parser: lexopt::Parser) -> Result<(), Failure> {
    let usage = || Failure::Usage("name a service and a command: `exec web -- sh`".to_owned());
    let Some(Value(name)) = parser.next()? else { return Err(usage()) };
    let mut command: Vec<OsString> = parser.raw_args()?.collect();
    if command.first().is_some_and(|first| first == "--") {
        command.remove(0);
    }
    if command.is_empty() {
        return Err(usage());
    }
    let running = Running::of(own)?;
    let target = format!("/v1/services/{}/environment", encoded(&named(name)?));
    let answer = running.ask("GET", &target, PATIENCE)?;
    let peer = answer.identity.clone();
    let surroundings = good(answer)?;
    let Err(error) = run(&surroundings, peer, &command);
    Err(Failure::NotStarted { program: PathBuf::from(&command[0]), error })
}

/// Returns only why there is no such program.
fn run(surroundings: &Json, peer: Identity, command: &[OsString]) -> io::Result<std::convert::Infallible> {
    let empty = serde_json::Map::new();
    let variables = surroundings["environment"].as_object().unwrap_or(&empty);
    let text = |name: &str| variables.get(name).and_then(Json::as_str);
    if let Some(mask) = surroundings["umask"].as_u64() {
        umask(Mode::from_bits_truncate(mask as libc::mode_t & 0o777));
    }
    let mut env = variables
        .iter()
        .map(|(name, value)| CString::new(format!("{name}={}", value.as_str().unwrap_or_default())))
        .collect::<Result<Vec<_>, _>>()?;
    // The terminal is the caller's, whatever the service has.
    if let (None, Some(term)) = (text("TERM"), std::env::var_os("TERM")) {
        env.push(CString::new([b"TERM=", term.as_bytes()].concat())?);
    }
    let argv =
        command.iter().map(|argument| CString::new(argument.as_bytes())).collect::<Result<Vec<_>, _>>()?;
    let is_roots = peer.uid == 0;
    let who = identity(&surroundings["identity"], peer);
    // Opened before this process is no longer root's: /proc(5) gives root the files of who was somebody else before.
    let oom_score = OpenOptions::new().write(true).open("/proc/self/oom_score_adj");
    // What another user's supervisor says is taken with his rights; what root's says, while there still are root's.
    if !is_roots {
        become_it(&who)?;
    }
    take_limits(&surroundings["limits"]);
    take_weight(surroundings, oom_score);
    if is_roots {
        become_it(&who)?;
    }
    std::env::set_current_dir(surroundings["cwd"].as_str().unwrap_or("/"))?;
    let mut why = Errno::ENOENT;
    for program in candidates(&command[0], text("PATH").unwrap_or(PATH)) {
        let Err(errno) = execve(&CString::new(program.as_os_str().as_bytes())?, &argv, &env);
        if errno != Errno::ENOENT && errno != Errno::ENOTDIR {
            why = errno;
        }
    }
    Err(why.into())
}

/// A name with a slash is a path; another is looked for.
fn candidates(program: &OsString, path: &str) -> Vec<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return vec![PathBuf::from(program)];
    }
    path.split(':')
        .map(|folder| Path::new(if folder.is_empty() { "." } else { folder }).join(program))
        .collect()
}

/// Takes the service's limits; where one is beyond what this process may have, as much of it as it may.
fn take_limits(limits: &Json) {
    let finite = |value: &Json| value.as_u64().unwrap_or(libc::RLIM_INFINITY);
    for (name, resource) in limits::NAMES {
        let (Some(both), Some(own)) = (limits[*name].as_array(), sys::limit(*resource)) else { continue };
        let [soft, hard] = &both[..] else { continue };
        let wanted = libc::rlimit { rlim_cur: finite(soft), rlim_max: finite(hard) };
        if (wanted.rlim_cur, wanted.rlim_max) == (own.rlim_cur, own.rlim_max) {
            continue;
        }
        if let Err(errno) = sys::set_limit(*resource, wanted) {
            let most = wanted.rlim_max.min(own.rlim_max);
            let near = libc::rlimit { rlim_cur: wanted.rlim_cur.min(most), rlim_max: most };
            let _ = sys::set_limit(*resource, near);
            let wanted =
                format!("limit {name} = {} (hard {})", shown(wanted.rlim_cur), shown(wanted.rlim_max));
            lacks(&wanted, errno.desc(), &format!("it has {} ({})", shown(near.rlim_cur), shown(most)));
        }
    }
}

fn shown(limit: libc::rlim_t) -> String {
    if limit == libc::RLIM_INFINITY { "unlimited".to_owned() } else { limit.to_string() }
}

/// Takes the service's priority, its place before the out-of-memory killer, and its cgroup.
fn take_weight(surroundings: &Json, oom_score: io::Result<File>) {
    let number = |key: &str| surroundings[key].as_i64().and_then(|value| i32::try_from(value).ok());
    if let Some(folder) = surroundings["cgroup"].as_str()
        && let Err(error) = join_cgroup(Path::new(folder))
    {
        lacks(
            &format!("cgroup {folder}"),
            &error.to_string(),
            "limits on its memory and processes do not hold",
        );
    }
    if let Some(wanted) = number("nice").filter(|wanted| *wanted != sys::priority())
        && let Err(errno) = sys::set_priority(wanted)
    {
        lacks(&format!("nice {wanted}"), errno.desc(), &format!("it has {}", sys::priority()));
    }
    let own = usage::own_oom_score();
    if let Some(wanted) = number("oom_score").filter(|wanted| Some(*wanted) != own)
        && let Err(error) = oom_score.and_then(|mut file| file.write_all(wanted.to_string().as_bytes()))
    {
        let has = own.map_or_else(|| "there is no /proc".to_owned(), |own| format!("it has {own}"));
        lacks(&format!("oom score {wanted}"), &error.to_string(), &has);
    }
}

/// Joins a cgroup. The folder is what another user may have said: nothing but a cgroup's file is written to.
fn join_cgroup(folder: &Path) -> io::Result<()> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
    let path = folder.join("cgroup.procs");
    let mut file = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
    if fstatfs(&file)?.filesystem_type() != CGROUP2_SUPER_MAGIC {
        return Err(io::Error::other("it is no cgroup"));
    }
    file.write_all(b"0")
}

/// The command runs without something that the service has.
fn lacks(what: &str, why: &str, instead: &str) {
    say(&format!("the command runs without the service's {what}: {why}; {instead}"));
}

/// Who the service is. Only root's supervisor can have made it another than itself; what another user's one says of that is
/// no reason to give anybody more than that user has.
fn identity(told: &Json, supervisor: Identity) -> Identity {
    let number = |value: &Json| value.as_u64().and_then(|number| u32::try_from(number).ok());
    let (Some(uid), Some(gid), 0) = (number(&told["uid"]), number(&told["gid"]), supervisor.uid) else {
        return supervisor;
    };
    let groups = told["groups"].as_array().map(|groups| groups.iter().filter_map(number).collect());
    Identity { uid, gid, groups: groups.or(supervisor.groups) }
}

/// Becomes it, which root can. Whoever else may ask is the supervisor's user already.
fn become_it(who: &Identity) -> io::Result<()> {
    if !geteuid().is_root() || is_already(who) {
        return Ok(());
    }
    Ok(become_user(who.uid, who.gid, who.groups.as_deref())?)
}

/// True if nothing has to change, for which rights might be missing.
fn is_already(who: &Identity) -> bool {
    let own = (getuid().as_raw(), geteuid().as_raw(), getgid().as_raw(), getegid().as_raw());
    let same_groups = || {
        let own: Vec<u32> = getgroups().unwrap_or_default().into_iter().map(Gid::as_raw).collect();
        who.groups.as_ref().is_none_or(|groups| *groups == own)
    };
    own == (who.uid, who.uid, who.gid, who.gid) && same_groups()
}
