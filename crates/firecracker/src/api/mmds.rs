//! The metadata service: `/mmds` and `/mmds/config`.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::capability::{Capability, Requires};

/// Body of `PUT /mmds/config` (before boot).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct MmdsConfig {
    /// The protocol. Default `V1`, which is deprecated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<MmdsVersion>,
    /// The ids of the interfaces that reach the service; at least one, each configured before.
    pub network_interfaces: Vec<String>,
    /// The service's address, link-local (169.254.0.0/16). Default 169.254.169.254.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4_address: Option<String>,
    /// Whether it behaves like EC2's service, answering plain text whatever is asked for. Since 1.13.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imds_compat: Option<bool>,
}

impl Requires for MmdsConfig {
    fn requires(&self) -> Vec<Capability> {
        self.imds_compat.map(|_| Capability::MMDS_IMDS_COMPAT).into_iter().collect()
    }
}

/// The protocol of the metadata service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub enum MmdsVersion {
    /// Plain requests. Deprecated.
    V1,
    /// Requests with a session token.
    V2,
}

/// Body of `PUT` and `PATCH /mmds` and answer of `GET` (any time): any JSON. Often holds secrets, so its
/// `Debug` shows nothing of it.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MmdsContents(pub Value);

impl fmt::Debug for MmdsContents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MmdsContents(withheld)")
    }
}

impl Requires for MmdsContents {}
