//! What Firecracker takes as a body, our types take too; what it refuses comes back as its whole reason.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use smartvm_firecracker::api::*;
use smartvm_firecracker::client::Verb;

use crate::support::{Firecracker, tap};

/// Whether a type reads a body.
type Reads = fn(&str) -> Result<(), serde_json::Error>;

fn reads<T: DeserializeOwned>(body: &str) -> Result<(), serde_json::Error> {
    serde_json::from_str::<T>(body).map(drop)
}

/// Sends every body to one fresh Firecracker. `true`: it takes the body, and so must the type. `false`: it
/// refuses the body for its form, and so does the type, for the same reason.
#[track_caller]
fn check(verb: Verb, path: &str, reads: Reads, bodies: &[(&str, bool)]) {
    let vmm = Firecracker::start(&[]);
    for name in ["disk", "log", "metrics"] {
        vmm.file(name, &[0; 4096]);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = vmm.client();
    for (body, taken) in bodies {
        let body = &body.replace("\"TAP\"", &format!("{:?}", tap("body")));
        let sent = Bytes::from(body.clone());
        let answer = runtime.block_on(client.raw(verb, path, Some(sent))).unwrap().success(verb, path);
        match (answer, taken) {
            (Ok(_), true) => {
                reads(body).unwrap_or_else(|error| panic!("Firecracker takes {body}, we do not: {error}"));
            }
            (Err(fault), false) => {
                let ours = reads(body).expect_err(body).to_string();
                let theirs = fault.fault_message().unwrap().as_str().to_owned();
                let begin = "An error occurred when deserializing the json body of a request: ";
                assert!(theirs.starts_with(begin), "{body}: {theirs}");
                // The same kind of mistake; the lists of known names differ by version.
                let kind = ours.split([',', '`']).next().unwrap();
                assert!(theirs[begin.len()..].starts_with(kind), "{body}\nours:   {ours}\ntheirs: {theirs}");
            }
            (answer, _) => {
                panic!("{verb} {path} {body}: taken {}, expected {taken}: {answer:?}", answer.is_ok())
            }
        }
    }
}

#[test]
fn machine_config() {
    check(
        Verb::Put,
        "/machine-config",
        reads::<MachineConfiguration>,
        &[
            (r#"{"vcpu_count":1,"mem_size_mib":128}"#, true),
            ("  {\"mem_size_mib\" :128 ,\n\t\"vcpu_count\":1}\r\n ", true),
            (
                r#"{"vcpu_count":32,"mem_size_mib":1024,"smt":true,"cpu_template":null,"track_dirty_pages":true}"#,
                true,
            ),
            (r#"{"vcpu_count":1,"mem_size_mib":128,"cpu_template":"None","huge_pages":"2M"}"#, true),
            (r#"{"vcpu_count":1,"mem_size_mib":128,"huge_pages":{"None":null}}"#, true),
            ("[1,128]", true),
            (r#"[1,128,false,null,false,"None"]"#, true),
            (r#"{"vcpu_count":1}"#, false),
            (r#"{"vcpu_count":1.0,"mem_size_mib":128}"#, false),
            (r#"{"vcpu_count":-0,"mem_size_mib":128}"#, false),
            (r#"{"vcpu_count":"1","mem_size_mib":128}"#, false),
            (r#"{"vcpu_count":256,"mem_size_mib":128}"#, false),
            (r#"{"vcpu_count":1,"vcpu_count":1,"mem_size_mib":128}"#, false),
            (r#"{"vcpu_count":1,"mem_size_mib":128,"x":1}"#, false),
            (r#"{"vcpu_count":1,"mem_size_mib":128,"cpu_template":"t2"}"#, false),
            (r#"{"vcpu_count":1,"mem_size_mib":128} x"#, false),
            (r#"{"vcpu_count":1,"#, false),
            ("null", false),
        ],
    );
    check(
        Verb::Patch,
        "/machine-config",
        reads::<MachineConfigurationUpdate>,
        &[
            (r#"{"vcpu_count":2}"#, true),
            (r#"{"smt":false,"track_dirty_pages":null,"mem_size_mib":null}"#, true),
            (r#"{"x":1}"#, false),
        ],
    );
}

#[test]
fn boot_source() {
    check(
        Verb::Put,
        "/boot-source",
        reads::<BootSource>,
        &[
            (r#"{"kernel_image_path":"disk"}"#, true),
            (r#"{"kernel_image_path":"disk","boot_args":null,"initrd_path":null}"#, true),
            (r#"{"initrd_path":"disk","boot_args":"a=\"b\" \u00e9","kernel_image_path":"./disk"}"#, true),
            (r#"["disk",null,"x"]"#, true),
            ("{}", false),
            (r#"{"kernel_image_path":"disk","x":1}"#, false),
            (r#"{"kernel_image_path":["disk"]}"#, false),
        ],
    );
}

#[test]
fn drives() {
    check(
        Verb::Put,
        "/drives/a",
        reads::<Drive>,
        &[
            (r#"{"drive_id":"a","is_root_device":false,"path_on_host":"disk"}"#, true),
            (
                r#"{"drive_id":"a","is_root_device":false,"path_on_host":"disk","partuuid":null,"is_read_only":null,
            "rate_limiter":null,"io_engine":null,"socket":null}"#,
                true,
            ),
            (
                r#"{"drive_id":"a","is_root_device":true,"path_on_host":"disk","partuuid":"0eaa91a0-01","is_read_only":true,
            "cache_type":"Writeback","io_engine":"Async"}"#,
                true,
            ),
            (r#"{"drive_id":"a","is_root_device":false,"path_on_host":"disk","rate_limiter":{}}"#, true),
            (
                r#"{"drive_id":"a","is_root_device":false,"path_on_host":"disk","rate_limiter":{"bandwidth":null,
            "ops":{"size":18446744073709551615,"one_time_burst":0,"refill_time":1,"unknown":[{}]}}}"#,
                true,
            ),
            (
                r#"{"drive_id":"a","is_root_device":false,"path_on_host":"disk","rate_limiter":[[1,null,2],null]}"#,
                true,
            ),
            (r#"["a",null,false,"Unsafe",true,"disk",null,"Sync",null]"#, true),
            (r#"{"drive_id":"a","path_on_host":"disk"}"#, false),
            (r#"{"drive_id":"a","is_root_device":false,"x":1}"#, false),
            (r#"{"drive_id":"a","is_root_device":false,"cache_type":"WriteBack"}"#, false),
            (r#"{"drive_id":"a","is_root_device":false,"rate_limiter":{"ops":{"size":1}}}"#, false),
            (
                r#"{"drive_id":"a","is_root_device":false,"rate_limiter":{"ops":{"size":-1,"refill_time":1}}}"#,
                false,
            ),
            (r#"{"drive_id":"a","is_root_device":false,"rate_limiter":{"iops":null}}"#, false),
        ],
    );
}

#[test]
fn network_interfaces() {
    // Firecracker opens the TAP device, and as root makes it for as long as it lives.
    check(
        Verb::Put,
        "/network-interfaces/e",
        reads::<NetworkInterface>,
        &[
            (r#"{"iface_id":"e","host_dev_name":"TAP"}"#, true),
            (
                r#"{"iface_id":"e","host_dev_name":"TAP","guest_mac":"aa:BB:cc:DD:ee:01","rx_rate_limiter":null,
            "tx_rate_limiter":{"ops":{"size":1,"refill_time":1}}}"#,
                true,
            ),
            (r#"{"iface_id":"e","host_dev_name":"TAP","guest_mac":null}"#, true),
            (r#"["e","TAP",null,null,null]"#, true),
            (r#"{"iface_id":"e"}"#, false),
            (r#"{"iface_id":"e","host_dev_name":"t","x":1}"#, false),
        ],
    );
}

#[test]
fn balloon() {
    check(
        Verb::Put,
        "/balloon",
        reads::<Balloon>,
        &[
            (r#"{"amount_mib":1,"deflate_on_oom":true}"#, true),
            (r#"{"amount_mib":0,"deflate_on_oom":false,"stats_polling_interval_s":65535}"#, true),
            ("[1,true]", true),
            (r#"{"amount_mib":1}"#, false),
            (r#"{"amount_mib":1,"deflate_on_oom":true,"x":1}"#, false),
            (r#"{"amount_mib":1,"deflate_on_oom":true,"stats_polling_interval_s":65536}"#, false),
        ],
    );
}

#[test]
fn vsock_and_entropy() {
    check(
        Verb::Put,
        "/vsock",
        reads::<Vsock>,
        &[
            (r#"{"guest_cid":3,"uds_path":"v"}"#, true),
            (r#"{"guest_cid":4294967295,"uds_path":"v","vsock_id":null}"#, true),
            (r#"{"guest_cid":0,"uds_path":"v","vsock_id":"old"}"#, true),
            (r#"[null,3,"v"]"#, true),
            (r#"{"guest_cid":4294967296,"uds_path":"v"}"#, false),
            (r#"{"guest_cid":3,"uds_path":"v","x":1}"#, false),
        ],
    );
    check(
        Verb::Put,
        "/entropy",
        reads::<EntropyDevice>,
        &[
            ("{}", true),
            ("[null]", true),
            (r#"{"rate_limiter":null}"#, true),
            (r#"{"rate_limiter":{"bandwidth":{"refill_time":1,"size":2}}}"#, true),
            (r#"{"x":1}"#, false),
            ("null", false),
        ],
    );
}

#[test]
fn logger_and_metrics() {
    check(
        Verb::Put,
        "/logger",
        reads::<Logger>,
        &[
            ("{}", true),
            (
                r#"{"log_path":"log","level":"Warning","show_level":true,"show_log_origin":true,"module":"api_server"}"#,
                true,
            ),
            (
                r#"{"log_path":null,"level":null,"show_level":null,"show_log_origin":null,"module":null}"#,
                true,
            ),
            (r#"{"level":"warn"}"#, true),
            (r#"{"level":"WARNING"}"#, true),
            (r#"{"level":"tRaCe"}"#, true),
            (r#"{"level":"Off"}"#, true),
            (r#"["log",null,null,null,null]"#, true),
            (r#"{"x":1}"#, false),
        ],
    );
    check(Verb::Put, "/metrics", reads::<Metrics>, &[(r#"{"metrics_path":"metrics","x":{"y":1}}"#, true)]);
    check(Verb::Put, "/metrics", reads::<Metrics>, &[(r#"["metrics"]"#, true)]);
    check(Verb::Put, "/metrics", reads::<Metrics>, &[("{}", false)]);
}

#[test]
fn mmds() {
    check(
        Verb::Put,
        "/mmds",
        reads::<MmdsContents>,
        &[
            ("{}", true),
            (r#"{"a":{"b":[1,null,1.5,"x"]}}"#, true),
            ("[1]", true),
            ("null", true),
            ("5", true),
        ],
    );
    check(Verb::Patch, "/mmds/config", reads::<MmdsConfig>, &[]);
    check(
        Verb::Put,
        "/mmds/config",
        reads::<MmdsConfig>,
        &[(r#"{"network_interfaces":["x"],"version":"v2"}"#, false), (r#"{"version":"V2"}"#, false)],
    );
}

#[test]
fn cpu_config() {
    check(
        Verb::Put,
        "/cpu-config",
        reads::<CpuConfig>,
        &[
            ("{}", true),
            ("[]", true),
            ("[[],[],[]]", true),
            (
                r#"{"kvm_capabilities":["!56","121"],"cpuid_modifiers":[{"leaf":"0x0","subleaf":"0b0","flags":0,
            "modifiers":[{"register":"eax","bitmap":"0bxx00_11","y":1}],"z":1}],
            "msr_modifiers":[{"addr":"0x10a","bitmap":"0b1","w":1},["0x1","0b1"]]}"#,
                true,
            ),
            (r#"{"x":1}"#, false),
            (r#"{"kvm_capabilities":[56]}"#, false),
            (r#"{"msr_modifiers":[{"addr":"0x1"}]}"#, false),
        ],
    );
}

#[test]
fn actions_and_state() {
    check(
        Verb::Put,
        "/actions",
        reads::<InstanceActionInfo>,
        &[
            (r#"{"action_type":"X"}"#, false),
            (r#"{"action_type":"InstanceStart","x":1}"#, false),
            ("{}", false),
        ],
    );
    check(
        Verb::Patch,
        "/vm",
        reads::<Vm>,
        &[(r#"{"state":"Running"}"#, false), (r#"{"state":"Paused","x":1}"#, false)],
    );
    check(Verb::Patch, "/drives/a", reads::<PartialDrive>, &[(r#"{"path_on_host":"disk"}"#, false)]);
    check(Verb::Patch, "/balloon", reads::<BalloonUpdate>, &[(r#"{"amount_mib":2,"x":1}"#, false)]);
    check(
        Verb::Put,
        "/snapshot/create",
        reads::<SnapshotCreateParams>,
        &[
            (r#"{"snapshot_path":"s","mem_file_path":"m","version":"1"}"#, false),
            (r#"{"snapshot_path":"s"}"#, false),
        ],
    );
    check(
        Verb::Put,
        "/snapshot/load",
        reads::<SnapshotLoadParams>,
        &[
            (
                r#"{"snapshot_path":"s","mem_backend":{"backend_type":"File","backend_path":"m","x":1}}"#,
                false,
            ),
            (r#"{"snapshot_path":"s","mem_backend":{"backend_type":"file","backend_path":"m"}}"#, false),
            (r#"{"mem_file_path":"m"}"#, false),
        ],
    );
}
