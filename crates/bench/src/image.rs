//! What making a root file system costs: against a plain copy of the same bytes, and against `mke2fs -d`.
//!
//! The floor of `image-28k` walks the same directory, reads every file and writes all of their bytes to one file, once;
//! it makes no file system, keeps no names, finds no zeros and hashes nothing. Neither side syncs within its time.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use smartvm_images::Progress;
use smartvm_images::blocking::Abandoned;
use smartvm_images::rootfs::{Contents, Directory, Layer, Options, build_now};
use tempfile::TempDir;

use crate::figure::{Better, Figure, Target};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What the figures must reach.
pub const TARGETS: [Target; 3] = [
    Target { figure: "image-28k", says: "<= 2x a copy", met: |f| f.ratio.is_some_and(|ratio| ratio <= 2.0) },
    Target {
        figure: "image-28k-vs-mke2fs",
        says: ">= 8x faster",
        met: |f| f.ratio.is_some_and(|ratio| ratio <= 1.0 / 8.0),
    },
    Target { figure: "image-2gib-rss", says: "<= 150 MiB", met: |f| f.p99 <= 150.0 },
];

/// Files in the one large directory, and in all others.
const FLAT: usize = 20_000;
const SPREAD: usize = 7_850;

/// What a process of its own tells of the image that it made.
#[derive(Debug, Serialize, Deserialize)]
pub struct Made {
    /// How long it took.
    pub ms: f64,
    /// The most memory it ever had.
    pub rss_mib: f64,
    /// Length of the image.
    pub size_bytes: u64,
}

/// Measures all figures. `own` starts this program again as one that calls [`make`].
///
/// # Errors
/// When something cannot be made or run; `mke2fs` has to be on the PATH.
pub fn figures(runs: usize, own: &dyn Fn() -> Command) -> Outcome<Vec<Figure>> {
    let scratch = TempDir::new()?;
    let tree = scratch.path().join("tree");
    let entries = grow(&tree)?;
    println!("bench image: a tree of {entries} entries, {runs} interleaved runs");
    let image = scratch.path().join("image");
    let [mut ours, mut copies] = [Vec::new(), Vec::new()];
    for _ in 0..runs {
        ours.push(timed(&image, |image| {
            make_now(&Contents::Directory(Directory::new(&tree)), image).map(drop)
        })?);
        copies.push(timed(&image, |image| Ok(copy(&tree, image)?))?);
    }
    let mut mke2fs = Vec::new();
    for _ in 0..(runs / 5).clamp(1, 3) {
        mke2fs.push(timed(&image, |image| make_by_mke2fs(&tree, image))?);
    }
    let layer = scratch.path().join("layer.tar.gz");
    pack(&tree, &layer)?;
    let mut unpacked = Vec::new();
    for _ in 0..(runs / 2).max(1) {
        unpacked.push(timed(&image, |image| {
            make_now(&Contents::Layers(vec![Layer::open(&layer)?]), image).map(drop)
        })?);
    }
    fs::remove_dir_all(&tree)?;
    fs::remove_file(&layer)?;

    let large = scratch.path().join("large.tar");
    large_layer(&large)?;
    let made = own().arg("make").arg(&large).arg(&image).stderr(Stdio::inherit()).output()?;
    if !made.status.success() {
        return Err(format!("making the large image failed: {}", made.status).into());
    }
    let made: Made = serde_json::from_slice(&made.stdout)?;
    println!("bench image: {} MiB made in {:.0} ms by a process of its own", made.size_bytes >> 20, made.ms);
    Ok(vec![
        Figure::against("image-28k", "ms", Better::Lower, &ours, &copies),
        Figure::against("image-28k-vs-mke2fs", "ms", Better::Lower, &ours, &mke2fs),
        Figure::alone("image-28k-gzip-layer", "ms", &unpacked),
        Figure::alone("image-2gib-rss", "MiB", &[made.rss_mib]),
    ])
}

/// Makes an image of one archive, and tells what that cost this process.
///
/// # Errors
/// When it cannot be made.
pub fn make(layer: &Path, image: &Path) -> Outcome<Made> {
    let began = Instant::now();
    let size_bytes = make_now(&Contents::Layers(vec![Layer::open(layer)?]), image)?;
    let ms = began.elapsed().as_secs_f64() * 1e3;
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: f64 = peak.and_then(|peak| peak.trim().strip_suffix(" kB")).ok_or("no VmHWM")?.parse()?;
    Ok(Made { ms, rss_mib: kib / 1024.0, size_bytes })
}

fn make_now(contents: &Contents, image: &Path) -> Outcome<u64> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(image)?;
    let built = build_now(contents, &file, &Options::default(), &Progress::none(), &Abandoned::never())?;
    Ok(built.size_bytes)
}

/// How many milliseconds it takes to make this file, which does not exist before and after. What it left to be written
/// is written before anything else is measured.
fn timed(image: &Path, work: impl FnOnce(&Path) -> Outcome<()>) -> Outcome<f64> {
    let began = Instant::now();
    work(image)?;
    let took = began.elapsed().as_secs_f64() * 1e3;
    fs::remove_file(image)?;
    rustix::fs::sync();
    Ok(took)
}

fn copy(tree: &Path, image: &Path) -> io::Result<()> {
    let mut to = File::create(image)?;
    let mut buffer = vec![0; 1 << 20];
    let mut ahead = vec![tree.to_owned()];
    while let Some(folder) = ahead.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            match entry.file_type()? {
                kind if kind.is_dir() => ahead.push(entry.path()),
                kind if kind.is_file() => {
                    let mut from = File::open(entry.path())?;
                    loop {
                        match from.read(&mut buffer)? {
                            0 => break,
                            got => to.write_all(&buffer[..got])?,
                        }
                    }
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn make_by_mke2fs(tree: &Path, image: &Path) -> Outcome<()> {
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-N", "40000", "-d"]).arg(tree).arg(image).arg("1G");
    succeed(&mut mke2fs)
}

fn pack(tree: &Path, layer: &Path) -> Outcome<()> {
    let mut tar = Command::new("tar");
    succeed(
        tar.args(["--format=pax", "--numeric-owner", "-I", "gzip -1", "-C"])
            .arg(tree)
            .arg("-cf")
            .arg(layer)
            .arg("."),
    )
}

fn succeed(command: &mut Command) -> Outcome<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// A tree as images have them: one directory with very many small files, and libraries of all sizes in others.
fn grow(tree: &Path) -> io::Result<usize> {
    let noise = noise(1 << 20);
    let mut entries = 0;
    let mut file = |path: PathBuf, len: usize| -> io::Result<()> {
        entries += 1;
        let mut file = File::create(path)?;
        for piece in 0..=len / noise.len() {
            let want = noise.len().min(len - piece * noise.len());
            file.write_all(&noise[..want])?;
        }
        Ok(())
    };
    let flat = tree.join("flat");
    fs::create_dir_all(&flat)?;
    for number in 0..FLAT {
        file(flat.join(format!("module-{number:05}.js")), 200 + number * 31 % 3000)?;
    }
    for number in 0..SPREAD {
        let folder = tree.join(format!("usr/lib/{:02}/{}", number / 600, number / 60));
        if number % 60 == 0 {
            fs::create_dir_all(&folder)?;
        }
        file(folder.join(format!("lib{number}.so")), number * 4177 % 50_000)?;
    }
    file(tree.join("large"), 200 << 20)?;
    Ok(entries + SPREAD.div_ceil(60) + SPREAD.div_ceil(600) + 3)
}

/// An archive of 2 GiB in 30,000 files.
fn large_layer(path: &Path) -> io::Result<()> {
    const FILES: usize = 30_000;
    let noise = noise(1 << 20);
    let mut to = io::BufWriter::with_capacity(1 << 20, File::create(path)?);
    for number in 0..FILES {
        // One in three is large.
        let len = if number % 3 == 0 { 190_000 + number } else { 1000 + number % 20_000 };
        let mut header = tar_header(&format!("usr/share/{}/{number}", number / 300), len);
        header.extend_from_slice(&noise[..len.min(noise.len())]);
        header.resize(header.len().next_multiple_of(512), 0);
        to.write_all(&header)?;
    }
    to.write_all(&[0; 1024])?;
    to.flush()
}

fn tar_header(path: &str, size: usize) -> Vec<u8> {
    let mut block = vec![0; 512];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, path);
    put(100, "0000644");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, "14523513400");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = block.iter().map(|byte: &u8| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Bytes that are always the same and compress by half.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state & 0x0f0f_0f0f_0f0f_0f0f | 0x4040_4040_4040_4040).to_le_bytes()
    });
    words.flatten().take(len).collect()
}
