//! Reading and writing config files.

use proptest::prelude::*;
use serde_json::json;
use smartvm_core::explain::{Code, Explain};

use super::*;
use crate::version::Version;
use std::path::Path;

const FULL: &str = r#"{
  "drives": [
    {"is_root_device": true, "drive_id": "rootfs", "path_on_host": "rootfs.ext4", "is_read_only": null,
     "rate_limiter": {"ops": {"refill_time": 100, "size": 10, "note": "kept"}, "bandwidth": null}},
    {"drive_id": "v", "is_root_device": false, "socket": "blk.sock"}
  ],
  "x-owner": {"team": ["a", 1]},
  "boot-source": {"initrd_path": "initrd", "kernel_image_path": "vmlinux", "boot_args": "console=ttyS0"},
  "vsock": {"uds_path": "v.sock", "guest_cid": 3},
  "pmem": [],
  "balloon": null,
  "network-interfaces": [],
  "metrics": {"metrics_path": "metrics", "note": 1},
  "logger": {"log_path": "log", "level": "Info"},
  "cpu-config": "template.json",
  "machine-config": {"mem_size_mib": 256, "vcpu_count": 2, "smt": false}
}"#;

fn refused(text: &str) -> ConfigError {
    VmConfig::parse(text).unwrap_err()
}

#[test]
fn a_file_is_written_back_with_its_keys_nulls_and_notes() {
    let written = ConfigFile::parse(FULL).unwrap().to_json();
    let compact = |text: &str| serde_json::from_str::<Value>(text).unwrap().to_string();
    assert_eq!(compact(&written), compact(FULL), "the order of keys counts in this comparison");
}

#[test]
fn a_changed_file_keeps_the_rest() {
    let mut file = ConfigFile::parse(FULL).unwrap();
    file.config.vsock = None;
    file.config.drives.remove(1);
    file.config.machine_config.as_mut().unwrap().track_dirty_pages = Some(true);
    let written = file.to_json();
    let reread = ConfigFile::parse(&written).unwrap();
    assert_eq!(reread.config, file.config);
    let keys: Vec<_> = reread.original.as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys[..4], ["drives", "x-owner", "boot-source", "pmem"]);
    assert!(!written.contains("v.sock"));
}

#[test]
fn a_built_config_is_written_with_drives_even_if_empty() {
    let mut config = VmConfig::default();
    config.boot_source.kernel_image_path = "k".to_owned();
    let value: Value = serde_json::from_str(&config.to_json()).unwrap();
    assert_eq!(value, json!({"drives": [], "boot-source": {"kernel_image_path": "k"}}));
}

#[test]
fn an_unknown_field_is_named_with_place_path_and_what_was_meant() {
    let error = refused(
        "{\n  \"boot-source\": {\"kernel_image_path\": \"k\"},\n  \"drives\": [{\"drive_id\": \"a\",\n    \
         \"path_onhost\": \"x\"}]\n}",
    );
    assert_eq!(error.line, 4);
    assert_eq!(error.code(), Code::InvalidConfig);
    assert_eq!(error.to_string(), "line 4, column 17: drives[0].path_onhost: unknown field `path_onhost`");
    assert_eq!(error.hint().unwrap(), "did you mean `path_on_host`?");
}

#[test]
fn every_mistake_is_named() {
    for (text, field, problem, hint) in [
        ("", "", "EOF while parsing a value", "one JSON object"),
        ("{", "", "EOF while parsing an object", "one JSON object"),
        ("{\"drives\": [],}", "", "trailing comma", "trailing commas"),
        ("{\"drives\": []} x", "", "missing field `boot-source`", "add `boot-source` to the file"),
        (r#"{"boot-source": {"kernel_image_path": "k"}}"#, "", "missing field `drives`", "\"drives\": []"),
        (
            r#"{"boot-source": {}, "drives": []}"#,
            "boot-source",
            "missing field `kernel_image_path`",
            "to boot-source",
        ),
        (
            r#"{"boot-source": {"kernel_image_path": 5}}"#,
            "boot-source.kernel_image_path",
            "invalid type: integer `5`, expected a string",
            "",
        ),
        (r#"{"drives": {}}"#, "drives", "invalid type: map, expected a sequence", ""),
        (r#"{"drives": [], "drives": []}"#, "", "duplicate field `drives`", ""),
        (
            r#"{"machine-config": {"vcpu_count": 256, "mem_size_mib": 1}}"#,
            "machine-config.vcpu_count",
            "invalid value: integer `256`, expected u8",
            "",
        ),
        (
            r#"{"machine-config": {"vcpu_count": 1, "mem_size_mib": -1}}"#,
            "machine-config.mem_size_mib",
            "invalid value: integer `-1`, expected u64",
            "",
        ),
        (
            r#"{"machine-config": {"vcpu_count": 1, "mem_size_mib": 1, "huge_pages": "2m"}}"#,
            "machine-config.huge_pages",
            "unknown variant `2m`",
            "did you mean `2M`?",
        ),
        (
            r#"{"machine-config": {"vcpus": 1}}"#,
            "machine-config.vcpus",
            "unknown field `vcpus`",
            "known are vcpu_count",
        ),
        (
            r#"{"drives": [{"drive_id": "a", "is_root_device": true, "rate_limiter": {"ops": {"size": 1}}}]}"#,
            "drives[0].rate_limiter.ops",
            "missing field `refill_time`",
            "add `refill_time`",
        ),
        (r#"{"logger": {"level": "loud"}}"#, "logger.level", "unknown variant `loud`", "known are Off"),
        (
            r#"{"cpu-config": 5}"#,
            "cpu-config",
            "invalid type: integer `5`, expected the path of a CPU template, or the template itself",
            "",
        ),
        (r#"{"cpu-config": {"msr": []}}"#, "cpu-config.msr", "unknown field `msr`", "msr_modifiers"),
    ] {
        let error = refused(text);
        assert_eq!((error.field.as_str(), error.problem.as_str()), (field, problem), "{text}");
        assert!(error.hint().unwrap_or_default().contains(hint), "{text}: {:?}", error.hint());
    }
}

#[test]
fn text_after_the_object_is_refused() {
    let error = refused(r#"{"boot-source": {"kernel_image_path": "k"}, "drives": []} x"#);
    assert_eq!(error.problem, "trailing characters");
}

#[test]
fn misspelt_sections_are_found_though_firecracker_ignores_them() {
    let config = VmConfig::parse(
        r#"{"boot-source": {"kernel_image_path": "k"}, "drives": [], "network_interface": [], "x-note": 1,
            "serial": {"serial_out_path": "s"}}"#,
    )
    .unwrap();
    let ignored: Vec<_> = config.ignored_sections().into_iter().map(|s| (s.name, s.nearest)).collect();
    assert_eq!(
        ignored,
        [
            ("serial".to_owned(), None),
            ("network_interface".to_owned(), Some("network-interfaces")),
            ("x-note".to_owned(), None)
        ]
    );
}

#[test]
fn relative_paths_are_taken_from_the_folder() {
    let mut config = VmConfig::parse(FULL).unwrap();
    config.drives[0].path_on_host = Some("/abs/rootfs.ext4".to_owned());
    config.serial =
        Some(crate::api::SerialDevice { serial_out_path: Some("con".to_owned()), ..Default::default() });
    config.pmem = Some(vec![Pmem { path_on_host: "p".to_owned(), ..Default::default() }]);
    config.resolve_paths(Path::new("/srv/vm")).unwrap();
    let mut seen = Vec::new();
    config.for_each_path(|field, path| seen.push(format!("{field}={path}")));
    assert_eq!(
        seen,
        [
            "boot-source.kernel_image_path=/srv/vm/vmlinux",
            "boot-source.initrd_path=/srv/vm/initrd",
            "cpu-config=/srv/vm/template.json",
            "drives[0].path_on_host=/abs/rootfs.ext4",
            "drives[1].socket=/srv/vm/blk.sock",
            "pmem[0].path_on_host=/srv/vm/p",
            "vsock.uds_path=/srv/vm/v.sock",
            "logger.log_path=/srv/vm/log",
            "metrics.metrics_path=/srv/vm/metrics",
            "serial.serial_out_path=/srv/vm/con",
        ]
    );
}

#[test]
fn a_folder_that_json_cannot_hold_is_refused_only_when_needed() {
    use std::os::unix::ffi::OsStrExt;
    let folder = Path::new(std::ffi::OsStr::from_bytes(b"/srv/\xff"));
    let mut config = VmConfig::parse(FULL).unwrap();
    let error = config.resolve_paths(folder).unwrap_err();
    assert_eq!(error.field, "boot-source.kernel_image_path");
    config.resolve_paths(Path::new("/srv")).unwrap();
    config.resolve_paths(folder).unwrap();
}

#[test]
fn a_config_names_the_first_thing_that_the_version_cannot_do() {
    let old = Version::new(1, 12, 1);
    let with = |section: &str| {
        let text = format!(r#"{{"boot-source": {{"kernel_image_path": "k"}}, "drives": [], {section}}}"#);
        VmConfig::parse(&text).unwrap().check(&old).map_err(|error| error.to_string())
    };
    assert_eq!(with(r#""pmem": []"#), Ok(()), "asks for nothing");
    assert_eq!(with(r#""balloon": {"amount_mib": 0, "deflate_on_oom": true}"#), Ok(()));
    for (section, what) in [
        (r#""pmem": [{"id": "p", "path_on_host": "x"}]"#, "PUT /pmem/{id} needs Firecracker 1.14"),
        (r#""memory-hotplug": {"total_size_mib": 1024}"#, "/hotplug/memory needs Firecracker 1.14"),
        (r#""serial": {}"#, "PUT /serial needs Firecracker 1.14"),
        (r#""cpu-config": {}"#, "a CPU template inside the config file needs Firecracker 1.13"),
        (
            r#""metrics": {"metrics_path": "m", "emit_id": true}"#,
            "`emit_id` in PUT /metrics needs Firecracker 1.17",
        ),
        (
            r#""network-interfaces": [{"iface_id": "e", "host_dev_name": "t", "mtu": 1500}]"#,
            "`mtu` of a network interface needs Firecracker 1.16",
        ),
    ] {
        let error = with(section).unwrap_err();
        assert!(error.starts_with(what) && error.ends_with("this is 1.12.1"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_config_survives_its_file(config: VmConfig) {
        prop_assert_eq!(&VmConfig::parse(&config.to_json()).unwrap(), &config);
        let file = ConfigFile::parse(&config.to_json()).unwrap();
        prop_assert_eq!(ConfigFile::parse(&file.to_json()).unwrap(), file);
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,64}", cut in 0..FULL.len(), byte in " -~") {
        let _ = ConfigFile::parse(&text);
        let mut broken = FULL.to_owned();
        broken.replace_range(cut..cut + 1, &byte);
        if let Ok(file) = ConfigFile::parse(&broken) {
            let _ = file.to_json();
        }
    }
}
