//! The sections `network-interfaces` and `mmds-config`.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use super::Findings;
use super::devices::check_rate_limiter;
use crate::problem::ProblemCode;
use crate::spec::MachineSpec;

/// The kernel's bound of a network device's name, without the closing NUL (`IFNAMSIZ`).
const MAX_DEV_NAME: usize = 15;

pub(super) fn check_interfaces(spec: &MachineSpec, findings: &mut Findings) {
    let interfaces = &spec.network_interfaces;
    let ids = interfaces.iter().map(|interface| interface.iface_id.as_str());
    findings.ids(ids, "network-interfaces", "iface_id", ProblemCode::DuplicateIfaceId);
    let mut first_mac = HashMap::new();
    let mut first_dev = HashMap::new();
    for (index, interface) in interfaces.iter().enumerate() {
        let path = format!("network-interfaces[{index}]");
        // Of two interfaces with one id the later replaces the earlier, which frees its MAC and TAP.
        let same_id = |first: &usize| interfaces[*first].iface_id == interface.iface_id;
        if let Some(text) = &interface.guest_mac
            && let Some(mac) = check_mac(text, &format!("{path}.guest_mac"), findings)
            && let Some(first) = first_mac.insert(mac, index).filter(|first| !same_id(first))
        {
            findings.error(
                ProblemCode::DuplicateMac,
                format!("{path}.guest_mac"),
                format!("{text} is also the address of network-interfaces[{first}]"),
                "Give each interface its own MAC address.",
            );
        }
        let dev = interface.host_dev_name.as_str();
        let dev_path = format!("{path}.host_dev_name");
        if check_host_dev_name(dev, &dev_path, findings)
            && let Some(first) = first_dev.insert(dev, index).filter(|first| !same_id(first))
        {
            findings.error(
                ProblemCode::DuplicateHostDevName,
                dev_path,
                format!("{dev:?} is also the TAP device of network-interfaces[{first}]"),
                "Give each interface its own TAP device.",
            );
        }
        if let Some(mtu) = interface.mtu.filter(|mtu| !(68..=65_535).contains(mtu)) {
            findings.error(
                ProblemCode::MtuOutOfRange,
                format!("{path}.mtu"),
                format!("an MTU of {mtu} bytes is not possible"),
                "Use 68 to 65535; 1500 is usual.",
            );
        }
        check_rate_limiter(interface.rx_rate_limiter.as_ref(), &format!("{path}.rx_rate_limiter"), findings);
        check_rate_limiter(interface.tx_rate_limiter.as_ref(), &format!("{path}.tx_rate_limiter"), findings);
    }
}

fn check_mac(text: &str, path: &str, findings: &mut Findings) -> Option<[u8; 6]> {
    let Some(mac) = parse_mac(text) else {
        findings.error(
            ProblemCode::BadMac,
            path,
            format!("{text:?} is not a MAC address"),
            "Write six pairs of hexadecimal digits with colons: 06:00:ac:1e:00:02.",
        );
        return None;
    };
    if mac[0] & 1 == 1 || mac == [0; 6] {
        findings.warning(
            ProblemCode::MacNotUnicast,
            path,
            format!("{text} is not the address of a single interface"),
            "Use an address whose first byte is even, like 06:00:ac:1e:00:02: Linux does not bring this one up.",
        );
    }
    Some(mac)
}

/// Firecracker's own reading: six groups of two, each a hexadecimal number (so `+6` is 6).
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut groups = text.split(':');
    for byte in &mut mac {
        let group = groups.next().filter(|group| group.len() == 2)?;
        *byte = u8::from_str_radix(group, 16).ok()?;
    }
    groups.next().is_none().then_some(mac)
}

/// Whether the name is one that can be compared with others.
fn check_host_dev_name(name: &str, path: &str, findings: &mut Findings) -> bool {
    if name.is_empty() || name.contains('%') {
        findings.warning(
            ProblemCode::HostDevNameNotFixed,
            path,
            format!("the kernel would complete the name {name:?} to one that nobody knows beforehand"),
            "Give the name of a TAP device, like tap0.",
        );
        return false;
    }
    let bad = if name.len() > MAX_DEV_NAME {
        Some(format!("the name {name:?} has {} bytes", name.len()))
    } else if matches!(name, "." | "..") || name.bytes().any(forbidden_in_dev_name) {
        Some(format!("{name:?} is not a possible name of a network device"))
    } else {
        None
    };
    let Some(what) = bad else { return true };
    findings.error(
        ProblemCode::BadHostDevName,
        path,
        what,
        format!("Use 1 to {MAX_DEV_NAME} bytes without spaces, slashes and colons."),
    );
    false
}

/// Separators, and what the kernel's `isspace` takes for a space in any byte of the name, 0xa0 included.
fn forbidden_in_dev_name(byte: u8) -> bool {
    matches!(byte, b'\0' | b'/' | b':' | b' ' | b'\t'..=b'\r' | 0xa0)
}

pub(super) fn check_mmds(spec: &MachineSpec, findings: &mut Findings) {
    let Some(mmds) = &spec.mmds_config else { return };
    if mmds.network_interfaces.is_empty() {
        findings.error(
            ProblemCode::MmdsWithoutInterface,
            "mmds-config.network_interfaces",
            "no interface reaches the metadata service",
            "List the iface_id of at least one network interface, or leave out the section mmds-config.",
        );
    }
    for (index, id) in mmds.network_interfaces.iter().enumerate() {
        if !spec.network_interfaces.iter().any(|interface| interface.iface_id == *id) {
            findings.error(
                ProblemCode::MmdsUnknownInterface,
                format!("mmds-config.network_interfaces[{index}]"),
                format!("there is no network interface with the iface_id {id:?}"),
                "Use the iface_id of an entry of network-interfaces.",
            );
        }
    }
    if let Some(text) = &mmds.ipv4_address {
        let usable = text.parse::<Ipv4Addr>().is_ok_and(|address| {
            // RFC 3927 reserves the first and the last 256 addresses; Firecracker keeps to it.
            matches!(address.octets(), [169, 254, 1..=254, _])
        });
        if !usable {
            findings.error(
                ProblemCode::BadMmdsAddress,
                "mmds-config.ipv4_address",
                format!("{text:?} is not a usable link-local address"),
                "Use one of 169.254.1.0 to 169.254.254.255, or leave it out for 169.254.169.254.",
            );
        }
    }
}
