//! Host name and loopback: what a process has in every container, even without a network.

use std::fs::File;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};
use rustix::system::sethostname;
use smartvm_guest_api::boot::Step;

use crate::failure::{Result, While};

/// Sets the host name, brings loopback up, and writes `/etc/hosts` if the image has none, so that `localhost` and
/// the own name are known.
pub(crate) fn set_up(hostname: Option<&str>, writable: bool) -> Result<()> {
    if let Some(name) = hostname {
        sethostname(name.as_bytes()).during(Step::Network, "cannot set the host name")?;
    }
    raise_loopback().during(Step::Network, "cannot bring up loopback")?;
    if writable {
        // A convenience: an image may have made `/etc` something odd.
        let _ = write_hosts("/etc/hosts", &hosts(hostname));
    }
    Ok(())
}

/// Writes a file that is missing or empty. A link is followed, but nothing other than a file is written to: a fifo
/// would hang us, a device would get what is not for it.
fn write_hosts(path: impl AsRef<Path>, text: &str) -> io::Result<()> {
    // Opening a fifo that nobody reads fails so, instead of waiting.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(path.as_ref(), flags, Mode::from_raw_mode(0o644))?);
    let meta = file.metadata()?;
    if meta.is_file() && meta.len() == 0 { file.write_all(text.as_bytes()) } else { Ok(()) }
}

fn hosts(hostname: Option<&str>) -> String {
    let mut text = format!("{}\tlocalhost\n::1\tlocalhost\n", Ipv4Addr::LOCALHOST);
    if let Some(name) = hostname {
        text.push_str(&format!("{}\t{name}\n", Ipv4Addr::new(127, 0, 1, 1)));
    }
    text
}

/// Sets loopback's "up" flag by the kernel's route protocol. Kernels without networking have no such thing.
fn raise_loopback() -> rustix::io::Result<()> {
    // The default protocol of netlink is the route protocol.
    let socket = match socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None) {
        Err(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::PROTONOSUPPORT) => return Ok(()),
        socket => socket?,
    };
    sendto(&socket, &link_up(LOOPBACK), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0; 256];
    let (length, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    match error_of(&answer[..length]) {
        Some(0) => Ok(()),
        Some(error) => Err(rustix::io::Errno::from_raw_os_error(-error)),
        None => Err(rustix::io::Errno::PROTO),
    }
}

/// Loopback is the first interface of every network namespace.
const LOOPBACK: i32 = 1;

/// RTM_NEWLINK for one interface, with an acknowledgement: `nlmsghdr` and `ifinfomsg`.
fn link_up(index: i32) -> Vec<u8> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST_ACK: u16 = 1 | 4;
    const IFF_UP: u32 = 1;
    let mut message = Vec::with_capacity(32);
    message.extend(32u32.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    message.extend([0; 8]); // sequence number, port
    message.extend([0; 4]); // family, padding, kind
    message.extend(index.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes()); // flags
    message.extend(IFF_UP.to_ne_bytes()); // which of them change
    message
}

/// The error number in an acknowledgement; negative, or 0 for none.
fn error_of(answer: &[u8]) -> Option<i32> {
    const NLMSG_ERROR: [u8; 2] = 2u16.to_ne_bytes();
    let kind = answer.get(4..6)?;
    let error = answer.get(16..20)?.try_into().ok()?;
    (kind == NLMSG_ERROR).then(|| i32::from_ne_bytes(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_length_that_it_says() {
        let message = link_up(1);
        assert_eq!(message.len(), 32);
        assert_eq!(message[..4], 32u32.to_ne_bytes());
    }

    #[test]
    fn an_acknowledgement_is_read_and_anything_else_is_not() {
        let mut answer = link_up(1);
        assert_eq!(error_of(&answer), None);
        answer[4..6].copy_from_slice(&2u16.to_ne_bytes());
        answer[16..20].copy_from_slice(&(-19i32).to_ne_bytes());
        assert_eq!(error_of(&answer), Some(-19));
        assert_eq!(error_of(&answer[..10]), None);
    }

    /// The kernel accepts the request: on the host, loopback is up already. Needs the right to change links.
    #[test]
    fn the_kernel_understands_the_request() {
        match raise_loopback() {
            Ok(()) | Err(rustix::io::Errno::PERM) => {}
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn hosts_name_localhost_and_the_guest() {
        assert_eq!(hosts(Some("web-1")), "127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\tweb-1\n");
    }

    #[test]
    fn hosts_are_written_where_there_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        write_hosts(&path, "ours").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"ours");
        write_hosts(&path, "others").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"ours");
    }

    #[test]
    fn a_fifo_for_hosts_hangs_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, Mode::from_raw_mode(0o600), 0).unwrap();
        assert!(write_hosts(&path, "ours").is_err());
    }
}
