//! Users and groups of the image, read from its own `/etc/passwd` and `/etc/group`: there is no other name service
//! in a guest, and none is trusted.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;
use smartvm_guest_api::boot::{Principal, Step, User};

use crate::failure::{Failure, Result, While};

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// Longest account file that is read, in bytes.
const LONGEST: u64 = 4 << 20;
/// As many groups as the kernel lets a process have.
const MOST_GROUPS: usize = 65_536;

/// Who a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Further groups.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: OsString,
}

/// Looks a user up in the image; root when none is wanted.
pub(crate) fn identity(user: Option<&User>) -> Result<Identity> {
    let file = |path| read(path).during(Step::User, format_args!("cannot read {path}"));
    resolve(user, &file(PASSWD)?, &file(GROUP)?)
}

/// The content of a file, which may be missing. An image may put anything there: a fifo must not hang us.
fn read(path: &str) -> io::Result<Vec<u8>> {
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = match File::options().read(true).custom_flags(nonblocking).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(io::Error::other("it is longer than 4 MiB"));
    }
    Ok(bytes)
}

/// As container engines do it: an id need not be in the files; a name must. Without a group it is the user's own,
/// together with all that list the user.
fn resolve(user: Option<&User>, passwd: &[u8], group: &[u8]) -> Result<Identity> {
    let root = User { user: Principal::Id(0), group: None };
    let user = user.unwrap_or(&root);
    let mut accounts = records(passwd).filter_map(Account::of);
    let account = match &user.user {
        Principal::Id(uid) => accounts.find(|account| account.uid == *uid),
        Principal::Name(name) => accounts.find(|account| account.name == name.as_bytes()),
    };
    let uid = match (&user.user, &account) {
        (Principal::Id(uid), _) => *uid,
        (Principal::Name(_), Some(account)) => account.uid,
        (Principal::Name(name), None) => return Err(unknown("user", name, PASSWD)),
    };
    let (gid, groups) = match &user.group {
        Some(Principal::Id(gid)) => (*gid, Vec::new()),
        Some(Principal::Name(name)) => {
            let found = records(group).filter_map(Group::of).find(|group| group.name == name.as_bytes());
            (found.ok_or_else(|| unknown("group", name, GROUP))?.gid, Vec::new())
        }
        None => match &account {
            None => (0, Vec::new()),
            Some(account) => {
                let of_user = records(group).filter_map(Group::of).filter(|group| group.has(account.name));
                (account.gid, of_user.map(|group| group.gid).take(MOST_GROUPS).collect())
            }
        },
    };
    let home = account.map(|account| account.home).filter(|home| home.starts_with(b"/"));
    Ok(Identity { uid, gid, groups, home: OsString::from_vec(home.unwrap_or(b"/").to_vec()) })
}

fn unknown(kind: &str, name: &str, file: &str) -> Failure {
    Failure::new(Step::User, format!("the image has no {kind} {name} in {file}"))
        .hint("name one that it has, or an id")
}

/// The lines that are not comments, as fields.
fn records(file: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    let lines = file.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with(b"#"));
    lines.map(|line| line.splitn(8, |byte| *byte == b':').collect())
}

/// `name:password:uid:gid:comment:home:shell`
struct Account<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

impl<'a> Account<'a> {
    fn of(fields: Vec<&'a [u8]>) -> Option<Self> {
        let home = fields.get(5).copied().unwrap_or_default();
        Some(Self { name: fields.first()?, uid: number(fields.get(2)?)?, gid: number(fields.get(3)?)?, home })
    }
}

/// `name:password:gid:members`
struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl<'a> Group<'a> {
    fn of(fields: Vec<&'a [u8]>) -> Option<Self> {
        let members = fields.get(3).copied().unwrap_or_default();
        Some(Self { name: fields.first()?, gid: number(fields.get(2)?)?, members })
    }

    fn has(&self, user: &[u8]) -> bool {
        self.members.split(|byte| *byte == b',').any(|member| member.trim_ascii() == user)
    }
}

/// An id: digits only, and not the one that means "none".
fn number(field: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(field).ok()?;
    let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|id| all_digits && *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &[u8] = b"# comment\nroot:x:0:0:root:/root:/bin/sh\n\nbroken\nbad:x:-1:0::/:\n\
        web:x:33:34:,,,:/var/www:/usr/sbin/nologin\nhomeless:x:40:40\nlate:x:33:1::/late:/bin/sh\n";
    const GROUP: &[u8] =
        b"root:x:0:\nweb:x:34:\nlogs:x:4:root,web\ntls:x:5: web ,x\nweb2:x:6:webb\nbad:x:y:web\n";

    fn who(user: &str) -> Result<Identity> {
        resolve(Some(&user.parse().unwrap()), PASSWD, GROUP)
    }

    fn identity(uid: u32, gid: u32, groups: &[u32], home: &str) -> Identity {
        Identity { uid, gid, groups: groups.to_vec(), home: home.into() }
    }

    #[test]
    fn a_user_has_the_own_group_and_those_that_list_it() {
        assert_eq!(who("web").unwrap(), identity(33, 34, &[4, 5], "/var/www"));
        assert_eq!(who("33").unwrap(), identity(33, 34, &[4, 5], "/var/www"));
        assert_eq!(resolve(None, PASSWD, GROUP).unwrap(), identity(0, 0, &[4], "/root"));
    }

    #[test]
    fn a_group_that_is_named_is_the_only_one() {
        assert_eq!(who("web:logs").unwrap(), identity(33, 4, &[], "/var/www"));
        assert_eq!(who("web:77").unwrap(), identity(33, 77, &[], "/var/www"));
    }

    #[test]
    fn ids_need_no_account_and_names_do() {
        assert_eq!(who("1234").unwrap(), identity(1234, 0, &[], "/"));
        assert_eq!(resolve(None, b"", b"").unwrap(), identity(0, 0, &[], "/"));
        assert_eq!(who("homeless").unwrap(), identity(40, 40, &[], "/"));
        assert_eq!(who("nobody").unwrap_err().what, "the image has no user nobody in /etc/passwd");
        assert_eq!(who("web:nogroup").unwrap_err().what, "the image has no group nogroup in /etc/group");
        assert!(who("bad").is_err() && who("broken").is_err());
    }

    proptest! {
        #[test]
        fn any_files_are_read(passwd: Vec<u8>, group: Vec<u8>, name in "[a-z]{1,3}") {
            let _ = resolve(Some(&name.parse().unwrap()), &passwd, &group);
        }

        #[test]
        fn every_sound_account_is_found(
            uids in proptest::collection::vec(1..1000u32, 1..20), gid in 0..1000u32, at: proptest::sample::Index
        ) {
            let passwd: String = uids.iter().enumerate().map(|(n, uid)| format!("u{n}:x:{uid}:{gid}::/h{n}:\n")).collect();
            let n = at.index(uids.len());
            let found = resolve(Some(&format!("u{n}").parse().unwrap()), passwd.as_bytes(), b"").unwrap();
            prop_assert_eq!(found, identity(uids[n], gid, &[], &format!("/h{n}")));
        }
    }
}
