//! What a machine may have beside its runtime directory.

use smartvm_images::store::UseGuard;

use crate::machine_data::MachineData;

/// Files of its own and blobs of the store that it uses. Dropping it releases both.
#[derive(Debug, Default)]
pub(crate) struct Belongings {
    data: Option<MachineData>,
    uses: Option<UseGuard>,
}

impl Belongings {
    pub(crate) fn new(data: MachineData, uses: UseGuard) -> Self {
        Self { data: Some(data), uses: Some(uses) }
    }

    /// Without files of its own: what it uses of the store.
    pub(super) fn using(uses: Option<UseGuard>) -> Self {
        Self { data: None, uses }
    }

    /// Releases everything; the VMM must have ended. Answers what could not be removed.
    pub(super) fn release(self) -> Vec<String> {
        drop(self.uses);
        self.data.map(MachineData::remove).unwrap_or_default()
    }
}
