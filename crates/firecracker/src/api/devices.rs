//! Network, vsock, entropy and the serial console.

use serde::{Deserialize, Serialize};

use super::{RateLimiter, TokenBucket};
use crate::capability::{Capability, Requires};

/// Body of `PUT /network-interfaces/{iface_id}` (before boot; from 1.16 with PCI also after).
///
/// The TAP device is opened at once and stays busy. Seen with 1.12.1 as root: a missing one is made, without
/// an address, and goes with the VMM.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct NetworkInterface {
    /// The interface's id; must equal the one in the path.
    pub iface_id: String,
    /// The TAP device on the host.
    pub host_dev_name: String,
    /// The guest's address, six pairs of hexadecimal digits with colons. Absent: none is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
    /// Limits of what the guest receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Limits of what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
    /// The largest packet in bytes that the guest is told, 68 to 65535. Since 1.16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
}

impl Requires for NetworkInterface {
    fn requires(&self) -> Vec<Capability> {
        self.mtu.map(|_| Capability::NETWORK_MTU).into_iter().collect()
    }
}

/// Body of `PATCH /network-interfaces/{iface_id}` (after boot): other limits.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct PartialNetworkInterface {
    /// The interface's id; must equal the one in the path.
    pub iface_id: String,
    /// The new limits of what the guest receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// The new limits of what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

impl Requires for PartialNetworkInterface {}

/// Body of `PUT /vsock` (before boot). One per machine; a second PUT replaces the first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// Deprecated, of no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_id: Option<String>,
    /// The guest's context id, 3 to 2³²−2. (Firecracker 1.12.1 takes any 32-bit number and fails later.)
    pub guest_cid: u32,
    /// The Unix socket that Firecracker makes on the host; for a guest's connection to port P it connects to
    /// `<uds_path>_P`.
    pub uds_path: String,
}

impl Requires for Vsock {}

/// Body of `PUT /entropy` (before boot).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct EntropyDevice {
    /// Limits of bytes and requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

impl Requires for EntropyDevice {}

/// Body of `PUT /serial` (before boot). Since 1.14.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct SerialDevice {
    /// A file or named pipe for the console's output, in place of Firecracker's standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial_out_path: Option<String>,
    /// A limit of output bytes; what exceeds it is dropped and counted. Since 1.16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<TokenBucket>,
}

impl Requires for SerialDevice {
    fn requires(&self) -> Vec<Capability> {
        let limiter = self.rate_limiter.is_some().then_some(Capability::SERIAL_RATE_LIMITER);
        [Capability::SERIAL].into_iter().chain(limiter).collect()
    }
}
