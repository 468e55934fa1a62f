//! A config file as the spec that [`smartvm_core`] checks.
//!
//! The fields keep their paths (`drives[0].path_on_host`), so a problem that the core finds in the spec names
//! the field of the user's file. A CPU template written into the file has no counterpart there and is left out.

use smartvm_core::spec;

use crate::api;
use crate::config_file::{CpuTemplateSource, VmConfig};

impl VmConfig {
    /// The machine that this config describes, for checks and plans.
    pub fn to_spec(&self) -> spec::MachineSpec {
        spec::MachineSpec {
            boot_source: spec::BootSource {
                kernel_image_path: self.boot_source.kernel_image_path.clone().into(),
                initrd_path: self.boot_source.initrd_path.clone().map(Into::into),
                boot_args: self.boot_source.boot_args.clone(),
            },
            machine_config: self.machine_config.as_ref().map(machine_config).unwrap_or_default(),
            cpu_config: match &self.cpu_config {
                Some(CpuTemplateSource::Path(path)) => Some(path.into()),
                _ => None,
            },
            drives: self.drives.iter().map(drive).collect(),
            pmem: self.pmem.iter().flatten().map(pmem).collect(),
            network_interfaces: self.network_interfaces.iter().map(network_interface).collect(),
            vsock: self.vsock.as_ref().map(|vsock| spec::Vsock {
                guest_cid: vsock.guest_cid.into(),
                uds_path: vsock.uds_path.clone().into(),
            }),
            balloon: self.balloon.as_ref().map(|balloon| spec::Balloon {
                amount_mib: balloon.amount_mib.into(),
                deflate_on_oom: balloon.deflate_on_oom,
                stats_polling_interval_s: balloon.stats_polling_interval_s.unwrap_or(0).into(),
            }),
            memory_hotplug: self.memory_hotplug.as_ref().map(|hotplug| spec::MemoryHotplug {
                total_size_mib: hotplug.total_size_mib,
                slot_size_mib: hotplug.slot_size_mib,
                block_size_mib: hotplug.block_size_mib,
            }),
            entropy: self
                .entropy
                .as_ref()
                .map(|entropy| spec::Entropy { rate_limiter: entropy.rate_limiter.as_ref().map(limiter) }),
            serial: self.serial.as_ref().map(|serial| spec::Serial {
                serial_out_path: serial.serial_out_path.clone().map(Into::into),
                rate_limiter: serial.rate_limiter.as_ref().map(bucket),
            }),
            mmds_config: self.mmds_config.as_ref().map(|mmds| spec::MmdsConfig {
                network_interfaces: mmds.network_interfaces.clone(),
                ipv4_address: mmds.ipv4_address.clone(),
            }),
            logger: self
                .logger
                .as_ref()
                .map(|logger| spec::Logger { log_path: logger.log_path.clone().map(Into::into) }),
            metrics: self
                .metrics
                .as_ref()
                .map(|metrics| spec::Metrics { metrics_path: metrics.metrics_path.clone().into() }),
        }
    }
}

fn machine_config(config: &api::MachineConfiguration) -> spec::MachineConfig {
    spec::MachineConfig {
        vcpu_count: config.vcpu_count.into(),
        mem_size_mib: config.mem_size_mib,
        smt: config.smt.unwrap_or(false),
        track_dirty_pages: config.track_dirty_pages.unwrap_or(false),
        cpu_template: config.cpu_template.map(|template| format!("{template:?}")),
        huge_pages: match config.huge_pages {
            None | Some(api::HugePages::None) => spec::HugePages::None,
            Some(api::HugePages::Hugetlbfs2M) => spec::HugePages::Hugetlbfs2M,
            Some(api::HugePages::Transparent) => spec::HugePages::Transparent,
        },
    }
}

fn drive(drive: &api::Drive) -> spec::Drive {
    spec::Drive {
        drive_id: drive.drive_id.clone(),
        is_root_device: drive.is_root_device,
        partuuid: drive.partuuid.clone(),
        cache_type: drive.cache_type.map(|cache_type| match cache_type {
            api::CacheType::Unsafe => spec::CacheType::Unsafe,
            api::CacheType::Writeback => spec::CacheType::Writeback,
        }),
        is_read_only: drive.is_read_only,
        path_on_host: drive.path_on_host.clone().map(Into::into),
        socket: drive.socket.clone().map(Into::into),
        io_engine: drive.io_engine.map(|engine| match engine {
            api::IoEngine::Sync => spec::IoEngine::Sync,
            api::IoEngine::Async => spec::IoEngine::Async,
        }),
        rate_limiter: drive.rate_limiter.as_ref().map(limiter),
    }
}

fn pmem(pmem: &api::Pmem) -> spec::Pmem {
    spec::Pmem {
        id: pmem.id.clone(),
        path_on_host: pmem.path_on_host.clone().into(),
        root_device: pmem.root_device.unwrap_or(false),
        read_only: pmem.read_only.unwrap_or(false),
        rate_limiter: pmem.rate_limiter.as_ref().map(limiter),
    }
}

fn network_interface(interface: &api::NetworkInterface) -> spec::NetworkInterface {
    spec::NetworkInterface {
        iface_id: interface.iface_id.clone(),
        host_dev_name: interface.host_dev_name.clone(),
        guest_mac: interface.guest_mac.clone(),
        mtu: interface.mtu.map(Into::into),
        rx_rate_limiter: interface.rx_rate_limiter.as_ref().map(limiter),
        tx_rate_limiter: interface.tx_rate_limiter.as_ref().map(limiter),
    }
}

fn limiter(limiter: &api::RateLimiter) -> spec::RateLimiter {
    spec::RateLimiter {
        bandwidth: limiter.bandwidth.as_ref().map(bucket),
        ops: limiter.ops.as_ref().map(bucket),
    }
}

fn bucket(bucket: &api::TokenBucket) -> spec::TokenBucket {
    spec::TokenBucket {
        size: bucket.size,
        one_time_burst: bucket.one_time_burst,
        refill_time: bucket.refill_time,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// The spec reads the same JSON by itself: both ways must agree.
        #[test]
        fn the_spec_is_what_the_files_text_says(mut config: VmConfig) {
            config.cpu_config = config.cpu_config.filter(|source| matches!(source, CpuTemplateSource::Path(_)));
            let read: spec::MachineSpec = serde_json::from_str(&config.to_json()).unwrap();
            prop_assert_eq!(config.to_spec(), read);
        }
    }
}
