//! Custom CPU templates: `/cpu-config`, and the file that `cpu-config` of the config file names.

use serde::{Deserialize, Serialize};

use super::open::open_struct;
use crate::capability::Requires;

/// Body of `PUT /cpu-config` (before boot). Masks are written as text: `0b`, then a character per bit, `0`
/// clears, `1` sets, `x` leaves, `_` is skipped.
///
/// Firecracker for x86_64 refuses the Arm fields and the other way round.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(deny_unknown_fields)]
pub struct CpuConfig {
    /// KVM capabilities that must be there: a decimal number as text, `!` before it drops a check of
    /// Firecracker's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kvm_capabilities: Option<Vec<String>>,
    /// CPUID leaves to change (x86_64).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpuid_modifiers: Option<Vec<CpuidLeafModifier>>,
    /// Model-specific registers to change (x86_64).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub msr_modifiers: Option<Vec<MsrModifier>>,
    /// Registers to change (aarch64).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reg_modifiers: Option<Vec<ArmRegisterModifier>>,
    /// vCPU features to change (aarch64).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu_features: Option<Vec<VcpuFeatures>>,
}

impl Requires for CpuConfig {}

open_struct! {
    /// One CPUID leaf.
    #[derive(Debug, Clone, PartialEq)]
    pub struct CpuidLeafModifier {
        /// The leaf: `0x…` or `0b…`.
        leaf: String,
        /// The subleaf: `0x…` or `0b…`.
        subleaf: String,
        /// KVM's flags of this leaf.
        flags: u32,
        /// What to change in it.
        modifiers: Vec<CpuidRegisterModifier>,
    }
}

open_struct! {
    /// One register of a CPUID leaf.
    #[derive(Debug, Clone, PartialEq)]
    pub struct CpuidRegisterModifier {
        /// Which one.
        register: CpuidRegister,
        /// Up to 32 bits.
        bitmap: String,
    }
}

/// A register of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
#[serde(rename_all = "lowercase")]
pub enum CpuidRegister {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

open_struct! {
    /// One model-specific register.
    #[derive(Debug, Clone, PartialEq)]
    pub struct MsrModifier {
        /// Its address: `0x…` or `0b…`, 32 bits.
        addr: String,
        /// Up to 64 bits.
        bitmap: String,
    }
}

open_struct! {
    /// One Arm register.
    #[derive(Debug, Clone, PartialEq)]
    pub struct ArmRegisterModifier {
        /// Its address: `0x…` or `0b…`, 64 bits.
        addr: String,
        /// Up to 128 bits.
        bitmap: String,
    }
}

open_struct! {
    /// One word of the vCPU's features.
    #[derive(Debug, Clone, PartialEq)]
    pub struct VcpuFeatures {
        /// The index in `kvm_vcpu_init.features`.
        index: u32,
        /// Up to 32 bits.
        bitmap: String,
    }
}
