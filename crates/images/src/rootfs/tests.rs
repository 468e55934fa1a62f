//! Layers and what they make, on trees small enough to be written out.

mod exported;
mod hostile;
mod layers;
mod made;

use std::io::Write;

use super::merge;
use super::tree::{Id, Node, ROOT, Tree};
use super::watch::Watch;
use super::{Layer, Limits, RootfsError};
use crate::Digest;
use crate::blocking::Abandoned;
use crate::progress::Progress;

/// An archive being written by hand, so that it can be wrong in any way.
#[derive(Default, Clone)]
pub(super) struct Archive(Vec<u8>);

/// One header.
#[derive(Clone)]
pub(super) struct Head<'a> {
    pub(super) path: &'a str,
    pub(super) link: &'a str,
    pub(super) flag: u8,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) size: u64,
    pub(super) mtime: i64,
    pub(super) device: (u32, u32),
}

impl<'a> Head<'a> {
    pub(super) fn new(path: &'a str, flag: u8) -> Self {
        Self { path, link: "", flag, mode: 0o644, uid: 0, size: 0, mtime: 1_700_000_000, device: (0, 0) }
    }
}

impl Archive {
    pub(super) fn head(mut self, head: &Head<'_>) -> Self {
        let mut block = [0u8; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, head.path.as_bytes());
        put(100, format!("{:07o}", head.mode).as_bytes());
        put(108, format!("{:07o}", head.uid).as_bytes());
        put(116, format!("{:07o}", head.uid).as_bytes());
        put(124, format!("{:011o}", head.size).as_bytes());
        put(136, format!("{:011o}", head.mtime).as_bytes());
        put(156, &[head.flag]);
        put(157, head.link.as_bytes());
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}", head.device.0).as_bytes());
        put(337, format!("{:07o}", head.device.1).as_bytes());
        put(148, b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&block);
        self
    }

    pub(super) fn data(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn file(self, path: &str, data: &[u8]) -> Self {
        self.head(&Head { size: data.len() as u64, ..Head::new(path, b'0') }).data(data)
    }

    pub(super) fn dir(self, path: &str) -> Self {
        self.head(&Head { mode: 0o755, ..Head::new(path, b'5') })
    }

    pub(super) fn symlink(self, path: &str, link: &str) -> Self {
        self.head(&Head { link, mode: 0o777, ..Head::new(path, b'2') })
    }

    pub(super) fn hardlink(self, path: &str, link: &str) -> Self {
        self.head(&Head { link, ..Head::new(path, b'1') })
    }

    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (1..).find(|digits| (rest + digits).to_string().len() == *digits).unwrap() + rest;
            write!(data, "{length} {key}=").unwrap();
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.head(&Head { size: data.len() as u64, ..Head::new("PaxHeaders/x", b'x') }).data(&data)
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }

    pub(super) fn layer(self) -> Layer {
        Layer::memory("layer", self.end())
    }
}

pub(super) fn merged(layers: &[Layer], limits: &Limits) -> Result<Tree, RootfsError> {
    let watch = Watch::new(&Abandoned::never(), &Progress::none(), "test", None);
    merge::layers(layers, true, limits, &watch).map(|(tree, _)| tree)
}

/// All paths of a tree, with the kind (and for files the size) of each; hardlinks show the first path.
pub(super) fn listing(tree: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    let mut seen = std::collections::HashMap::new();
    let mut ahead: Vec<(String, Id)> = vec![(String::new(), ROOT)];
    while let Some((path, id)) = ahead.pop() {
        let inode = tree.get(id);
        let what = match &inode.node {
            Node::Directory(directory) => {
                let names = directory.names.iter().rev();
                ahead.extend(names.map(|(name, child)| (format!("{path}/{name}"), child.id)));
                "/".to_owned()
            }
            Node::File(file) => format!(" {}", file.size),
            Node::Symlink(target) => format!(" -> {target}"),
            Node::CharDevice(major, minor) => format!(" c{major}:{minor}"),
            Node::BlockDevice(major, minor) => format!(" b{major}:{minor}"),
            Node::Fifo => " fifo".to_owned(),
            Node::Socket => " socket".to_owned(),
            Node::Gone => " GONE".to_owned(),
        };
        match seen.insert(id, path.clone()) {
            Some(first) => {
                lines.push(format!("{path} = {first}"));
                seen.insert(id, first);
            }
            None if id != ROOT => lines.push(format!("{path}{what}")),
            None => {}
        }
    }
    lines
}

pub(super) fn layers_make(layers: &[Archive], expected: &[&str]) {
    let layers: Vec<Layer> = layers.iter().map(|archive| archive.clone().layer()).collect();
    let tree = merged(&layers, &Limits::default()).unwrap();
    assert_eq!(listing(&tree), expected);
}
