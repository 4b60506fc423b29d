//! `exec`: a command beside a service's processes, with their environment, folder and identity, in this terminal.

use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use lexopt::prelude::*;
use nix::sys::stat::{Mode, umask};
use nix::unistd::execve;
use serde_json::Value as Json;

use super::{PATIENCE, Running, good};
use crate::commands::Failure;
use crate::control::http::encoded;
use crate::open::Own;
use crate::sys::Errno;
use crate::sys::background::become_user;

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
    let target = format!("/v1/services/{}/environment", encoded(&name.string()?));
    let surroundings = good(running.ask("GET", &target, PATIENCE)?)?;
    let Err(error) = run(&surroundings, &command);
    Err(Failure::NotStarted { program: PathBuf::from(&command[0]), error })
}

/// Returns only why there is no such program.
fn run(surroundings: &Json, command: &[OsString]) -> io::Result<std::convert::Infallible> {
    let empty = serde_json::Map::new();
    let variables = surroundings["environment"].as_object().unwrap_or(&empty);
    let text = |name: &str| variables.get(name).and_then(Json::as_str);
    if let Some(mask) = surroundings["umask"].as_u64() {
        umask(Mode::from_bits_truncate(mask as libc::mode_t & 0o777));
    }
    take_identity(&surroundings["identity"])?;
    std::env::set_current_dir(surroundings["cwd"].as_str().unwrap_or("/"))?;
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

fn take_identity(identity: &Json) -> io::Result<()> {
    let number = |value: &Json| value.as_u64().and_then(|number| u32::try_from(number).ok());
    let (Some(uid), Some(gid)) = (number(&identity["uid"]), number(&identity["gid"])) else { return Ok(()) };
    if nix::unistd::geteuid().as_raw() == uid {
        return Ok(());
    }
    let groups = identity["groups"].as_array();
    let groups = groups.map(|groups| groups.iter().filter_map(number).collect::<Vec<u32>>());
    Ok(become_user(uid, gid, groups.as_deref())?)
}
