//! Images as they are made.

use super::super::{Contents, Options, build_now};
use super::*;

/// The image of these layers, and what was said of it.
fn built(layers: Vec<Layer>) -> Result<(std::fs::File, super::super::Built), RootfsError> {
    let file = tempfile::tempfile().unwrap();
    let options = Options::default();
    let built =
        build_now(&Contents::Layers(layers), &file, &options, &Progress::none(), &Abandoned::never())?;
    Ok((file, built))
}

fn read(file: &std::fs::File) -> Vec<u8> {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    let mut file = file;
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn an_image_holds_what_the_layers_say_and_verifies() {
    let contents: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    let lower = Archive::default().file("gone", &contents).file("kept", b"kept").file("replaced", b"old");
    let upper = Archive::default()
        .file(".wh.gone", b"")
        .file("replaced", &contents)
        .pax(&[
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\n\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
            ("mtime", b"-5.25"),
        ])
        .file("bin/ping", b"elf");
    let (file, built) = built(vec![lower.layer(), upper.layer()]).unwrap();
    let bytes = read(&file);
    assert_eq!(built.digest, Digest::of(&bytes));
    assert_eq!(built.size_bytes, bytes.len() as u64);
    let fs = mkext4::reader::Fs::open(&bytes[..]).unwrap();
    assert_eq!(fs.verify().unwrap(), []);
    assert_eq!(fs.superblock().uuid, built.uuid);
    assert!(fs.read_file(fs.resolve("/replaced").unwrap()).unwrap() == contents);
    assert_eq!(fs.read_file(fs.resolve("/kept").unwrap()).unwrap(), b"kept");
    assert!(fs.resolve("/gone").is_err());
    let ping = fs.resolve("/bin/ping").unwrap();
    assert_eq!(fs.xattrs(ping).unwrap()[0].full_name().unwrap(), b"security.capability");
    let inode = fs.inode(ping).unwrap();
    assert_eq!(mkext4::spec::Inode::timestamp(inode.mtime, inode.mtime_extra), (-6, 750_000_000));
}

/// Metadata lie in every group, also behind the first contents: they are written before, and hashed in their turn.
#[test]
fn the_digest_is_the_files_where_there_are_several_groups() {
    let contents = vec![1; 140 << 20];
    let archive = Archive::default().dir("d/").file("d/a", &contents).file("d/b", b"b");
    let (file, built) = built(vec![archive.layer()]).unwrap();
    assert!(built.size_bytes > 128 << 20);
    assert_eq!(built.digest, Digest::of(&read(&file)));
}

#[test]
fn equal_layers_make_equal_images_in_whatever_compression() {
    let plain = Archive::default().file("a", &[3; 70_000]).dir("d/").file("d/b", b"b").end();
    let (_, expected) = built(vec![Layer::memory("plain", &*plain)]).unwrap();
    for packed in super::hostile::packed(&plain) {
        assert_eq!(built(vec![Layer::memory("packed", packed)]).unwrap().1, expected);
    }
    let (_, other) = built(vec![Layer::memory("plain", &*plain).identified(Digest::of(b"other"))]).unwrap();
    assert_ne!(other.uuid, expected.uuid);
}

#[test]
fn sparse_files_stay_sparse_in_every_format_of_gnu_tar() {
    let size = "68719476736";
    let keys = |rest: &[(&'static str, &'static [u8])]| {
        let mut keys: Vec<(&str, &[u8])> =
            vec![("GNU.sparse.name", b"sparse"), ("GNU.sparse.size", size.as_bytes())];
        keys.extend_from_slice(rest);
        keys
    };
    let v0 = Archive::default()
        .pax(&keys(&[
            ("GNU.sparse.offset", b"5000"),
            ("GNU.sparse.numbytes", b"3"),
            ("GNU.sparse.offset", b"68719476736"),
            ("GNU.sparse.numbytes", b"0"),
        ]))
        .file("p", b"abc");
    let v01 = Archive::default().pax(&keys(&[("GNU.sparse.map", b"5000,3,68719476736,0")])).file("p", b"abc");
    let mut map = b"2\n5000\n3\n68719476736\n0\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"abc");
    let v1 = Archive::default()
        .pax(&keys(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")]))
        .file("p", &map);
    for archive in [v0, v01, v1] {
        let (file, built) = built(vec![archive.file("next", b"next").layer()]).unwrap();
        assert!(built.used_bytes < 1 << 20, "{built:?}");
        assert!(built.size_bytes < 64 << 20, "{built:?}");
        let bytes = read(&file);
        let fs = mkext4::reader::Fs::open(&bytes[..]).unwrap();
        let ino = fs.resolve("/sparse").unwrap();
        let inode = fs.inode(ino).unwrap();
        assert_eq!(inode.size, 64 << 30);
        let extents = fs.extents(ino, &inode).unwrap();
        assert_eq!(extents.len(), 1);
        let block = fs.read_block(extents[0].physical).unwrap();
        assert_eq!(&block[900..910], b"\0\0\0\0abc\0\0\0");
        assert_eq!(fs.read_file(fs.resolve("/next").unwrap()).unwrap(), b"next");
    }
}

#[test]
fn an_empty_layer_makes_an_empty_root() {
    let (file, built) = built(vec![Layer::memory("layer", Vec::new())]).unwrap();
    assert_eq!((built.inodes, built.entries), (1, 0));
    assert_eq!(mkext4::reader::Fs::open(&read(&file)[..]).unwrap().verify().unwrap(), []);
}

#[tokio::test]
async fn what_nobody_waits_for_is_stopped() {
    let scratch = tempfile::tempdir().unwrap();
    std::fs::write(scratch.path().join("a"), b"a").unwrap();
    let layers = Contents::Layers(vec![Archive::default().file("a", &[1; 5000]).layer()]);
    let directory = Contents::Directory(super::super::Directory::new(scratch.path()));
    for contents in [layers, directory] {
        let (started, has_started) = tokio::sync::oneshot::channel();
        let (ended, has_ended) = std::sync::mpsc::channel();
        let work = crate::blocking::blocking(move |abandoned| {
            let _ = started.send(());
            while !abandoned.is() {
                std::thread::yield_now();
            }
            let file = tempfile::tempfile().unwrap();
            let _ =
                ended.send(build_now(&contents, &file, &Options::default(), &Progress::none(), abandoned));
        });
        tokio::select! {
            () = work => panic!("it waits until nobody does"),
            _ = has_started => {}
        }
        let made = has_ended.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
        assert!(matches!(made, Err(RootfsError::Stopped)), "{made:?}");
    }
}

#[test]
fn a_directory_that_changes_meanwhile_is_refused_by_the_name_of_the_file() {
    use super::super::{Directory, directory, write};
    use std::fs;
    let changes: [fn(&std::path::Path); 5] = [
        |dir| fs::write(dir.join("d/f"), b"longer than it was").unwrap(),
        |dir| fs::write(dir.join("d/f"), b"s").unwrap(),
        |dir| fs::remove_file(dir.join("d/f")).unwrap(),
        |dir| {
            fs::rename(dir.join("d/f"), dir.join("d/g")).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", dir.join("d/f")).unwrap();
        },
        |dir| {
            fs::rename(dir.join("d"), dir.join("e")).unwrap();
            std::os::unix::fs::symlink("e", dir.join("d")).unwrap();
        },
    ];
    for change in changes {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir(scratch.path().join("d")).unwrap();
        fs::write(scratch.path().join("d/f"), [b'x'; 10_000]).unwrap();
        let watch = Watch::new(&Abandoned::never(), &Progress::none(), "test", None);
        let (file, options) = (tempfile::tempfile().unwrap(), Options::default());
        let directory = Directory::new(scratch.path());
        let (tree, scanned) = directory::scan(&directory, &file, &options.limits, &watch).unwrap();
        change(scratch.path());
        let made = write::image(tree, 2, &[], &file, &options, &watch, |filler, fills| {
            directory::fill(&scanned, &watch, filler, fills)
        });
        match made {
            Err(RootfsError::Changed { path }) => assert_eq!(path, scratch.path().join("d/f")),
            other => panic!("{other:?}"),
        }
    }
}
