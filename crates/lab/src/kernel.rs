//! What first processes of the lab and of its guests ask of their kernel.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Loads every module file of a directory, in the order of their names.
pub fn load_all(dir: &Path) -> io::Result<()> {
    let mut files = fs::read_dir(dir)?.map(|item| Ok(item?.path())).collect::<io::Result<Vec<_>>>()?;
    files.sort();
    for path in files {
        match rustix::system::finit_module(File::open(&path)?, c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(io::Error::other(format!("module {}: {error}", path.display()))),
        }
    }
    Ok(())
}

/// The value of `name=value` on a kernel command line; the last one counts.
pub fn argument<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_whitespace().filter_map(|word| word.strip_prefix(name)?.strip_prefix('=')).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_argument_counts_and_prefixes_do_not() {
        assert_eq!(argument("a.b=1 a.bc=2 a.b=3\n", "a.b"), Some("3"));
        assert_eq!(argument("a.bc=2", "a.b"), None);
    }
}
