//! Where each test program runs: on this machine's KVM or in the emulated KVM host.

use super::build::{Needs, Suite};
use crate::kvm::Kvm;

/// Where a test program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// On this machine.
    Here,
    /// In the emulated KVM host.
    Lab,
}

/// What this machine can run by itself.
pub(crate) struct Places {
    kvm: Kvm,
}

impl Places {
    /// Decides by what the trial found.
    pub(crate) fn find(kvm: Kvm) -> Self {
        Self { kvm }
    }

    /// Says which kinds of tests run where, and why.
    pub(crate) fn explain(&self) {
        match &self.kvm {
            Kvm::Unusable(why) => {
                println!("test: this machine's KVM runs no guest ({why}): all guests run in the lab")
            }
            Kvm::BareMetal(why) => println!(
                "test: this machine's KVM runs tiny guests but no Linux ({why}): tests that boot Linux run in the lab"
            ),
            Kvm::Full => println!("test: this machine's KVM runs Linux guests: all tests run here"),
        }
    }

    /// Where this one runs.
    pub(crate) fn of(&self, suite: &Suite) -> Place {
        match (suite.needs, &self.kvm) {
            (Needs::Nothing, _) | (_, Kvm::Full) | (Needs::BareMetalGuests, Kvm::BareMetal(_)) => Place::Here,
            (Needs::LinuxGuests, Kvm::BareMetal(_)) | (_, Kvm::Unusable(_)) => Place::Lab,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_runs_here_when_this_machine_can_and_in_the_lab_when_not() {
        let place = |needs, kvm: &Kvm| {
            let suite = Suite { needs, ..Suite::doctests() };
            Places::find(kvm.clone()).of(&suite)
        };
        let (unusable, bare_metal) = (Kvm::Unusable(String::new()), Kvm::BareMetal(String::new()));
        for (needs, kvm, expected) in [
            (Needs::Nothing, &unusable, Place::Here),
            (Needs::BareMetalGuests, &unusable, Place::Lab),
            (Needs::LinuxGuests, &unusable, Place::Lab),
            (Needs::BareMetalGuests, &bare_metal, Place::Here),
            (Needs::LinuxGuests, &bare_metal, Place::Lab),
            (Needs::LinuxGuests, &Kvm::Full, Place::Here),
        ] {
            assert_eq!(place(needs, kvm), expected, "{needs:?} with {kvm:?}");
        }
    }
}
