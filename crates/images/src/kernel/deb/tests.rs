use proptest::prelude::*;

use super::*;
use crate::kernel::pack::{compress, deb, tar};

/// The wanted files of a package of these bytes: those with `want` in their path, of at most 100 bytes.
fn wanted(package: &[u8]) -> Result<Vec<(String, Vec<u8>)>, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.deb");
    std::fs::write(&path, package).unwrap();
    let mut found = Vec::new();
    let take = |path: &str| if path.contains("want") { Take::UpTo(100) } else { Take::Skip };
    read(&path, (&Progress::none(), &Abandoned::never()), take, |path, content| {
        found.push((path.to_owned(), content));
        Ok(())
    })
    .map(|()| found)
    .map_err(|error| error.to_string())
}

fn problem(package: &[u8]) -> String {
    let error = wanted(package).unwrap_err();
    error.rsplit_once("p.deb: ").map_or(error.clone(), |(_, problem)| problem.to_owned())
}

fn files(content: &[u8]) -> Vec<u8> {
    tar(&[("other", vec![7; 1000]), ("a/wanted", content.to_vec())])
}

#[test]
fn files_are_found_however_their_paths_are_written() {
    let long = format!("{}/wanted", "long".repeat(40));
    let mut pax = tar::Builder::new(Vec::new());
    pax.append_pax_extensions([("mtime", &b"1.5"[..]), ("path", long.as_bytes())]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_path("short").unwrap();
    header.set_size(1);
    header.set_cksum();
    pax.append(&header, &b"x"[..]).unwrap();
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    pax.append_link(&mut link, "wanted-link", "t".repeat(150)).unwrap();
    let pax = pax.into_inner().unwrap();
    assert_eq!(wanted(&deb("data.tar", &pax)), Ok(vec![(long.clone(), b"x".to_vec())]));
    let gnu = tar(&[(&long, b"y".to_vec())]);
    assert_eq!(wanted(&deb("data.tar/", &gnu)), Ok(vec![(long, b"y".to_vec())]));
}

#[test]
fn every_part_that_lies_is_told() {
    let good = deb("data.tar", &files(b"x"));
    let changed = |at: usize, bytes: &[u8]| {
        let mut package = good.clone();
        package[at..at + bytes.len()].copy_from_slice(bytes);
        package
    };
    // 8 bytes of magic, a member of 4 bytes, one of 3 and a filler, then that with the files.
    let (member, data) = (8 + 64 + 64, 8 + 64 + 64 + 60);
    assert_eq!(problem(&changed(0, b"?")), "it is no Debian package");
    assert_eq!(problem(&changed(member + 48, b"9999999999")), "it is cut off");
    assert_eq!(problem(&changed(member + 48, b"-1        ")), "a size in its archive is damaged");
    assert_eq!(problem(&changed(member + 58, b"??")), "a header of its archive is damaged");
    assert_eq!(problem(&changed(member, b"data.tar.zoo    ")), "its files are compressed in an unknown way");
    assert_eq!(problem(&changed(member, b"something       ")), "it has no data.tar");
    assert_eq!(problem(&changed(data, b"?")), "a header in it is damaged");
    assert_eq!(problem(&deb("data.tar", &files(b"x")[..1024])), "its files are cut off");
    assert!(problem(&deb("data.tar", &files(&[1; 101]))).ends_with("it has 101 bytes, more than 100"));
    assert_eq!(problem(b""), "it is no Debian package");
}

#[test]
fn sizes_beyond_all_bounds_take_no_memory() {
    let mut header = tar::Header::new_gnu();
    header.set_path("wanted").unwrap();
    header.set_size(7 << 30);
    header.set_cksum();
    let huge = header.as_bytes().to_vec();
    assert!(problem(&deb("data.tar", &huge)).contains("more than 100"));
    for kind in [tar::EntryType::GNULongName, tar::EntryType::XHeader] {
        header.set_entry_type(kind);
        header.set_cksum();
        assert_eq!(problem(&deb("data.tar", header.as_bytes())), "a path in it is too long");
    }
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(1 << 40);
    header.set_cksum();
    assert_eq!(problem(&deb("data.tar", header.as_bytes())), "a size in it is damaged or too large");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_damage_makes_it_panic(at in 0.0f64..1.0, byte: u8, cut in 0.0f64..1.0, kind in 0usize..3) {
        let plain = files(b"hello");
        let mut package = match kind {
            0 => deb("data.tar", &plain),
            1 => deb("data.tar.xz", &compress(Compression::Xz, &plain)),
            _ => deb("data.tar.zst", &compress(Compression::Zstd, &plain)),
        };
        let place = (package.len() as f64 * at) as usize;
        package[place] = byte;
        let _ = wanted(&package);
        let length = (package.len() as f64 * cut) as usize;
        let _ = wanted(&package[..length]);
    }

    #[test]
    fn no_record_makes_it_panic(records: Vec<u8>, text in "[0-9 =path\n]{0,60}") {
        let _ = pax_path(&records);
        let _ = pax_path(text.as_bytes());
    }
}
