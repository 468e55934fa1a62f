//! Archives that are appended to a kernel's initramfs.

use std::io;

pub use smartvm_core::initramfs::Archive;
use smartvm_guest_api::boot::layout;

/// An archive to be appended to an initramfs, whose files it adds to or replaces: [`layout::ORDERS`] with these orders.
/// What is appended must begin at a multiple of four bytes, and archives of [`Archive`] end at one.
pub fn with_orders(orders: &str) -> io::Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::new());
    archive.file(layout::ORDERS, 0o600, orders.as_bytes())?;
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_an_archive_of_their_own() {
        let whole = [first(), with_orders("smartvm.root=dev:vda").unwrap()].concat();
        let first = first().len();
        assert_eq!(first % 4, 0);
        let reader = cpio::newc::Reader::new(&whole[first..]).unwrap();
        assert_eq!(reader.entry().name(), "etc/smartvm/orders");
        assert_eq!(reader.entry().file_size(), 20);
    }

    fn first() -> Vec<u8> {
        let mut archive = Archive::new(Vec::new());
        archive.file("/init", 0o755, b"#!/bin/sh\n").unwrap();
        archive.finish().unwrap()
    }
}
