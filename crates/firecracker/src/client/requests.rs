//! Every request of Firecracker's API as a method.
//!
//! Each is refused before it is sent when the VMM is too old for it; a client that does not know the
//! version asks for it first, once. "Before boot" and "after boot" is Firecracker's to check: it answers a
//! fault.
//!
//! # Errors
//! As [`Client::raw`], and [`ApiError::Fault`] when Firecracker refuses, [`ApiError::Unsupported`] when it
//! is too old, [`ApiError::Protocol`] when its answer has another form.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::message::may_quote_mmds;
use super::{Client, Verb};
use crate::api::*;
use crate::capability::{Capability, Requires};
use crate::error::ApiError;
use crate::version::Version;

/// A request without a body or with one that asks nothing of the version.
const ANY_VERSION: &[Capability] = &[];

macro_rules! puts {
    ($($(#[$doc:meta])* $name:ident($verb:ident $path:literal, $Body:ty);)*) => {
        $($(#[$doc])*
        pub async fn $name(&self, body: &$Body) -> Result<(), ApiError> {
            self.send(Verb::$verb, $path, body).await
        })*
    };
}

macro_rules! puts_by_id {
    ($($(#[$doc:meta])* $name:ident($verb:ident $path:literal, $Body:ty, $id:ident);)*) => {
        $($(#[$doc])*
        pub async fn $name(&self, body: &$Body) -> Result<(), ApiError> {
            self.send(Verb::$verb, &format!(concat!($path, "/{}"), body.$id), body).await
        })*
    };
}

/// Requests, one per verb and path. For errors see [`ApiError`].
#[expect(clippy::missing_errors_doc, reason = "said once for all of them above")]
impl Client {
    /// `GET /`: id, state and version of the VMM.
    pub async fn describe_instance(&self) -> Result<InstanceInfo, ApiError> {
        let info: InstanceInfo = self.fetch("/", ANY_VERSION).await?;
        self.vmm.learn(info.vmm_version.clone());
        Ok(info)
    }

    /// `GET /version`: the VMM's version.
    pub async fn version(&self) -> Result<Version, ApiError> {
        let answer: FirecrackerVersion = self.fetch("/version", ANY_VERSION).await?;
        self.vmm.learn(answer.firecracker_version.clone());
        Ok(answer.firecracker_version)
    }

    /// `GET /vm/config`: the whole configuration.
    pub async fn vm_config(&self) -> Result<FullVmConfiguration, ApiError> {
        self.fetch("/vm/config", ANY_VERSION).await
    }

    /// `PUT /actions`.
    pub async fn action(&self, action_type: ActionType) -> Result<(), ApiError> {
        self.send(Verb::Put, "/actions", &InstanceActionInfo { action_type }).await
    }

    /// `PUT /actions` with `InstanceStart`: boots the guest (once).
    pub async fn instance_start(&self) -> Result<(), ApiError> {
        self.action(ActionType::InstanceStart).await
    }

    /// `PUT /actions` with `SendCtrlAltDel` (after boot, x86_64).
    pub async fn send_ctrl_alt_del(&self) -> Result<(), ApiError> {
        self.action(ActionType::SendCtrlAltDel).await
    }

    /// `PUT /actions` with `FlushMetrics` (after boot).
    pub async fn flush_metrics(&self) -> Result<(), ApiError> {
        self.action(ActionType::FlushMetrics).await
    }

    /// `PATCH /vm` with `Paused` (after boot).
    pub async fn pause(&self) -> Result<(), ApiError> {
        self.patch_vm(&Vm { state: VmState::Paused }).await
    }

    /// `PATCH /vm` with `Resumed` (after boot).
    pub async fn resume(&self) -> Result<(), ApiError> {
        self.patch_vm(&Vm { state: VmState::Resumed }).await
    }

    puts! {
        /// `PATCH /vm` (after boot).
        patch_vm(Patch "/vm", Vm);
        /// `PUT /boot-source` (before boot).
        put_boot_source(Put "/boot-source", BootSource);
        /// `PUT /machine-config` (before boot).
        put_machine_config(Put "/machine-config", MachineConfiguration);
        /// `PATCH /machine-config` (before boot).
        patch_machine_config(Patch "/machine-config", MachineConfigurationUpdate);
        /// `PUT /cpu-config` (before boot).
        put_cpu_config(Put "/cpu-config", CpuConfig);
        /// `PUT /vsock` (before boot).
        put_vsock(Put "/vsock", Vsock);
        /// `PUT /entropy` (before boot).
        put_entropy(Put "/entropy", EntropyDevice);
        /// `PUT /serial` (before boot). Since 1.14.
        put_serial(Put "/serial", SerialDevice);
        /// `PUT /logger` (before boot).
        put_logger(Put "/logger", Logger);
        /// `PUT /metrics` (before boot, once).
        put_metrics(Put "/metrics", Metrics);
        /// `PUT /balloon` (before boot).
        put_balloon(Put "/balloon", Balloon);
        /// `PATCH /balloon` (after boot).
        patch_balloon(Patch "/balloon", BalloonUpdate);
        /// `PATCH /balloon/statistics` (after boot).
        patch_balloon_statistics(Patch "/balloon/statistics", BalloonStatsUpdate);
        /// `PATCH /balloon/hinting/start` (after boot). Since 1.14.
        start_balloon_hinting(Patch "/balloon/hinting/start", BalloonStartCmd);
        /// `PUT /hotplug/memory` (before boot). Since 1.14.
        put_memory_hotplug(Put "/hotplug/memory", MemoryHotplugConfig);
        /// `PATCH /hotplug/memory` (after boot). Since 1.14.
        patch_memory_hotplug(Patch "/hotplug/memory", MemoryHotplugSizeUpdate);
        /// `PUT /mmds`: replaces the contents (any time).
        put_mmds(Put "/mmds", MmdsContents);
        /// `PATCH /mmds`: merges into the contents, which must have been put before (any time).
        patch_mmds(Patch "/mmds", MmdsContents);
        /// `PUT /mmds/config` (before boot).
        put_mmds_config(Put "/mmds/config", MmdsConfig);
        /// `PUT /snapshot/create` (paused).
        create_snapshot(Put "/snapshot/create", SnapshotCreateParams);
        /// `PUT /snapshot/load` (nothing configured but logger and metrics).
        load_snapshot(Put "/snapshot/load", SnapshotLoadParams);
    }

    puts_by_id! {
        /// `PUT /drives/{drive_id}` (before boot).
        put_drive(Put "/drives", Drive, drive_id);
        /// `PATCH /drives/{drive_id}` (after boot).
        patch_drive(Patch "/drives", PartialDrive, drive_id);
        /// `PUT /network-interfaces/{iface_id}` (before boot).
        put_network_interface(Put "/network-interfaces", NetworkInterface, iface_id);
        /// `PATCH /network-interfaces/{iface_id}` (after boot).
        patch_network_interface(Patch "/network-interfaces", PartialNetworkInterface, iface_id);
        /// `PUT /pmem/{id}` (before boot). Since 1.14.
        put_pmem(Put "/pmem", Pmem, id);
        /// `PATCH /pmem/{id}` (after boot). Since 1.16.
        patch_pmem(Patch "/pmem", PartialPmem, id);
    }

    /// `DELETE /drives/{drive_id}` (after boot, PCI, preview; not in Firecracker's schema). Since 1.16.
    pub async fn delete_drive(&self, drive_id: &str) -> Result<(), ApiError> {
        self.bare(Verb::Delete, &format!("/drives/{drive_id}"), Capability::DEVICE_HOTPLUG).await
    }

    /// `DELETE /network-interfaces/{iface_id}` (after boot, PCI, preview; not in the schema). Since 1.16.
    pub async fn delete_network_interface(&self, iface_id: &str) -> Result<(), ApiError> {
        self.bare(Verb::Delete, &format!("/network-interfaces/{iface_id}"), Capability::DEVICE_HOTPLUG).await
    }

    /// `DELETE /pmem/{id}` (after boot, PCI, preview; not in the schema). Since 1.16.
    pub async fn delete_pmem(&self, id: &str) -> Result<(), ApiError> {
        self.bare(Verb::Delete, &format!("/pmem/{id}"), Capability::DEVICE_HOTPLUG).await
    }

    /// `PATCH /balloon/hinting/stop` (after boot). Since 1.14.
    pub async fn stop_balloon_hinting(&self) -> Result<(), ApiError> {
        self.bare(Verb::Patch, "/balloon/hinting/stop", Capability::BALLOON_HINTING).await
    }

    /// `GET /machine-config`.
    pub async fn machine_config(&self) -> Result<MachineConfiguration, ApiError> {
        self.fetch("/machine-config", ANY_VERSION).await
    }

    /// `GET /balloon`.
    pub async fn balloon(&self) -> Result<Balloon, ApiError> {
        self.fetch("/balloon", ANY_VERSION).await
    }

    /// `GET /balloon/statistics` (after boot, when enabled before).
    pub async fn balloon_statistics(&self) -> Result<BalloonStats, ApiError> {
        self.fetch("/balloon/statistics", ANY_VERSION).await
    }

    /// `GET /balloon/hinting/status` (after boot). Since 1.14.
    pub async fn balloon_hinting_status(&self) -> Result<BalloonHintingStatus, ApiError> {
        self.fetch("/balloon/hinting/status", &[Capability::BALLOON_HINTING]).await
    }

    /// `GET /hotplug/memory` (after boot). Since 1.14.
    pub async fn memory_hotplug(&self) -> Result<MemoryHotplugStatus, ApiError> {
        self.fetch("/hotplug/memory", &[Capability::MEMORY_HOTPLUG]).await
    }

    /// `GET /mmds`: the contents, `{}` when none were put.
    pub async fn mmds(&self) -> Result<MmdsContents, ApiError> {
        self.fetch("/mmds", ANY_VERSION).await
    }

    /// Refuses what the VMM's version cannot do.
    async fn ensure(&self, required: &[Capability]) -> Result<(), ApiError> {
        if required.is_empty() {
            return Ok(());
        }
        let version = match self.known_version() {
            Some(version) => version,
            // `version()` itself requires nothing: this goes one level deep.
            None => Box::pin(self.version()).await?,
        };
        required.iter().try_for_each(|capability| capability.check(&version))
    }

    /// A request without a body whose answer is JSON.
    async fn fetch<T: DeserializeOwned>(&self, path: &str, required: &[Capability]) -> Result<T, ApiError> {
        self.ensure(required).await?;
        let verb = Verb::Get;
        let got = self.raw(verb, path, None).await?.success(verb, path)?;
        answer(&got.body).map_err(|error| {
            // The parser's text may quote the answer, so an MMDS answer gets none.
            let problem = match may_quote_mmds(verb, path) {
                true => "its JSON has another form".to_owned(),
                false => error.to_string(),
            };
            ApiError::Protocol { verb, path: path.to_owned(), problem }
        })
    }

    /// A request with a JSON body whose answer says nothing but that it worked.
    async fn send<T: Serialize + Requires>(&self, verb: Verb, path: &str, body: &T) -> Result<(), ApiError> {
        self.ensure(&body.requires()).await?;
        let json = serde_json::to_vec(body).map_err(|error| ApiError::BadRequest {
            verb,
            path: path.to_owned(),
            problem: error.to_string(),
        })?;
        self.raw(verb, path, Some(json.into())).await?.success(verb, path).map(drop)
    }

    /// A request without a body whose answer says nothing but that it worked.
    async fn bare(&self, verb: Verb, path: &str, required: Capability) -> Result<(), ApiError> {
        self.ensure(&[required]).await?;
        self.raw(verb, path, None).await?.success(verb, path).map(drop)
    }
}
