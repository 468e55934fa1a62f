//! Firecracker's metrics lines: one JSON object per line, every 60 s and on `FlushMetrics`.
//!
//! Counters count since the line before (seen with 1.12.1: a second flush at once writes zeros), `latencies_us`
//! and the `min_us` and `max_us` of aggregates are the latest values. [`MetricsLine`] has what a manager needs
//! as fields; [`MetricsLine::get`] reaches all else, also what is newer than this smartvm.

use serde::Deserialize;
use serde_json::{Map, Value};

/// The longest line that is read, in bytes. Firecracker 1.12.1 writes 4 KiB, and 1 KiB more per drive and
/// network interface.
pub const LINE_LIMIT: usize = 1 << 20;

/// Why a line is not metrics.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// It is longer than [`LINE_LIMIT`].
    #[error("the metrics line is {0} bytes long, more than {LINE_LIMIT}")]
    TooLong(usize),
    /// It is not one JSON object of that form; often a line that is still being written.
    #[error("the metrics line is not one of Firecracker's")]
    Form(#[source] serde_json::Error),
}

impl smartvm_core::explain::Explain for MetricsError {
    fn code(&self) -> smartvm_core::explain::Code {
        smartvm_core::explain::Code::ApiProtocol
    }
}

/// One line of metrics.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricsLine {
    /// When it was written, in milliseconds since 1970 UTC.
    pub utc_timestamp_ms: u64,
    /// The instance's id, with `emit_id` (1.17).
    pub id: Option<String>,
    /// What the VMM does.
    pub totals: Totals,
    all: Map<String, Value>,
}

/// Counters of a line. 0 where this Firecracker has no such counter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// How long the process took to start.
    pub api_server: ApiServer,
    /// All drives together.
    pub block: Block,
    /// All network interfaces together.
    pub net: Net,
    /// The vsock device.
    pub vsock: Vsock,
    /// How long the latest of each took.
    pub latencies_us: Latencies,
    /// The logger and these metrics themselves.
    pub logger: Logger,
    /// The seccomp filter.
    pub seccomp: Seccomp,
    /// The vCPUs.
    pub vcpu: Vcpu,
    /// The VMM itself.
    pub vmm: Vmm,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $Name:ident { $($(#[$field_doc:meta])* $field:ident,)* })*) => {
        $($(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
        #[serde(default)]
        pub struct $Name {
            $($(#[$field_doc])* pub $field: u64,)*
        })*
    };
}

counters! {
    /// `api_server`.
    ApiServer {
        /// Microseconds from the start given by `--start-time-us` to the API server's; 0 without it.
        process_startup_time_us,
        /// The same in processor time.
        process_startup_time_cpu_us,
    }
    /// `block`.
    Block {
        /// Bytes the guest read.
        read_bytes,
        /// Bytes the guest wrote.
        write_bytes,
        /// Reads.
        read_count,
        /// Writes.
        write_count,
        /// Flushes.
        flush_count,
        /// Requests that failed.
        execute_fails,
        /// Requests that waited for the rate limiter.
        rate_limiter_throttled_events,
    }
    /// `net`.
    Net {
        /// Bytes the guest received.
        rx_bytes_count,
        /// Bytes the guest sent.
        tx_bytes_count,
        /// Packets the guest received.
        rx_packets_count,
        /// Packets the guest sent.
        tx_packets_count,
        /// Packets that could not be received.
        rx_fails,
        /// Packets that could not be sent.
        tx_fails,
        /// Packets sent under another address than the guest's own.
        tx_spoofed_mac_count,
        /// Times that receiving waited for the rate limiter.
        rx_rate_limiter_throttled,
        /// Times that sending waited for the rate limiter.
        tx_rate_limiter_throttled,
    }
    /// `vsock`.
    Vsock {
        /// Bytes to the guest.
        rx_bytes_count,
        /// Bytes from the guest.
        tx_bytes_count,
        /// Connections made.
        conns_added,
        /// Connections broken off.
        conns_killed,
        /// Connections ended.
        conns_removed,
    }
    /// `latencies_us`, in microseconds; 0 when there was none.
    Latencies {
        /// The latest full snapshot, as the API sees it.
        full_create_snapshot,
        /// The latest diff snapshot.
        diff_create_snapshot,
        /// Loading the snapshot.
        load_snapshot,
        /// The latest pause.
        pause_vm,
        /// The latest resume.
        resume_vm,
    }
    /// `logger`.
    Logger {
        /// Metrics lines that could not be written.
        missed_metrics_count,
        /// Log lines that could not be written.
        missed_log_count,
    }
    /// `seccomp`.
    Seccomp {
        /// System calls that the filter stopped.
        num_faults,
    }
    /// `vcpu`.
    Vcpu {
        /// Exits for port input.
        exit_io_in,
        /// Exits for port output.
        exit_io_out,
        /// Exits for reading device memory.
        exit_mmio_read,
        /// Exits for writing device memory.
        exit_mmio_write,
        /// Exits that failed.
        failures,
    }
    /// `vmm`.
    Vmm {
        /// Device events.
        device_events,
        /// Panics.
        panic_count,
    }
}

impl MetricsLine {
    /// Reads one line.
    ///
    /// # Errors
    /// It is too long, or is not one JSON object of this form.
    pub fn parse(line: &str) -> Result<Self, MetricsError> {
        #[derive(Deserialize)]
        struct Head {
            utc_timestamp_ms: u64,
            id: Option<String>,
            #[serde(flatten)]
            totals: Totals,
        }
        if line.len() > LINE_LIMIT {
            return Err(MetricsError::TooLong(line.len()));
        }
        let all: Map<String, Value> = serde_json::from_str(line).map_err(MetricsError::Form)?;
        let head = Head::deserialize(&Value::Object(all.clone())).map_err(MetricsError::Form)?;
        Ok(Self { utc_timestamp_ms: head.utc_timestamp_ms, id: head.id, totals: head.totals, all })
    }

    /// A number by its path: `vcpu.exit_io_out_agg.max_us`, `block_rootfs.read_bytes`, `net_eth0.rx_fails`.
    pub fn get(&self, path: &str) -> Option<u64> {
        let (first, rest) = path.split_once('.')?;
        rest.split('.').try_fold(self.all.get(first)?, |value, key| value.get(key))?.as_u64()
    }

    /// The line as it came.
    pub fn all(&self) -> &Map<String, Value> {
        &self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Shortened from a line of Firecracker 1.12.1.
    const LINE: &str = r#"{"utc_timestamp_ms":1795502750996,"api_server":{"process_startup_time_us":7,
        "sync_response_fails":0},"block":{"read_bytes":512,"read_agg":{"min_us":1,"max_us":5,"sum_us":6}},
        "block_rootfs":{"read_bytes":512},"latencies_us":{"pause_vm":33},"vcpu":{"exit_io_out":2,
        "exit_io_out_agg":{"min_us":2,"max_us":5,"sum_us":7}},"vmm":{"panic_count":0}}"#;

    #[test]
    fn what_a_manager_needs_are_fields_and_all_else_has_a_path() {
        let line = MetricsLine::parse(LINE).unwrap();
        assert_eq!(line.utc_timestamp_ms, 1_795_502_750_996);
        assert_eq!(line.totals.api_server.process_startup_time_us, 7);
        assert_eq!(line.totals.block.read_bytes, 512);
        assert_eq!(line.totals.latencies_us.pause_vm, 33);
        assert_eq!((line.totals.vcpu.exit_io_out, line.totals.net.rx_fails), (2, 0));
        assert_eq!(line.get("vcpu.exit_io_out_agg.max_us"), Some(5));
        assert_eq!(line.get("block_rootfs.read_bytes"), Some(512));
        for path in ["", "vcpu", "vcpu.none", "vcpu.exit_io_out.x", "none.x"] {
            assert_eq!(line.get(path), None, "{path}");
        }
    }

    #[test]
    fn a_newer_line_is_read() {
        let line = MetricsLine::parse(
            r#"{"utc_timestamp_ms":1,"id":"vm-1","properties":{"a":"b"},"new":{"x":3},"vmm":{"y":[]}}"#,
        )
        .unwrap();
        assert_eq!(line.id.as_deref(), Some("vm-1"));
        assert_eq!(line.get("new.x"), Some(3));
        assert_eq!(line.all()["properties"]["a"], "b");
    }

    #[test]
    fn an_unfinished_or_endless_line_is_an_error() {
        for line in ["", "{", "[]", "{}", r#"{"utc_timestamp_ms":1}{"#, r#"{"utc_timestamp_ms":-1}"#] {
            assert!(matches!(MetricsLine::parse(line), Err(MetricsError::Form(_))), "{line}");
        }
        let long = " ".repeat(LINE_LIMIT + 1);
        assert!(matches!(MetricsLine::parse(&long), Err(MetricsError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn no_line_panics(line in "\\PC{0,60}", cut in 0..LINE.len()) {
            let _ = MetricsLine::parse(&line);
            let _ = MetricsLine::parse(&LINE[..cut]);
        }
    }
}
