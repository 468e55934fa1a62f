//! Where the data of a file with holes is.

use std::io::{self, Read};

/// A block of the file system, in bytes. Holes are whole blocks.
pub(super) const BLOCK: u64 = 4096;

/// Ranges of a file that have data, as offset and length: ascending, apart, none empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Map(Vec<(u64, u64)>);

impl Map {
    /// Checks and takes ranges; empty ones are left out, for the last one only marks the end.
    pub(super) fn new(ranges: impl IntoIterator<Item = (u64, u64)>, size: u64) -> Result<Self, &'static str> {
        let mut end = 0;
        let mut map = Vec::new();
        for (offset, len) in ranges {
            let next = offset.checked_add(len).filter(|next| *next <= size);
            let next = next.ok_or("has a sparse map that reaches beyond its size")?;
            if len == 0 {
                continue;
            }
            if offset < end {
                return Err("has a sparse map whose ranges overlap");
            }
            end = next;
            map.push((offset, len));
        }
        Ok(Self(map))
    }

    /// Bytes of data.
    pub(super) fn stored(&self) -> u64 {
        self.0.iter().map(|(_, len)| len).sum()
    }

    /// The same, widened to whole blocks (but not beyond the end), as starts and ends.
    pub(super) fn blocks(&self, size: u64) -> Vec<(u64, u64)> {
        let mut blocks: Vec<(u64, u64)> = Vec::new();
        for (offset, len) in &self.0 {
            let start = offset / BLOCK * BLOCK;
            let end = (offset + len).div_ceil(BLOCK).saturating_mul(BLOCK).min(size);
            match blocks.last_mut() {
                Some((_, last)) if *last >= start => *last = end.max(*last),
                _ => blocks.push((start, end)),
            }
        }
        blocks
    }
}

/// Reads the blocks of a sparse file (see [`Map::blocks`]) one after another, from a reader that has the
/// bytes of the map one after another.
pub(super) struct Blocks<R> {
    inner: R,
    map: std::iter::Peekable<std::vec::IntoIter<(u64, u64)>>,
    blocks: std::iter::Peekable<std::vec::IntoIter<(u64, u64)>>,
    position: u64,
}

impl<R: Read> Blocks<R> {
    pub(super) fn new(inner: R, map: Map, size: u64) -> Self {
        let blocks = map.blocks(size).into_iter().peekable();
        Self { inner, map: map.0.into_iter().peekable(), blocks, position: 0 }
    }
}

impl<R: Read> Read for Blocks<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.blocks.next_if(|(_, end)| *end <= self.position).is_some() {}
        let Some((start, end)) = self.blocks.peek().copied() else { return Ok(0) };
        self.position = self.position.max(start);
        while self.map.next_if(|(offset, len)| offset + len <= self.position).is_some() {}
        let wanted = |until: u64| into.len().min(usize::try_from(until).unwrap_or(usize::MAX));
        let got = match self.map.peek() {
            Some((offset, len)) if *offset <= self.position => {
                let want = wanted((offset + len).min(end) - self.position);
                self.inner.read(&mut into[..want])?
            }
            next => {
                let until = next.map_or(end, |(offset, _)| end.min(*offset));
                let zeros = wanted(until - self.position);
                into[..zeros].fill(0);
                zeros
            }
        };
        self.position += got as u64;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_widened_to_blocks_and_filled_with_zeros() {
        let size = 40_000;
        let map = Map::new([(10, 5), (100, 3), (9000, 8000), (39_999, 1), (40_000, 0)], size).unwrap();
        assert_eq!(map.blocks(size), [(0, 4096), (8192, 20_480), (36_864, 40_000)]);
        let data: Vec<u8> = (0..map.stored()).map(|at| (at % 255 + 1) as u8).collect();
        let mut whole = vec![0; size as usize];
        let mut at = 0;
        for (offset, len) in &map.0 {
            let (offset, len) = (*offset as usize, *len as usize);
            whole[offset..offset + len].copy_from_slice(&data[at..at + len]);
            at += len;
        }
        let expected: Vec<u8> =
            map.blocks(size).iter().flat_map(|(a, b)| whole[*a as usize..*b as usize].to_vec()).collect();
        let mut read = Vec::new();
        Blocks::new(&data[..], map, size).read_to_end(&mut read).unwrap();
        assert!(read == expected);
    }

    #[test]
    fn lying_maps_are_refused() {
        assert!(Map::new([(0, 11)], 10).is_err());
        assert!(Map::new([(5, 5), (0, 1)], 10).is_err());
        assert!(Map::new([(0, 5), (4, 1)], 10).is_err());
        assert!(Map::new([(u64::MAX, 2)], 10).is_err());
        assert_eq!(Map::new([(0, 0)], 10).unwrap().blocks(10), []);
    }
}
