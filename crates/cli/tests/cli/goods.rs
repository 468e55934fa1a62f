//! What servers offer in tests: releases of Firecracker, kernels, a bucket like that of Firecracker's CI.

use std::io::Write;

use sha2::{Digest as _, Sha256};
use smartvm_core::bare_metal::Guest;

use crate::server::Server;

/// An archive as a release page has it, with the real programs, whatever version they are.
pub(crate) fn release(version: &str) -> Vec<u8> {
    let [firecracker, jailer] = real();
    // The real one is of 1.12.1. In the others this text is replaced, so that they say what they should be.
    let says = version.trim_start_matches('v').as_bytes();
    let renamed = |program: Vec<u8>| {
        let mut renamed = program.clone();
        let places = program.windows(6).enumerate().filter(|(_, window)| *window == b"1.12.1");
        for (at, _) in places {
            renamed[at..at + 6].copy_from_slice(says);
        }
        renamed
    };
    match version {
        "v1.12.1" => programs(version, &firecracker, &jailer),
        _ => programs(version, &renamed(firecracker), &jailer),
    }
}

/// Firecracker and jailer 1.12.1.
pub(crate) fn real() -> [Vec<u8>; 2] {
    [smartvm_lab::firecracker(), smartvm_lab::jailer()].map(|path| std::fs::read(path).unwrap())
}

/// An archive with these two programs.
pub(crate) fn programs(version: &str, firecracker: &[u8], jailer: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in [("firecracker", firecracker), ("jailer", jailer)] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        let path = format!("release-{version}-x86_64/{name}-{version}-x86_64");
        tar.append_data(&mut header, path, content).unwrap();
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar.into_inner().unwrap()).unwrap();
    gzip.finish().unwrap()
}

/// The name of an archive.
pub(crate) fn archive_name(version: &str) -> String {
    format!("firecracker-{version}-x86_64.tgz")
}

/// What `sha256sum` prints of an archive.
pub(crate) fn checksum(version: &str, archive: &[u8]) -> String {
    format!("{}  {}\n", hex(archive), archive_name(version))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Puts a release on the page at `/releases`, as the newest.
pub(crate) fn publish(server: &Server, version: &str, archive: &[u8]) {
    let path = format!("/releases/download/{version}/{}", archive_name(version));
    server.file(&format!("{path}.sha256.txt"), checksum(version, archive));
    server.file(&path, archive);
    server.redirect("/releases/latest", &format!("/releases/tag/{version}"));
    server.file(&format!("/releases/tag/{version}"), "a page");
}

/// A kernel that Firecracker boots, with the greeting of this release.
pub(crate) fn kernel(release: &str) -> Vec<u8> {
    let mut kernel = Guest::ByteThenReset.elf();
    kernel.extend_from_slice(format!("\0Linux version {release} (test@here) #1 SMP\n\0").as_bytes());
    kernel
}

/// The beginning of a squashfs, as far as anybody looks at it here.
pub(crate) fn squashfs() -> Vec<u8> {
    let mut bytes = b"hsqs".to_vec();
    bytes.resize(64 << 10, 7);
    bytes
}

/// Fills a bucket at `/bucket` with one train.
pub(crate) fn fill_bucket(server: &Server) {
    let train = "firecracker-ci/20260717-5ac3f5ffdcd7-0/";
    let files = [("vmlinux-6.1.176", kernel("6.1.176")), ("ubuntu-24.04.squashfs", squashfs())];
    let list = |prefix: &str, entries: &str| {
        let prefix = prefix.replace('/', "%2F");
        let xml = format!(
            "<?xml version=\"1.0\"?>\n<ListBucketResult xmlns=\"x\">{entries}<IsTruncated>false</IsTruncated></ListBucketResult>"
        );
        server.file(&format!("/bucket/?list-type=2&prefix={prefix}&delimiter=%2F"), xml);
    };
    list("firecracker-ci/", &format!("<CommonPrefixes><Prefix>{train}</Prefix></CommonPrefixes>"));
    let mut entries = String::new();
    for (name, bytes) in files {
        let key = format!("{train}x86_64/{name}");
        entries += &format!("<Contents><Key>{key}</Key><Size>{}</Size></Contents>", bytes.len());
        server.file(&format!("/bucket/{key}"), bytes);
    }
    list(&format!("{train}x86_64/"), &entries);
}
