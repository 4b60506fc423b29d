//! Users and groups -> numbers, by the host's passwd(5) and group(5). Read by hand: libc's getpwnam(3) would load
//! the host's modules, and has nothing to ask in a chroot.

use kitbag_format::sort;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::{fmt, fs};

/// The user and groups of a process as the kernel knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// Real, effective and saved user.
    pub uid: u32,
    /// Real, effective and saved group.
    pub gid: u32,
    /// Supplementary groups; `None`: the supervisor's.
    pub groups: Option<Vec<u32>>,
}

/// Who a process is, where that is somebody else than the supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// In numbers.
    pub ids: Ids,
    /// HOME, LOGNAME, SHELL and USER as far as passwd(5) tells them; empty where the user stays.
    pub env: Vec<(OsString, OsString)>,
}

/// Why a process cannot be who its manifest asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum IdentityError {
    /// No such user.
    User(String),
    /// No such group.
    Group(String),
    /// A user id that passwd(5) does not have, and no group beside it.
    NoGroup(u32),
    /// This user id is not root, and so cannot become another.
    NotRoot(u32),
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(
                f,
                "there is no user `{name}` in /etc/passwd; add it (`useradd --system {name}`), or name one by number \
                 together with its `group`"
            ),
            Self::Group(name) => {
                write!(f, "there is no group `{name}` in /etc/group; add it (`groupadd --system {name}`)")
            }
            Self::NoGroup(uid) => {
                write!(f, "user {uid} is not in /etc/passwd, so its group is not known; set `group` too")
            }
            Self::NotRoot(uid) => write!(
                f,
                "another user or group is asked for, and only root may change them; this is user {uid}. Start as \
                 root, or leave `user`, `group` and `groups` out"
            ),
        }
    }
}

impl std::error::Error for IdentityError {}

impl IdentityError {
    /// True if the host lacks somebody, rather than this process a right.
    pub const fn is_missing(&self) -> bool {
        !matches!(self, Self::NotRoot(_))
    }
}

/// The host's users and groups, and who asks.
#[derive(Debug, Clone)]
pub struct Accounts {
    /// passwd(5); empty where there is none.
    pub passwd: Vec<u8>,
    /// group(5); empty where there is none.
    pub group: Vec<u8>,
    /// The supervisor's effective user and group.
    pub own: (u32, u32),
}

/// A line of passwd(5), as far as it is used.
struct User<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
    shell: &'a [u8],
}

impl Accounts {
    /// This host's, and this process.
    pub fn of_host() -> Self {
        let read = |path| fs::read(path).unwrap_or_default();
        let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        Self { passwd: read("/etc/passwd"), group: read("/etc/group"), own }
    }

    /// Who a process with this user, group and supplementary groups is, each by name or number; `None` if that
    /// is the supervisor itself. Without `group` it has the user's; without `groups` those that name the user.
    pub fn identity(
        &self,
        user: Option<&str>,
        group: Option<&str>,
        groups: Option<Vec<String>>,
    ) -> Result<Option<Identity>, IdentityError> {
        let gid = group.map(|group| self.gid(group)).transpose()?;
        let groups: Option<Vec<u32>> =
            groups.map(|groups| groups.iter().map(|group| self.gid(group)).collect()).transpose()?;
        let identity = match user {
            Some(user) => self.other(user, gid, groups)?,
            None if gid.is_none() && groups.is_none() => return Ok(None),
            None => {
                let ids = Ids { uid: self.own.0, gid: gid.unwrap_or(self.own.1), groups };
                Identity { ids, env: Vec::new() }
            }
        };
        match self.own.0 {
            0 => Ok(Some(identity)),
            _ if self.is_own(&identity.ids, user.is_some()) => Ok(None),
            uid => Err(IdentityError::NotRoot(uid)),
        }
    }

    /// True if nothing has to change: the supervisor was started as this user already. The groups that go with the user
    /// are then the login's business; groups that were asked for by name are not.
    fn is_own(&self, ids: &Ids, by_user: bool) -> bool {
        (ids.uid, ids.gid) == self.own && (by_user || ids.groups.is_none())
    }

    fn other(
        &self,
        user: &str,
        gid: Option<u32>,
        groups: Option<Vec<u32>>,
    ) -> Result<Identity, IdentityError> {
        let number = user.parse::<u32>().ok();
        let known = self.users().find(|known| match number {
            Some(uid) => known.uid == uid,
            None => known.name == user.as_bytes(),
        });
        let (Some(uid), Some(gid)) =
            (number.or(known.as_ref().map(|known| known.uid)), gid.or(known.as_ref().map(|known| known.gid)))
        else {
            return Err(number.map_or_else(|| IdentityError::User(user.to_owned()), IdentityError::NoGroup));
        };
        let groups = groups.unwrap_or_else(|| self.groups_of(known.as_ref().map(|known| known.name), gid));
        let env = known.map_or_else(Vec::new, |known| known.env());
        Ok(Identity { ids: Ids { uid, gid, groups: Some(groups) }, env })
    }

    /// A group by name or number.
    fn gid(&self, group: &str) -> Result<u32, IdentityError> {
        if let Ok(number) = group.parse() {
            return Ok(number);
        }
        let found = self.groups().find(|(name, ..)| *name == group.as_bytes());
        found.map(|(_, gid, _)| gid).ok_or_else(|| IdentityError::Group(group.to_owned()))
    }

    /// The group itself and those that list the user, as initgroups(3) has them.
    fn groups_of(&self, user: Option<&[u8]>, gid: u32) -> Vec<u32> {
        let listed = self.groups().filter(|(.., members)| {
            user.is_some_and(|user| members.split(|byte| *byte == b',').any(|member| member == user))
        });
        let mut groups: Vec<u32> = listed.map(|(_, gid, _)| gid).chain([gid]).collect();
        sort::sort(&mut groups);
        groups.dedup();
        groups
    }

    fn users(&self) -> impl Iterator<Item = User<'_>> {
        lines(&self.passwd).filter_map(|line| {
            let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
            let &[name, _, uid, gid, _, home, shell, ..] = &fields[..] else { return None };
            Some(User { name, uid: number(uid)?, gid: number(gid)?, home, shell })
        })
    }

    /// Each group's name, number and members.
    fn groups(&self) -> impl Iterator<Item = (&[u8], u32, &[u8])> {
        lines(&self.group).filter_map(|line| {
            let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
            let &[name, _, gid, members] = &fields[..] else { return None };
            Some((name, number(gid)?, members))
        })
    }
}

impl User<'_> {
    /// What login(1) sets; a shell that is not given is /bin/sh (passwd(5)).
    fn env(&self) -> Vec<(OsString, OsString)> {
        let shell = if self.shell.is_empty() { b"/bin/sh" } else { self.shell };
        [("HOME", self.home), ("LOGNAME", self.name), ("SHELL", shell), ("USER", self.name)]
            .map(|(name, value)| (name.into(), OsString::from_vec(value.to_vec())))
            .into()
    }
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

fn number(field: &[u8]) -> Option<u32> {
    str::from_utf8(field).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts(own: (u32, u32)) -> Accounts {
        Accounts {
            passwd: b"root:x:0:0:root:/root:/bin/bash\nbroken\n+nis:x::::\nwww:x:33:34:web:/var/www:\n"
                .to_vec(),
            group: b"root:x:0:\nwww:x:34:\nadm:x:4:other,www\nwwwx:x:9:wwwx\n".to_vec(),
            own,
        }
    }

    fn groups(names: &[&str]) -> Option<Vec<String>> {
        Some(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn a_user_has_its_group_and_those_that_list_it() {
        let found = accounts((0, 0)).identity(Some("www"), None, None).unwrap().unwrap();
        assert_eq!(found.ids, Ids { uid: 33, gid: 34, groups: Some(vec![4, 34]) });
        let env: Vec<String> =
            found.env.iter().map(|(name, value)| format!("{}={}", name.display(), value.display())).collect();
        assert_eq!(env, ["HOME=/var/www", "LOGNAME=www", "SHELL=/bin/sh", "USER=www"]);
        assert_eq!(accounts((0, 0)).identity(Some("33"), None, None).unwrap().unwrap(), found);
    }

    #[test]
    fn groups_that_are_asked_for_are_the_only_ones() {
        let found = accounts((0, 0)).identity(Some("www"), Some("adm"), groups(&["wwwx", "77"])).unwrap();
        assert_eq!(found.unwrap().ids, Ids { uid: 33, gid: 4, groups: Some(vec![9, 77]) });
        let found = accounts((0, 0)).identity(None, Some("adm"), None).unwrap().unwrap();
        assert_eq!(found, Identity { ids: Ids { uid: 0, gid: 4, groups: None }, env: vec![] });
        assert_eq!(accounts((0, 0)).identity(None, None, None), Ok(None));
    }

    #[test]
    fn a_number_that_passwd_does_not_know_needs_a_group() {
        let found = accounts((0, 0)).identity(Some("1234"), None, None);
        assert_eq!(found, Err(IdentityError::NoGroup(1234)));
        let found = accounts((0, 0)).identity(Some("1234"), Some("5"), None).unwrap().unwrap();
        assert_eq!(found.ids, Ids { uid: 1234, gid: 5, groups: Some(vec![5]) });
    }

    #[test]
    fn who_is_missing_is_named() {
        let found = accounts((0, 0)).identity(Some("nobody2"), None, None);
        assert_eq!(found, Err(IdentityError::User("nobody2".into())));
        let found = accounts((0, 0)).identity(Some("www"), None, groups(&["none"]));
        assert_eq!(found, Err(IdentityError::Group("none".into())));
    }

    #[test]
    fn who_is_not_root_can_only_be_itself() {
        assert_eq!(accounts((33, 34)).identity(Some("www"), None, None), Ok(None));
        assert_eq!(accounts((33, 34)).identity(Some("root"), None, None), Err(IdentityError::NotRoot(33)));
        assert_eq!(accounts((33, 34)).identity(None, Some("adm"), None), Err(IdentityError::NotRoot(33)));
        assert_eq!(accounts((33, 34)).identity(None, None, groups(&[])), Err(IdentityError::NotRoot(33)));
    }
}
