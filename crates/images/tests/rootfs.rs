//! Images as the kernel and e2fsck see them: trees with every kind of file, made from directories and from tar
//! archives, mounted and compared entry by entry.
//!
//! Needs root for device nodes and mounting, as the whole test run does; where the kernel mounts no loop device, an
//! independent reader (`ext4-view`) stands in, which is said.

#[path = "rootfs/compare.rs"]
#[cfg(test)]
mod compare;
#[path = "rootfs/oracle.rs"]
#[cfg(test)]
mod oracle;
#[path = "rootfs/trees.rs"]
#[cfg(test)]
mod trees;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use smartvm_images::Progress;
use smartvm_images::blocking::Abandoned;
use smartvm_images::rootfs::{
    Built, Contents, Directory, Exported, Layer, Meaning, Options, blank, build_now, export_now,
};
use tempfile::TempDir;

#[cfg(test)]
fn build(contents: &Contents, image: &Path) -> Built {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(image).unwrap();
    let options = Options::default();
    let built = build_now(contents, &file, &options, &Progress::none(), &Abandoned::never()).unwrap();
    let hashed = Command::new("sha256sum").arg(image).output().unwrap();
    assert!(hashed.stdout.starts_with(built.digest.hex().as_bytes()), "the digest is that of the file");
    built
}

#[cfg(test)]
/// The tree as GNU tar packs it, with everything it can pack (no sockets).
fn packed(tree: &Path, archive: &Path, more: &[&str]) {
    let mut tar = Command::new("tar");
    tar.args(["--format=pax", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-S"]);
    tar.args(more).arg("-C").arg(tree).arg("-cf").arg(archive).arg(".");
    let output = tar.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_directory_with_every_kind_of_file_is_mounted_as_it_was() {
    let scratch = TempDir::new().unwrap();
    let tree = scratch.path().join("tree");
    trees::every_kind(&tree, 300);
    let image = scratch.path().join("image");
    let built = build(&Contents::Directory(Directory::new(&tree)), &image);
    oracle::fsck(&image);
    oracle::same(&tree, &image, oracle::Sockets::Kept);
    assert!(built.used_bytes < 40 << 20, "sparse files take no space: {built:?}");

    // And the same again: equal input, equal bytes.
    let again = build(&Contents::Directory(Directory::new(&tree)), &scratch.path().join("again"));
    assert_eq!(again, built);
}

#[test]
fn an_archive_with_every_kind_of_file_is_mounted_as_it_was() {
    let scratch = TempDir::new().unwrap();
    let tree = scratch.path().join("tree");
    trees::every_kind(&tree, 300);
    for (name, more) in
        [("a.tar", &[][..]), ("b.tar.gz", &["-z"]), ("c.tar.xz", &["-J"]), ("d.tar.zst", &["--zstd"])]
    {
        let archive = scratch.path().join(name);
        packed(&tree, &archive, more);
        let image = scratch.path().join("image");
        build(&Contents::Archive(Layer::open(&archive).unwrap()), &image);
        oracle::fsck(&image);
        oracle::same(&tree, &image, oracle::Sockets::Lost);
        fs::remove_file(archive).unwrap();
    }
    // GNU's own format has no nanoseconds and no attributes, and its own way with sparse files and long names.
    let archive = scratch.path().join("gnu.tar");
    packed(&tree, &archive, &["--format=gnu", "--no-xattrs"]);
    let image = scratch.path().join("image");
    build(&Contents::Archive(Layer::open(&archive).unwrap()), &image);
    oracle::fsck(&image);
    oracle::same(&tree, &image, oracle::Sockets::LostWithAttributesAndNanoseconds);
}

#[cfg(test)]
/// The image as an archive.
fn exported(image: &Path, archive: &Path) -> Exported {
    let out = std::io::BufWriter::new(File::create(archive).unwrap());
    let image = File::open(image).unwrap();
    export_now(&image, out, Meaning::Layer, &Progress::none(), &Abandoned::never()).unwrap()
}

#[test]
fn an_exported_image_is_unpacked_and_imported_as_it_was() {
    let scratch = TempDir::new().unwrap();
    let [tree, image, archive, other, back] =
        ["tree", "image", "a.tar", "b.tar", "back"].map(|name| scratch.path().join(name));
    trees::every_kind(&tree, 300);
    build(&Contents::Directory(Directory::new(&tree)), &image);
    let said = exported(&image, &archive);
    assert_eq!((said.sockets, said.bytes), (1, fs::metadata(&archive).unwrap().len()));
    assert!(said.bytes < 64 << 20, "a file of 5 GiB with holes is written out: {said:?}");
    exported(&image, &other);
    assert!(fs::read(&archive).unwrap() == fs::read(&other).unwrap(), "equal images, equal archives");

    // As GNU tar understands it.
    fs::create_dir(&back).unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-p", "-S"]);
    let output = tar.arg("-C").arg(&back).arg("-xf").arg(&archive).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    oracle::same_directories(&tree, &back);

    // And as we do.
    build(&Contents::Archive(Layer::open(&archive).unwrap()), &image);
    oracle::fsck(&image);
    oracle::same(&tree, &image, oracle::Sockets::LeftOut);
    exported(&image, &other);
    assert!(fs::read(&archive).unwrap() == fs::read(&other).unwrap(), "there and back is the same again");
}

#[test]
fn an_image_of_mke2fs_is_exported() {
    let scratch = TempDir::new().unwrap();
    let [tree, image, archive, back] =
        ["tree", "image", "a.tar", "back"].map(|name| scratch.path().join(name));
    trees::every_kind(&tree, 3000);
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run(Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-b", "4096", "-d"])
        .arg(&tree)
        .arg(&image)
        .arg("256M"));
    exported(&image, &archive);
    fs::create_dir(&back).unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-p", "-S"]);
    run(tar.arg("-C").arg(&back).arg("-xf").arg(&archive));
    // Older ones do not take nanoseconds along, nor what they do not know of a root.
    oracle::same_names_and_contents(&tree, &back);

    let small = scratch.path().join("small");
    run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-b", "1024"]).arg(&small).arg("8M"));
    let file = File::open(&small).unwrap();
    let error = export_now(&file, Vec::new(), Meaning::Root, &Progress::none(), &Abandoned::never());
    assert!(error.unwrap_err().to_string().contains("1024 bytes"));
}

#[test]
fn a_tree_of_28000_entries_is_mounted_as_it_was() {
    let scratch = TempDir::new().unwrap();
    let tree = scratch.path().join("tree");
    trees::every_kind(&tree, 20_000);
    trees::many(&tree.join("many"), 7_800);
    let image = scratch.path().join("image");
    let built = build(&Contents::Directory(Directory::new(&tree)), &image);
    assert!(built.inodes >= 27_800, "{built:?}");
    oracle::fsck(&image);
    oracle::same(&tree, &image, oracle::Sockets::Kept);
}

#[test]
fn an_empty_file_system_of_any_size_is_mounted_and_written_to() {
    let scratch = TempDir::new().unwrap();
    let image = scratch.path().join("blank");
    const MIB: u64 = 1 << 20;
    for size in [
        16 * MIB,
        17 * MIB + 5,
        127 * MIB,
        128 * MIB,
        129 * MIB,
        135 * MIB,
        4096 * MIB,
        200 << 30,
        (16 << 40) - MIB,
    ] {
        // What the file system below cannot hold is none of our business.
        let Ok(file) = sized(&image, size) else { continue };
        let began = std::time::Instant::now();
        blank(&file, size, [9; 16]).unwrap();
        let took = began.elapsed();
        if size <= 200 << 30 {
            oracle::fsck(&image);
        }
        oracle::written_to(&image);
        if size <= 200 << 30 {
            oracle::fsck(&image);
        }
        eprintln!("{size}: {took:?}");
    }
}

#[cfg(test)]
fn sized(image: &Path, size: u64) -> std::io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(image)?;
    file.set_len(size).map(|()| file)
}
