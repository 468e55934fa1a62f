//! How data is put before people: tables and sizes.

use comfy_table::{CellAlignment, ContentArrangement};
use smartvm::images::Digest;

use crate::report::on_one_line;

/// A table without lines, as `ps` and `df` print them. Columns of numbers stand right.
pub(crate) struct Table {
    table: comfy_table::Table,
    columns: usize,
}

impl Table {
    /// With these headings. One that begins with `>` stands right, as does its column.
    pub(crate) fn new(headings: &[&str]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(headings.iter().map(|heading| heading.trim_start_matches('>')));
        for (index, heading) in headings.iter().enumerate() {
            if let Some(column) = table.column_mut(index) {
                column.set_padding((0, 2));
                if heading.starts_with('>') {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        Self { table, columns: headings.len() }
    }

    /// One row. What comes from elsewhere has no hold on the terminal.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(self.columns, N, "a cell for each heading");
        self.table.add_row(cells.map(|cell| on_one_line(&cell)));
    }

    /// As text; the headings are bold in colour.
    pub(crate) fn text(&self, colour: bool) -> String {
        let mut text = String::new();
        for (index, line) in self.table.lines().enumerate() {
            let line = line.trim_end();
            match (index, colour) {
                (0, true) => text += &format!("\x1b[1m{line}\x1b[0m\n"),
                _ => text += &format!("{line}\n"),
            }
        }
        text
    }
}

/// A size for people: three digits or four, and a unit by powers of 1024.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "four digits are printed")]
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would be rounded to 1024.0 is one of the next unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A size that may not be known.
pub(crate) fn size_if_known(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unknown size".to_owned(), size)
}

/// As much of a digest as people compare: twelve digits. Every command that takes an id takes these.
pub(crate) fn short(digest: &Digest) -> String {
    digest.hex().chars().take(12).collect()
}

/// "1 image", "2 images".
pub(crate) fn count(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_and_have_a_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1_048_575, "1.0 MiB"),
            (1_048_576, "1.0 MiB"),
            (13_000_000_000, "12.1 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn numbers_stand_right_and_no_line_has_blanks_at_its_end() {
        let mut table = Table::new(&["NAME", ">SIZE", "NOTE"]);
        table.row(["a".into(), "1.0 KiB".into(), "x\x1b[2J".into()]);
        table.row(["longer".into(), "2 B".into(), String::new()]);
        assert_eq!(
            table.text(false),
            "NAME       SIZE  NOTE\na       1.0 KiB  x\u{fffd}[2J\nlonger      2 B\n"
        );
        assert!(table.text(true).starts_with("\x1b[1mNAME       SIZE  NOTE\x1b[0m\n"));
    }
}
