//! Trees to make images of.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

/// Times before 1970, with nanoseconds, and beyond 2038.
const TIMES: [(i64, i64); 4] =
    [(1_700_000_000, 123_456_789), (-86_400, 500_000_000), (1, 1), (4_102_444_800, 999_999_999)];

/// One of each kind, and `flat` files in one directory. The folder is made.
pub(crate) fn every_kind(at: &Path, flat: usize) {
    fs::create_dir_all(at).unwrap();
    let write = |name: &str, data: &[u8]| fs::write(at.join(name), data).unwrap();
    write("empty", b"");
    write("small", b"small\n");
    write("block", &[1; 4096]);
    write("block and one", &[2; 4097]);
    write("random", &noise(9_000_001));
    write("zeros", &vec![0; 5 << 20]);
    write("setuid", b"#!/bin/sh\n");
    chmod(&at.join("setuid"), 0o4755);
    write("nobody's", b"?");
    chmod(&at.join("nobody's"), 0o000);
    write(&"long name ".repeat(25), b"long");
    write("bücher ☃ \n tab\t", b"unicode");
    write("owned", b"by somebody");
    rustix::fs::chown(
        at.join("owned"),
        Some(rustix::fs::Uid::from_raw(100_000)),
        Some(rustix::fs::Gid::from_raw(3_000_000_000)),
    )
    .unwrap();

    fs::create_dir(at.join("dir")).unwrap();
    chmod(&at.join("dir"), 0o3770);
    fs::create_dir_all(at.join("deep").join("d/".repeat(60))).unwrap();
    fs::create_dir(at.join("empty dir")).unwrap();

    for (name, target) in [("short", "small"), ("dangling", "/no/where"), ("up", "../../..")] {
        symlink(target, at.join(name)).unwrap();
    }
    for len in [59, 60, 200, 4000] {
        symlink("t".repeat(len), at.join(format!("link of {len}"))).unwrap();
    }
    for link in ["linked", "dir/linked", "linked again"] {
        fs::hard_link(at.join("random"), at.join(link)).unwrap();
    }
    fs::hard_link(at.join("short"), at.join("dir/linked symlink")).unwrap();

    let node = |name: &str, kind, device| {
        rustix::fs::mknodat(CWD, at.join(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
    };
    node("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    node("disk", FileType::BlockDevice, rustix::fs::makedev(8, 17));
    node("far", FileType::BlockDevice, rustix::fs::makedev(259, 70_000));
    node("pipe", FileType::Fifo, 0);
    node("socket", FileType::Socket, 0);
    fs::hard_link(at.join("pipe"), at.join("dir/pipe")).unwrap();

    let sparse = File::create(at.join("sparse")).unwrap();
    sparse.set_len((5 << 30) + 777).unwrap();
    sparse.write_all_at(b"begin", 0).unwrap();
    sparse.write_all_at(&noise(100_000), (4 << 30) + 123).unwrap();
    sparse.write_all_at(b"end", (5 << 30) + 774).unwrap();
    File::create(at.join("hole")).unwrap().set_len(10_000_001).unwrap();
    let pieces = File::create(at.join("pieces")).unwrap();
    for piece in 0..2000 {
        pieces.write_all_at(&[7; 10], piece * 8192).unwrap();
    }

    attributes(at);

    let folder = at.join("flat");
    fs::create_dir(&folder).unwrap();
    for number in 0..flat {
        fs::write(folder.join(format!("file number {number} of many")), number.to_le_bytes()).unwrap();
    }

    // Last, and deepest first: making a file changes its directory's time.
    let mut paths = vec![at.to_owned()];
    let mut next = 0;
    while let Some(path) = paths.get(next).cloned() {
        next += 1;
        if path.symlink_metadata().unwrap().is_dir() {
            paths.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    for (number, path) in paths.iter().rev().enumerate() {
        let (tv_sec, tv_nsec) = TIMES[number % TIMES.len()];
        let time = Timespec { tv_sec, tv_nsec };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

fn attributes(at: &Path) {
    let set = |name: &str, attribute: &str, value: &[u8]| {
        rustix::fs::lsetxattr(at.join(name), attribute, value, XattrFlags::empty())
            .unwrap_or_else(|error| panic!("{attribute} of {name}: {error}"));
    };
    set("small", "user.small", b"value");
    set("small", "user.binary", b"\0\n=\xff\n");
    set("block", "user.large", &noise(2500));
    set("block", "user.other", b"beside it");
    set("setuid", "security.capability", b"\x01\0\0\x02\n\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    set("dir", "trusted.of a directory", b"1");
    set("null", "trusted.of a node", b"2");
    set("short", "trusted.of a symlink", b"3");
    set("", "user.of the root", b"4");
    let entry = |tag: u16, rights: u16, id: u32| {
        [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let access = [
        2u32.to_le_bytes().to_vec(),
        entry(1, 6, u32::MAX),
        entry(2, 5, 1000),
        entry(4, 4, u32::MAX),
        entry(8, 1, 70_000),
        entry(16, 5, u32::MAX),
        entry(32, 0, u32::MAX),
    ]
    .concat();
    set("owned", "system.posix_acl_access", &access);
    set("dir", "system.posix_acl_default", &access);
}

/// So many files of all sizes up to 40 KiB in folders of sixty.
pub(crate) fn many(at: &Path, count: usize) {
    for number in 0..count {
        let folder = at.join(format!("{}", number / 60));
        if number % 60 == 0 {
            fs::create_dir_all(&folder).unwrap();
        }
        fs::write(folder.join(format!("{number}.so")), noise(number * 37 % 40_000)).unwrap();
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Bytes that are always the same and do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ len as u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(len).collect()
}
