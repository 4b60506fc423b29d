//! The registry of the host: who runs is found, who is gone disappears, and what others put there harms nobody.
#![allow(missing_docs)]

mod common;

use std::ffi::OsString;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Temp, mode};
use kitbag_format::port::Protocol;
use kitbag_supervisor::ports::holder::Holder;
use kitbag_supervisor::ports::lease::{Host, Kind, Lease, Listen, Net, Search, Want};
use kitbag_supervisor::ports::range::Round;
use kitbag_supervisor::ports::registry::{Entry, Fault, Folders, Found, Published, Registry};
use kitbag_supervisor::ports::watch::Watch;
use kitbag_supervisor::store::place::Facts;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const NOBODY: u32 = 65534;

fn own() -> u32 {
    nix::unistd::geteuid().as_raw()
}

fn is_root() -> bool {
    own() == 0
}

fn folders(own: &Path) -> Folders {
    Folders { own: vec![("the test's", own.to_owned())], root: None, shared: vec![] }
}

fn port(unit: &str, name: &str, number: u16) -> Published {
    let service = unit.split_once('.').map_or(unit, |(service, _)| service);
    Published {
        unit: unit.into(),
        service: service.into(),
        port: name.into(),
        protocol: Protocol::Tcp,
        address: Some("127.0.0.1".parse().unwrap()),
        number,
        path: String::new(),
        socket: false,
    }
}

fn entry(bundle: &str, state: &str, ports: Vec<Published>) -> Entry {
    Entry {
        bundle: bundle.into(),
        version: "1.0.0".into(),
        pid: std::process::id().try_into().unwrap(),
        uid: own(),
        state: state.into(),
        since: 1_700_000_000,
        ports,
    }
}

fn redis() -> Entry {
    entry("redis", "/srv/redis", vec![port("cache", "main", 20_001)])
}

/// A registry in a folder that is made for it.
fn opened() -> (Temp, PathBuf, Registry) {
    let temp = Temp::new();
    let folder = temp.join("run");
    let registry = Registry::open(own(), folders(&folder));
    (temp, folder, registry)
}

/// The same, with one bundle in it.
fn with_redis() -> (Temp, PathBuf, Registry) {
    let (temp, folder, mut registry) = opened();
    registry.publish(&redis()).unwrap();
    (temp, folder, registry)
}

fn found(found: Found) -> u16 {
    match found {
        Found::One(port) => port.number,
        other => panic!("{other:?}"),
    }
}

fn eventually(mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < until, "not within 20 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A supervisor in a process of its own, which has published. It goes when this is dropped.
struct Other(Child);

impl Other {
    fn publishes(role: &str, folder: &Path, bundle: &str, user: Option<u32>) -> (Self, String) {
        let mut command = Command::new("/proc/self/exe");
        command.args([role, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
        command.env("FOLDER", folder).env("BUNDLE", bundle);
        if let Some(user) = user {
            command.uid(user).gid(user).current_dir("/");
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = lines.map_while(Result::ok).find_map(|line| Some(line.split_once("says: ")?.1.to_owned()));
        (Self(child), said.expect("it has ended without a word"))
    }

    fn new(folder: &Path, bundle: &str) -> Self {
        Self::publishes("publishes", folder, bundle, None).0
    }

    fn pid(&self) -> i32 {
        self.0.id().try_into().unwrap()
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A bundle with the port `main` of `cache`, which it has leased.
#[test]
#[ignore = "a role"]
fn publishes() {
    let folder = PathBuf::from(std::env::var_os("FOLDER").expect("for a role"));
    let bundle = std::env::var("BUNDLE").unwrap();
    let host = Host::now();
    let want = Want { net: Net::Tcp, listen: Listen::Loopback, kind: Kind::Own { hold: true } };
    let seed = std::process::id().to_string();
    let search = Search { preferred: None, remembered: None, range: host.pool.range, seed: &seed };
    let lease = Lease::any(&host, &search, want, &mut Round::default()).unwrap();
    let mut registry = Registry::open(own(), folders(&folder));
    registry.publish(&entry(&bundle, "/srv/x", vec![port("cache", "main", lease.number())])).unwrap();
    println!("says: {}", lease.number());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

#[test]
fn what_is_published_is_found_changed_and_withdrawn() {
    let (_temp, folder, mut registry) = opened();
    assert_eq!(registry.folder(), Some(folder.as_path()));
    assert_eq!(registry.find("redis", "cache", "main"), Found::NoBundle);
    registry.publish(&redis()).unwrap();
    let file = folder.join(format!("redis.{}.json", std::process::id()));
    assert_eq!((mode(&folder), mode(&file)), (0o755, 0o644));
    let other = Registry::look(own(), folders(&folder));
    assert_eq!(found(other.find("redis", "cache", "main")), 20_001);
    let (seen, skipped) = other.all();
    assert_eq!((seen.len(), skipped.len()), (1, 0));
    assert_eq!((&seen[0].entry, &seen[0].file), (&redis(), &file), "as it was written");
    let mut changed = redis();
    changed.ports.push(port("cache.2", "main", 20_002));
    registry.publish(&changed).unwrap();
    assert_eq!(found(other.find("redis", "cache.2", "main")), 20_002);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    registry.withdraw();
    assert_eq!(other.find("redis", "cache", "main"), Found::NoBundle);
    registry.publish(&redis()).unwrap();
    drop(registry);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "dropped, it is withdrawn");
}

#[test]
fn unix_sockets_and_udp_are_published_too() {
    let temp = Temp::new();
    let mut registry = Registry::open(own(), folders(&temp.join("run")));
    let path = "/srv/x/.kitbag/run/rpc.main.sock";
    let unix = Published {
        protocol: Protocol::Unix,
        address: None,
        path: path.into(),
        socket: true,
        ..port("rpc", "main", 0)
    };
    let dns = Published {
        protocol: Protocol::Udp,
        address: Some("::".parse().unwrap()),
        ..port("dns", "dns", 5_353)
    };
    let all = entry("both", "/srv/x", vec![unix, dns]);
    registry.publish(&all).unwrap();
    assert_eq!(registry.all().0[0].entry, all);
}

#[test]
fn a_services_name_is_its_first_instance() {
    let it = entry("x", "/srv/x", vec![port("web.1", "http", 1), port("web.2", "http", 2)]);
    let number = |unit| it.port(unit, "http").map(|port| port.number);
    assert_eq!(
        (number("web"), number("web.1"), number("web.2"), number("web.3")),
        (Some(1), Some(1), Some(2), None)
    );
}

#[test]
fn several_of_a_name_are_told_and_what_a_bundle_does_not_have() {
    let (_temp, folder, one) = with_redis();
    assert_eq!(one.find("redis", "cache", "admin"), Found::NoPort(vec!["cache.main".into()]));
    assert_eq!(one.find("redi", "cache", "main"), Found::NoBundle);
    let other = Other::new(&folder, "redis");
    let Found::Ambiguous(mut states) = one.find("redis", "cache", "main") else { panic!("two have it") };
    states.sort();
    assert_eq!(states, ["/srv/redis", "/srv/x"]);
    other.kill();
    assert_eq!(found(one.find("redis", "cache", "main")), 20_001);
}

#[test]
fn a_killed_supervisors_file_is_stale_and_goes_away() {
    let (_temp, folder, registry) = opened();
    let other = Other::new(&folder, "redis");
    let file = folder.join(format!("redis.{}.json", other.pid()));
    assert!(found(registry.find("redis", "cache", "main")) > 0);
    other.kill();
    assert!(file.exists());
    // What its half of a file may have been called.
    fs::write(folder.join(".redis.1.json"), "{").unwrap();
    assert_eq!(registry.find("redis", "cache", "main"), Found::NoBundle);
    let (seen, skipped) = registry.all();
    assert!(seen.is_empty() && skipped.is_empty(), "{skipped:?}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

#[test]
fn who_has_a_number_is_named_with_bundle_and_service() {
    let temp = Temp::new();
    let folder = temp.join("run");
    let (other, number) = Other::publishes("publishes", &folder, "redis", None);
    let registry = Registry::look(own(), folders(&folder));
    let want = Want { net: Net::Tcp, listen: Listen::Loopback, kind: Kind::Own { hold: true } };
    let refused =
        Lease::take(&Host::now(), number.parse().unwrap(), want).unwrap_err().explained(Some(&registry));
    let process = refused.holder().and_then(Holder::process).expect("it is to be seen");
    assert_eq!(
        (process.pid, process.bundle.as_deref(), process.unit.as_deref()),
        (other.pid(), Some("redis"), Some("cache"))
    );
    let text = refused.to_string();
    let begins = format!(
        "port {number}/tcp is taken by service `cache` of the bundle `redis` (process {}, `",
        other.pid()
    );
    assert!(text.starts_with(&begins), "{text}");
}

/// What a reader makes of a file of this text, that is locked as if its supervisor lived.
fn skipped(folder: &Path, name: &str, text: &[u8], mode: u32) -> Option<Fault> {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let lock = libc::flock { l_type: libc::F_WRLCK as i16, l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_SETLK(&lock)).unwrap();
    let (seen, mut skipped) = Registry::look(own(), folders(folder)).all();
    assert_eq!(seen.len() + skipped.len(), 1, "{seen:?} {skipped:?}");
    drop(file);
    let _ = fs::remove_file(path);
    skipped.pop().map(|skipped| skipped.why)
}

#[test]
fn a_file_that_makes_no_sense_is_skipped_with_the_reason() {
    let temp = Temp::new();
    let folder = temp.join("run");
    drop(Registry::open(own(), folders(&folder)));
    let good = Entry { pid: 7, ..redis() }.to_json();
    let text = good.to_string();
    assert!(skipped(&folder, "redis.7.json", text.as_bytes(), 0o644).is_none(), "the good one is seen");
    let malformed = |name: &str, text: &[u8]| {
        let fault = skipped(&folder, name, text, 0o644);
        assert!(
            matches!(fault, Some(Fault::Malformed)),
            "{name} {}: {fault:?}",
            String::from_utf8_lossy(text)
        );
    };
    for end in 0..text.len() {
        malformed("redis.7.json", &text.as_bytes()[..end]);
    }
    malformed("redis.8.json", text.as_bytes());
    malformed("radish.7.json", text.as_bytes());
    malformed("redis.7.json", &[0xff; 100]);
    malformed("redis.7.json", "[".repeat(100_000).as_bytes());
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut value = good.clone();
        change(&mut value);
        malformed("redis.7.json", value.to_string().as_bytes());
    };
    with(&|it| it["uid"] = 54_321.into());
    with(&|it| it["pid"] = (-7).into());
    with(&|it| it["version"] = "\u{1b}[31m".into());
    with(&|it| it["state"] = "relative".into());
    with(&|it| it["state"] = "x".repeat(5_000).into());
    with(&|it| it["ports"] = serde_json::Value::Null);
    with(&|it| it["ports"][0]["number"] = 0.into());
    with(&|it| it["ports"][0]["number"] = 65_536.into());
    with(&|it| it["ports"][0]["address"] = "localhost".into());
    with(&|it| it["ports"][0]["protocol"] = "sctp".into());
    with(&|it| it["ports"][0]["port"] = "Main".into());
    with(&|it| it["ports"][0]["unit"] = "../x".into());
    with(&|it| it["ports"][0]["protocol"] = "unix".into());
    let long = vec![b' '; (1 << 20) + 1];
    assert!(matches!(skipped(&folder, "redis.7.json", &long, 0o644), Some(Fault::TooLong(1_048_577))));
    assert!(matches!(skipped(&folder, "redis.7.json", text.as_bytes(), 0o666), Some(Fault::Writable)));
}

#[test]
fn what_is_no_file_is_skipped_and_nobody_waits_for_it() {
    let (_temp, folder, registry) = opened();
    symlink("/etc/passwd", folder.join("link.1.json")).unwrap();
    fs::create_dir(folder.join("folder.1.json")).unwrap();
    nix::unistd::mkfifo(&folder.join("fifo.1.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(folder.join("socket.1.json")).unwrap();
    fs::write(folder.join("README"), "not looked at").unwrap();
    let (seen, skipped) = registry.all();
    assert!(seen.is_empty());
    assert_eq!(skipped.len(), 4, "{skipped:?}");
    assert!(skipped.iter().all(|it| matches!(it.why, Fault::NotAFile)), "{skipped:?}");
    assert!(skipped[0].to_string().ends_with(": it is no regular file"));
}

#[test]
fn a_folder_that_others_could_bend_is_not_used_and_the_next_is() {
    let temp = Temp::new();
    let (open, link, good) = (temp.join("open"), temp.join("link"), temp.join("good"));
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    symlink(&open, &link).unwrap();
    let mut own_folders = vec![("a", open.clone()), ("b", link.clone()), ("c", "relative".into())];
    if is_root() {
        let others = temp.join("others");
        fs::create_dir(&others).unwrap();
        std::os::unix::fs::chown(&others, Some(NOBODY), Some(NOBODY)).unwrap();
        own_folders.push(("d", others));
    }
    let bad = own_folders.len();
    let none = Folders { own: own_folders.clone(), root: None, shared: vec![] };
    own_folders.push(("e", good.clone()));
    let registry = Registry::open(own(), Folders { own: own_folders, root: None, shared: vec![] });
    assert_eq!((registry.folder(), registry.tried().len()), (Some(good.as_path()), bad));
    let reasons: Vec<String> = registry.tried().iter().map(ToString::to_string).collect();
    assert!(
        reasons[0].contains("others can write to it") && reasons[1].contains("symbolic link"),
        "{reasons:?}"
    );
    let mut nowhere = Registry::open(own(), none);
    assert_eq!((nowhere.folder(), nowhere.tried().len()), (None, bad));
    assert!(nowhere.publish(&redis()).is_err());
    assert_eq!(nowhere.find("redis", "cache", "main"), Found::NoBundle);
    assert!(nowhere.all().0.is_empty() && nowhere.is_published());
    nowhere.watch().unwrap();
}

#[test]
fn a_file_in_a_folder_that_others_can_write_to_is_not_believed() {
    let (temp, folder, _publisher) = with_redis();
    fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
    let mut reader = Registry::look(own(), folders(&temp.join("elsewhere")));
    assert!(reader.all().0.is_empty());
    let shared = Folders { own: vec![], root: is_root().then(|| folder.clone()), shared: vec![] };
    reader = Registry::look(own(), shared);
    assert_eq!(reader.find("redis", "cache", "main"), Found::NoBundle);
    let (seen, skipped) = reader.all();
    assert!(seen.is_empty());
    assert_eq!(skipped.len(), usize::from(is_root()), "{skipped:?}");
    assert!(skipped.iter().all(|it| it.to_string().contains("others can write to it")));
}

#[test]
fn others_are_shown_and_only_ones_own_and_roots_are_believed() {
    if !is_root() {
        return println!("not root: not tested");
    }
    let temp = Temp::new();
    fs::set_permissions(&temp.0, Permissions::from_mode(0o1777)).unwrap();
    let theirs = temp.join(&format!("kitbag-run-{NOBODY}"));
    let (_other, _) = Other::publishes("publishes", &theirs, "redis", Some(NOBODY));
    assert_eq!(fs::metadata(&theirs).unwrap().uid(), NOBODY);
    // One that says it is another's.
    symlink(&theirs, temp.join("kitbag-run-1")).unwrap();
    fs::create_dir(temp.join("kitbag-run-2")).unwrap();
    let here = Folders { shared: vec![temp.0.clone()], ..folders(&temp.join("run")) };
    let roots = Registry::open(0, here.clone());
    let (seen, skipped) = roots.all();
    assert_eq!((seen.len(), seen[0].entry.uid), (1, NOBODY), "{skipped:?}");
    let skipped: Vec<String> = skipped.iter().map(ToString::to_string).collect();
    assert!(skipped[0].ends_with("kitbag-run-1: it is a symbolic link"), "{skipped:?}");
    assert!(skipped[1].ends_with("kitbag-run-2: it belongs to user 0"), "{skipped:?}");
    assert_eq!(roots.find("redis", "cache", "main"), Found::NoBundle, "another user's is not believed");
    // The other way round: root's is.
    let mut roots = Registry::open(0, folders(&temp.join("root")));
    roots.publish(&entry("redis", "/srv/root", vec![port("cache", "main", 7)])).unwrap();
    let with_root = Folders { root: Some(temp.join("root")), ..folders(&temp.join("nothing")) };
    assert_eq!(found(Registry::look(NOBODY, with_root.clone()).find("redis", "cache", "main")), 7);
    let of_both = Folders { own: vec![("", theirs)], ..with_root };
    assert_ne!(found(Registry::look(NOBODY, of_both).find("redis", "cache", "main")), 7, "one's own first");
}

#[test]
fn a_file_of_another_user_in_ones_folder_is_skipped() {
    if !is_root() {
        return println!("not root: not tested");
    }
    let (_temp, _, registry) = with_redis();
    let file = registry.all().0.remove(0).file;
    std::os::unix::fs::chown(&file, Some(NOBODY), None).unwrap();
    let (seen, skipped) = registry.all();
    assert!(seen.is_empty() && matches!(skipped[0].why, Fault::Owner(NOBODY)), "{skipped:?}");
}

/// As nobody: a file that may not be read.
#[test]
#[ignore = "a role"]
fn looks() {
    let folder = PathBuf::from(std::env::var_os("FOLDER").expect("for a role"));
    let registry = Registry::look(own(), Folders { own: vec![], root: Some(folder), shared: vec![] });
    let (seen, skipped) = registry.all();
    let skipped: Vec<String> = skipped.iter().map(ToString::to_string).collect();
    println!("says: {} {skipped:?}", seen.len());
}

#[test]
fn a_file_that_cannot_be_read_is_skipped() {
    if !is_root() {
        return println!("not root: not tested");
    }
    let (_temp, folder, registry) = with_redis();
    let (_, said) = Other::publishes("looks", &folder, "", Some(NOBODY));
    assert_eq!(said, "1 []", "others may look");
    fs::set_permissions(&registry.all().0[0].file, Permissions::from_mode(0o600)).unwrap();
    let (_, said) = Other::publishes("looks", &folder, "", Some(NOBODY));
    assert!(said.starts_with("0 [") && said.contains("Permission denied"), "{said}");
}

fn is_ready(watch: &Watch) -> bool {
    let mut polled = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).unwrap() == 1
}

/// Waits until something is told that is worth a look.
fn changes(watch: &mut Watch) {
    eventually(|| is_ready(watch) && watch.changed());
    while watch.changed() {}
}

#[test]
fn who_waits_is_told_of_each_change_and_of_nothing_else() {
    let (_temp, folder, mut registry) = opened();
    let mut watch = registry.watch().unwrap();
    assert!(!is_ready(&watch) && !watch.changed());
    registry.publish(&redis()).unwrap();
    changes(&mut watch);
    assert!(!is_ready(&watch) && !watch.changed(), "told once");
    registry.find("redis", "cache", "main");
    registry.all();
    assert!(!is_ready(&watch), "who looks changes nothing");
    registry.withdraw();
    changes(&mut watch);
    let other = Other::new(&folder, "redis");
    changes(&mut watch);
    other.kill();
    changes(&mut watch);
}

#[test]
fn a_folder_that_is_not_there_yet_is_watched_too() {
    let temp = Temp::new();
    let (own_folder, roots) = (temp.join("own"), temp.join("a/b/run"));
    let here = Folders { root: Some(roots.clone()), ..folders(&own_folder) };
    let reader = Registry::open(own(), here);
    let mut watch = reader.watch().unwrap();
    fs::write(temp.join("something"), "else").unwrap();
    eventually(|| is_ready(&watch));
    assert!(!watch.changed(), "not on the way to a folder");
    let mut publisher = Registry::open(own(), folders(&roots));
    changes(&mut watch);
    publisher.publish(&redis()).unwrap();
    changes(&mut watch);
    fs::remove_dir_all(temp.join("a")).unwrap();
    changes(&mut watch);
    drop(publisher);
    let mut publisher = Registry::open(own(), folders(&roots));
    publisher.publish(&redis()).unwrap();
    changes(&mut watch);
}

#[test]
fn a_folder_that_is_cleared_away_is_made_again() {
    let (_temp, folder, mut registry) = with_redis();
    assert!(registry.is_published() && !registry.mend(&redis()).unwrap());
    let mut watch = registry.watch().unwrap();
    fs::remove_dir_all(&folder).unwrap();
    changes(&mut watch);
    assert!(!registry.is_published());
    assert!(registry.mend(&redis()).unwrap() && registry.is_published());
    assert_eq!(found(registry.find("redis", "cache", "main")), 20_001);
}

#[test]
fn more_than_others_would_read_is_not_published() {
    let (_temp, folder, mut registry) = opened();
    let ports =
        |count: u16| (1..=count).map(|number| port(&format!("service-{number}"), "http", number)).collect();
    registry.publish(&entry("many", "/srv/many", ports(5_000))).unwrap();
    assert_eq!(registry.all().0[0].entry.ports.len(), 5_000);
    assert!(registry.publish(&entry("many", "/srv/many", ports(20_000))).is_err());
    assert_eq!(registry.all().0[0].entry.ports.len(), 5_000, "what was there is there");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

#[test]
fn the_variable_names_the_only_folder() {
    let at = |text: &'static str| move |name: &str| (name == "KITBAG_RUN").then(|| OsString::from(text));
    let var = at("/srv/run");
    let facts = Facts { uid: 7, var: &var, passwd: vec![], bundle: None };
    let folders = Folders::of(&facts);
    assert_eq!(folders.own, [("KITBAG_RUN", PathBuf::from("/srv/run"))]);
    assert!(folders.root.is_none() && folders.shared.is_empty());
    let facts = Facts { var: &|_| None, ..facts };
    let paths = |facts: &Facts| Folders::of(facts).own.into_iter().map(|(_, path)| path).collect::<Vec<_>>();
    assert_eq!(paths(&facts), [PathBuf::from("/dev/shm/kitbag-run-7"), "/tmp/kitbag-run-7".into()]);
    assert_eq!(paths(&Facts { uid: 0, ..facts })[0], PathBuf::from("/run/kitbag"));
}

#[test]
fn many_publish_and_look_at_once() {
    let temp = Temp::new();
    let folder = temp.join("run");
    let others: Vec<Other> = (0..20).map(|number| Other::new(&folder, &format!("b{number}"))).collect();
    let mut registry = Registry::open(own(), folders(&folder));
    for _ in 0..100 {
        registry.publish(&redis()).unwrap();
        let (seen, skipped) = Registry::look(own(), folders(&folder)).all();
        assert_eq!((seen.len(), skipped.len()), (21, 0), "{skipped:?}");
    }
    drop(others);
}
