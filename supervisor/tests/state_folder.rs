//! The state folder and its seeds: planted once, whole, never over anything.
#![allow(missing_docs)]

mod common;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use common::{App, Temp, child, mode, noise, start};
use kitbag_format::manifest::Seed;
use kitbag_supervisor::spawn::identity::Ids;
use kitbag_supervisor::state_folder::{Users, choose, lock, plant, share};
use kitbag_supervisor::store::StoreError;
use kitbag_supervisor::store::place::Facts;
use kitbag_supervisor::sys::rights;

fn facts<'a>(uid: u32, var: &'a dyn Fn(&str) -> Option<OsString>) -> Facts<'a> {
    Facts { uid, var, passwd: vec![], bundle: None }
}

fn seed(from: &str, to: &str) -> Seed {
    Seed { from: from.into(), to: to.into() }
}

#[test]
fn an_explicit_folder_is_used_as_it_is_or_refused() {
    let temp = Temp::new();
    let uid = nix::unistd::geteuid().as_raw();
    let here = temp.join("a/b");
    let var = |name: &str| (name == "KITBAG_STATE").then(|| OsString::from(&here));
    assert_eq!(choose(&facts(uid, &var), "app").unwrap(), here);
    assert_eq!((mode(&here), mode(&temp.join("a"))), (0o700, 0o700));
    let relative = |name: &str| (name == "KITBAG_STATE").then(|| OsString::from("relative"));
    let error = choose(&facts(uid, &relative), "app").unwrap_err();
    let StoreError::NoState(tried) = &error else { panic!("{error}") };
    assert_eq!(tried.len(), 1);
    symlink(&here, temp.join("link")).unwrap();
    let link = |name: &str| (name == "KITBAG_STATE").then(|| OsString::from(temp.join("link")));
    assert!(choose(&facts(uid, &link), "app").unwrap_err().to_string().contains("symbolic link"));
}

#[test]
fn without_any_candidate_the_error_names_them_all() {
    let text = choose(&facts(54321, &|_| None), "app").unwrap_err().to_string();
    for name in ["KITBAG_STATE", "XDG_STATE_HOME", "HOME", "/etc/passwd"] {
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn a_second_process_is_told_who_runs() {
    let temp = Temp::new();
    let held = lock(&temp.0).unwrap();
    let Err(error) = lock(&temp.0) else { panic!("locked twice") };
    assert!(matches!(error, StoreError::AlreadyRunning { pid: Some(pid), .. } if pid == std::process::id()));
    assert_eq!(error.exit_code(), kitbag_format::exit::RUNNING);
    drop(held);
    lock(&temp.0).unwrap();
}

#[test]
fn seeds_are_planted_once_and_never_overwrite() {
    let temp = Temp::new();
    let store = temp.store();
    let app = App::new("app", "1")
        .dir("seed")
        .program("seed/run", b"run")
        .dir("seed/empty")
        .file("seed/data", &noise(1, 100_000))
        .file("db", b"snapshot");
    let tree = start(&store, &app.pack(&temp.join("app"))).unwrap().0;
    let state = temp.join("state");
    fs::create_dir(&state).unwrap();
    fs::write(state.join("kept"), "mine").unwrap();
    fs::write(state.join(".kitbag.part.7"), "left by a killed copy").unwrap();
    symlink("nowhere", state.join("dangling")).unwrap();
    let seeds = [seed("db", "deep/er/db"), seed("seed", "all"), seed("db", "kept"), seed("db", "dangling")];
    assert_eq!(plant(&tree.root, &state, &seeds, &Users::Own).unwrap(), ["deep/er/db", "all"]);
    assert_eq!(fs::read(state.join("deep/er/db")).unwrap(), b"snapshot");
    assert_eq!(fs::read(state.join("all/data")).unwrap(), noise(1, 100_000));
    assert_eq!(fs::read(state.join("kept")).unwrap(), b"mine");
    assert!(fs::symlink_metadata(state.join("dangling")).unwrap().is_symlink());
    assert_eq!((mode(&state.join("deep/er/db")), mode(&state.join("all/run"))), (0o600, 0o700));
    assert_eq!((mode(&state.join("all")), mode(&state.join("all/empty"))), (0o700, 0o700));
    fs::write(state.join("deep/er/db"), "live").unwrap();
    assert!(plant(&tree.root, &state, &seeds, &Users::Own).unwrap().is_empty());
    assert_eq!(fs::read(state.join("deep/er/db")).unwrap(), b"live");
    let left: Vec<String> = common::walk(&state).into_iter().filter(|name| name.contains("part")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_seed_is_not_planted_through_a_link() {
    let temp = Temp::new();
    fs::write(temp.join("db"), "x").unwrap();
    for name in ["state", "elsewhere"] {
        fs::create_dir(temp.join(name)).unwrap();
    }
    symlink(temp.join("elsewhere"), temp.join("state/deep")).unwrap();
    plant(&temp.0, &temp.join("state"), &[seed("db", "deep/db")], &Users::Own).unwrap_err();
    assert_eq!(fs::read_dir(temp.join("elsewhere")).unwrap().count(), 0);
}

#[test]
#[ignore = "a role that another test plays in a child process"]
fn child_plants() {
    let temp = PathBuf::from(std::env::var_os("KITBAG_TEST_FOLDER").unwrap());
    plant(&temp.join("tree"), &temp.join("state"), &[seed("big", "big"), seed("dir", "dir")], &Users::Own)
        .unwrap();
}

#[test]
fn a_copy_killed_at_any_moment_is_never_half_there() {
    let temp = Temp::new();
    let content = noise(1, 8_000_000);
    fs::create_dir_all(temp.join("tree/dir")).unwrap();
    fs::write(temp.join("tree/big"), &content).unwrap();
    fs::write(temp.join("tree/dir/file"), &content).unwrap();
    let state = temp.join("state");
    let mut missing = 0;
    for round in 0..20u64 {
        fs::create_dir(&state).unwrap();
        let mut child = child("child_plants", &[("KITBAG_TEST_FOLDER", Path::new(&temp.0))])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let begin = std::time::Instant::now();
        while begin.elapsed() < std::time::Duration::from_micros(1500 * round) {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for path in [state.join("big"), state.join("dir/file")] {
            match fs::read(&path) {
                Ok(found) => assert!(found == content, "round {round}: half of {}", path.display()),
                Err(_) => missing += 1,
            }
        }
        let seeds = [seed("big", "big"), seed("dir", "dir")];
        plant(&temp.join("tree"), &state, &seeds, &Users::Own).unwrap();
        assert!(fs::read(state.join("big")).unwrap() == content);
        assert!(fs::read(state.join("dir/file")).unwrap() == content);
        assert_eq!(common::walk(&state).len(), 3);
        kitbag_supervisor::store::remove(&state).unwrap();
    }
    assert!(missing > 3, "only {missing} copies were interrupted");
}

#[test]
fn roots_seeds_do_not_wait_for_a_lock_of_somebody_who_may_open_the_folder() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: another user: only root can become one");
        return;
    }
    for count in 0..=2 {
        let temp = Temp::new();
        let state = temp.join("state");
        fs::create_dir_all(state.join(".kitbag")).unwrap();
        fs::write(temp.join("db"), "a seed").unwrap();
        let ids: Vec<Ids> = [61_234, 61_235].map(|uid| user(uid, uid)).into();
        let users = Users::of(ids[..count].iter());
        fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).unwrap();
        share::share(&state, &users, &[], &|said| panic!("{said}")).unwrap();
        let his = {
            let _rights = rights::borrow(&ids[0]).unwrap();
            fs::File::open(&state).unwrap()
        };
        let lock = nix::fcntl::Flock::lock(his, nix::fcntl::FlockArg::LockExclusive).unwrap();
        let (send, done) = std::sync::mpsc::channel();
        let (tree, to) = (temp.0.clone(), state.clone());
        std::thread::spawn(move || send.send(plant(&tree, &to, &[seed("db", "db")], &users).unwrap()));
        let planted = done.recv_timeout(std::time::Duration::from_secs(20));
        assert_eq!(planted.expect("it waits for his lock"), ["db"]);
        assert_eq!(fs::read(state.join("db")).unwrap(), b"a seed");
        drop(lock);
    }
}

fn user(uid: u32, gid: u32) -> Ids {
    Ids { uid, gid, groups: Some(vec![gid]) }
}

/// A file system without access control lists, until it is dropped.
struct Plain(Temp);

impl Plain {
    fn new() -> Option<Self> {
        let temp = Temp::new();
        let nothing = None::<&str>;
        nix::mount::mount(nothing, &temp.0, Some("ramfs"), nix::mount::MsFlags::empty(), nothing).ok()?;
        Some(Self(temp))
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn without_access_control_lists_users_of_one_group_have_the_folder_by_it() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let Some(plain) = Plain::new() else { return };
    let state = plain.0.join("state");
    fs::create_dir(&state).unwrap();
    let said = std::cell::RefCell::new(String::new());
    let say = |text: &str| said.borrow_mut().push_str(text);
    let share = |all: &[Ids]| share::share(&state, &Users::of(all.iter()), &[], &say);
    share(&[user(61_234, 7), user(61_235, 7), user(0, 0)]).unwrap();
    assert_eq!((mode(&state), fs::metadata(&state).unwrap().gid()), (0o1771, 7));
    assert_eq!(*said.borrow(), "");
    share(&[user(61_234, 7), user(61_235, 8)]).unwrap();
    assert!(said.borrow().contains("they have several groups; give them one `group`"), "{}", said.borrow());
    assert_eq!(mode(&state), 0o1711, "nobody writes there");
    share(&[]).unwrap();
    assert_eq!(mode(&state), 0o1700);
}

/// A state folder, beside a tree with the seed `db`.
fn beside_a_seed() -> (Temp, PathBuf) {
    let temp = Temp::new();
    let state = temp.join("state");
    fs::create_dir_all(temp.join("tree")).unwrap();
    fs::write(temp.join("tree/db"), "x").unwrap();
    fs::create_dir(&state).unwrap();
    (temp, state)
}

#[test]
fn a_folder_that_was_shared_is_not_trusted_when_nobody_has_it_any_more() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let (temp, state) = beside_a_seed();
    let share = |all: &[Ids]| share::share(&state, &Users::of(all.iter()), &[], &|_| ()).unwrap();
    let users = || Users::beside(&state, std::iter::empty());
    share(&[]);
    assert_eq!(users(), Users::Own);
    share(&[user(61_234, 61_234)]);
    fs::create_dir(state.join("his")).unwrap();
    chown(state.join("his"), Some(61_234), Some(61_234)).unwrap();
    share(&[]);
    assert_eq!((mode(&state), users()), (0o1700, Users::Several(Vec::new())));
    let error = plant(&temp.join("tree"), &state, &[seed("db", "his/db")], &users()).unwrap_err();
    assert!(error.to_string().contains("it belongs to user 61234"), "{error}");
    assert_eq!(fs::read_dir(state.join("his")).unwrap().count(), 0);
    assert_eq!(plant(&temp.join("tree"), &state, &[seed("db", "deep/db")], &users()).unwrap(), ["deep/db"]);
    assert_eq!((mode(&state.join("deep")), mode(&state.join("deep/db"))), (0o700, 0o600));
}

#[test]
fn nothing_in_a_shared_folder_holds_up_who_plants_seeds() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let (temp, state) = beside_a_seed();
    // A supervisor of a time without users was killed while it planted.
    fs::create_dir_all(state.join(".kitbag.part.0/deep")).unwrap();
    fs::set_permissions(&temp.0, fs::Permissions::from_mode(0o711)).unwrap();
    fs::set_permissions(temp.join("tree/db"), fs::Permissions::from_mode(0o644)).unwrap();
    let his = user(61_234, 61_234);
    share::share(&state, &Users::One(his.clone()), &[], &|_| ()).unwrap();
    // As a service's user can.
    let open = fs::File::open(&state).unwrap();
    let _held = nix::fcntl::Flock::lock(open, nix::fcntl::FlockArg::LockShared).unwrap();
    for (users, name) in [(Users::One(his.clone()), "one"), (Users::Several(vec![his]), "several")] {
        let (tree, state, done) = (temp.join("tree"), state.clone(), std::sync::mpsc::channel());
        std::thread::spawn(move || {
            let planted = plant(&tree, &state, &[seed("db", name)], &users);
            done.0.send(planted.map_err(|error| error.to_string())).unwrap();
        });
        let planted = done.1.recv_timeout(std::time::Duration::from_secs(30)).expect("planted in time");
        assert_eq!(planted, Ok(vec![name.to_owned()]));
    }
    assert_eq!(
        [fs::metadata(state.join("one")), fs::metadata(state.join("several"))].map(|it| it.unwrap().uid()),
        [61_234, 0]
    );
    assert!(state.join(".kitbag.part.0/deep").exists(), "root's, and not the user's to remove");
}

#[test]
fn a_log_folder_is_refused_where_a_services_user_could_swap_it() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let temp = Temp::new();
    let above = temp.join("log");
    fs::create_dir(&above).unwrap();
    chown(&above, Some(0), Some(7)).unwrap();
    let folder = |users: Users| share::log_folder(&temp.join("state"), &above.join("shop"), &users);
    let of = |groups: &[u32]| Users::One(Ids { uid: 61_234, gid: 61_234, groups: Some(groups.to_vec()) });
    // As /var/log may be writable to the group of syslog's user.
    fs::set_permissions(&above, fs::Permissions::from_mode(0o775)).unwrap();
    assert_eq!(folder(of(&[61_234])).unwrap(), above.join("shop"));
    for (mode, users) in [(0o775, of(&[61_234, 7])), (0o777, of(&[61_234]))] {
        fs::set_permissions(&above, fs::Permissions::from_mode(mode)).unwrap();
        let error = folder(users).unwrap_err().to_string();
        assert!(error.contains("log can be written to by others and is not sticky; "), "{error}");
    }
    // A link on the way: root's may lead there, a user's not, nor one in a folder of his.
    fs::set_permissions(&above, fs::Permissions::from_mode(0o755)).unwrap();
    let (his, link) = (temp.join("his"), temp.join("his/link"));
    fs::create_dir(&his).unwrap();
    symlink(&above, &link).unwrap();
    let folder = || share::log_folder(&temp.join("state"), &link.join("new"), &of(&[61_234]));
    assert_eq!(folder().unwrap(), above.join("new"));
    fs::remove_dir(above.join("new")).unwrap();
    std::os::unix::fs::lchown(&link, Some(61_234), None).unwrap();
    let error = folder().unwrap_err().to_string();
    assert!(error.contains("link is a link of another user's; "), "{error}");
    std::os::unix::fs::lchown(&link, Some(0), None).unwrap();
    chown(&his, Some(61_234), None).unwrap();
    let error = folder().unwrap_err().to_string();
    assert!(error.contains("his belongs to another user; "), "{error}");
    assert!(!above.join("new").exists());
}

#[test]
fn another_users_rights_are_his_and_given_back() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let temp = Temp::new();
    fs::set_permissions(&temp.0, fs::Permissions::from_mode(0o777)).unwrap();
    let (secret, made) = (temp.join("secret"), temp.join("made"));
    fs::write(&secret, "root's").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o640)).unwrap();
    let status = || fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = |name: &str| status().lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    let before = [line("Uid"), line("Gid"), line("Groups")];
    let rights = rights::borrow(&user(61_234, 61_234)).unwrap();
    // Root's group, which this process has too, does not help.
    assert_eq!(fs::read(&secret).unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    fs::write(&made, "his").unwrap();
    drop(rights);
    assert_eq!(fs::metadata(&made).unwrap().uid(), 61_234);
    assert_eq!(fs::read(&secret).unwrap(), b"root's");
    assert_eq!([line("Uid"), line("Gid"), line("Groups")], before);
    assert_eq!(fs::metadata("/proc/self/status").unwrap().uid(), 0);
}
