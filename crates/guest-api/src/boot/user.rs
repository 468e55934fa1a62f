//! As whom the image's process runs.

use std::fmt;
use std::str::FromStr;

use super::orders::Problem;

/// Longest name of a user or group, in bytes.
const MAX_NAME: usize = 256;

/// As whom a process runs: `user` or `user:group`, each an id or a name of the image's `/etc/passwd` and
/// `/etc/group`, as OCI images have it. Without a group it is the user's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub user: Principal,
    /// The group, when it is not the user's own.
    pub group: Option<Principal>,
}

/// An id, or a name to be looked up. A name of digits only is an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// A uid or gid.
    Id(u32),
    /// A name.
    Name(String),
}

impl User {
    /// Whether its text would be read as it again.
    pub(super) fn is_sound(&self) -> bool {
        self.to_string().parse().as_ref() == Ok(self)
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.group {
            None => write!(f, "{}", self.user),
            Some(group) => write!(f, "{}:{group}", self.user),
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl FromStr for User {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        Ok(match text.split_once(':') {
            None => Self { user: text.parse()?, group: None },
            Some((user, group)) => Self { user: user.parse()?, group: Some(group.parse()?) },
        })
    }
}

impl FromStr for Principal {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            let id = text.parse().ok().filter(|id| *id != u32::MAX);
            return id.map(Self::Id).ok_or(Problem("is no id from 0 to 4294967294"));
        }
        let is_name = !text.is_empty()
            && text.len() <= MAX_NAME
            && !text.chars().any(|char| char == ':' || char.is_control());
        if is_name { Ok(Self::Name(text.to_owned())) } else { Err(Problem("is no user or group")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_are_told_apart() {
        let name = |name: &str| Principal::Name(name.to_owned());
        let user = |user, group| Ok(User { user, group });
        assert_eq!("0".parse::<User>(), user(Principal::Id(0), None));
        assert_eq!("7:8".parse::<User>(), user(Principal::Id(7), Some(Principal::Id(8))));
        assert_eq!("www-data".parse::<User>(), user(name("www-data"), None));
        assert_eq!("7z:staff".parse::<User>(), user(name("7z"), Some(name("staff"))));
    }

    #[test]
    fn what_no_system_could_have_is_refused() {
        for bad in ["", ":", "a:", ":a", "a:b:c", "4294967295", "99999999999", "a\nb", &"a".repeat(257)] {
            assert!(bad.parse::<User>().is_err(), "{bad:?}");
        }
    }
}
