//! Which tile is fastest, where that was found out: by card, weight and rows.
//!
//! A table is text: `#` begins a comment; then lines in this order, words apart by spaces.
//!
//! ```text
//! chip 90 132 232448
//! measured NVIDIA H200, 2026-11-26
//! 250 4096 16384 _sm90_128x128 2 55.6
//! ```
//!
//! The chip is its compute capability, its multiprocessors and the shared memory of a block in
//! bytes. The second line is `measured` with what and when, or `predicted`, where no card was at
//! hand and the rows are what [`Tile::predicted_us`] says. A row is m n k of a product (m,k) by
//! (n,k)^T, its fastest tile, the parts of k, and its time in us. `medflamingo-tools tiles` writes
//! such a table; two are in this binary, and the one that `MEDFLAMINGO_TILES` names comes first.

use super::Tiling;
use super::tile::{PARTS, TILES, Tile};
use crate::contracts::GemmParams;
use crate::device::Chip;
use crate::ops::gemm_shape;
use crate::ops::layout::groups;
use crate::{DType, Error, Result};
use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{LazyLock, OnceLock};

/// The variable that names a table.
const FILE: &str = "MEDFLAMINGO_TILES";
/// A table is a stranger's file. Its most bytes, comments included, and rows.
const MOST_BYTES: usize = 1 << 20;
const MOST_ROWS: usize = 4096;
/// What m, n and k are below: coordinates have 32 bits.
const MOST_SIZE: i64 = 1 << 30;

/// The fastest tiles of products on one card.
#[derive(Debug)]
pub struct TileTable {
    chip: Chip,
    /// On what and when; None if it is predicted.
    measured: Option<String>,
    /// In the order of [`TileRow::key`], which no two share.
    rows: Vec<TileRow>,
}

/// The fastest tile of a product (m,k) by (n,k)^T.
#[derive(Clone, Copy, Debug)]
pub struct TileRow {
    /// m, n, k.
    pub shape: [i64; 3],
    /// Blocks that share the sums of a tile.
    pub parts: i64,
    /// What it took, or should take, us.
    pub us: f64,
    tile: &'static Tile,
}

impl TileRow {
    /// As in [`Geometry::variant`](crate::device::Geometry::variant).
    pub fn variant(&self) -> &'static str {
        self.tile.variant
    }

    fn key(&self) -> [i64; 3] {
        key(self.shape)
    }
}

/// What a row stands for: its weight, and as many groups of 64 rows, so that every tile has as many
/// blocks.
fn key([m, n, k]: [i64; 3]) -> [i64; 3] {
    [n, k, groups(m, 64)]
}

impl TileTable {
    /// Reads a table; `name` is what errors call it, such as its path.
    ///
    /// # Errors
    /// Name and line of what is not as the format has it, no tile of the chip, or no such parts.
    pub fn parse(name: impl Display, text: &str) -> Result<Self> {
        let (mut chip, mut measured, mut rows) = (None, None, Vec::<TileRow>::new());
        let lines = (1..).zip(text.lines().map(str::trim));
        for (n, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            let wrong = |(expected, found): Wrong| {
                Error::invalid(format!("{name}: line {n}"), expected, found).advise(ADVICE)
            };
            let Some(chip) = &chip else {
                chip = Some(parse_chip(line).map_err(wrong)?);
                continue;
            };
            if measured.is_none() {
                measured = Some(parse_measured(line).map_err(wrong)?);
                continue;
            }
            let row = parse_row(line, chip).map_err(wrong)?;
            let at = rows.binary_search_by_key(&row.key(), TileRow::key);
            match at {
                Err(at) if rows.len() < MOST_ROWS => rows.insert(at, row),
                Err(_) => {
                    return Err(wrong((format!("at most {MOST_ROWS} rows"), "one more".into())));
                }
                Ok(at) => {
                    let [m, n, k] = rows[at].shape;
                    let expected = "one row for a weight (n,k) and as many groups of 64 rows of m";
                    return Err(wrong((expected.into(), format!("another like {m} {n} {k}"))));
                }
            }
        }
        match (chip, measured) {
            (Some(chip), Some(measured)) if !rows.is_empty() => {
                Ok(TileTable { chip, measured, rows })
            }
            _ => {
                Err(Error::invalid(name, "a chip, `measured` or `predicted`, and rows", "the end")
                    .advise(ADVICE))
            }
        }
    }

    /// Reads a file of at most 1 MiB.
    fn read(path: &Path) -> Result<Self> {
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MOST_BYTES as u64 + 1).read_to_end(&mut bytes))
            .map_err(|e| Error::io("read", path, e))?;
        let wrong = |found| {
            let expected = format!("a table of tiles: text of at most {MOST_BYTES} bytes");
            Error::invalid(path.display(), expected, found).advise(ADVICE)
        };
        if bytes.len() > MOST_BYTES {
            return Err(wrong("more"));
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| wrong("bytes that are no UTF-8"))?;
        TileTable::parse(path.display(), text)
    }

    /// What the table is for.
    pub fn chip(&self) -> &Chip {
        &self.chip
    }

    /// On what and when it was measured; None if it is predicted.
    pub fn measured(&self) -> Option<&str> {
        self.measured.as_deref()
    }

    /// By weight, then by rows.
    pub fn rows(&self) -> &[TileRow] {
        &self.rows
    }

    /// The tile and the parts of k of the row that stands for `p`, if they can be.
    fn fastest(&self, p: &GemmParams, dtype: DType) -> Option<(&'static Tile, i64)> {
        let at = self.rows.binary_search_by_key(&key([p.m, p.n, p.k]), TileRow::key).ok()?;
        let TileRow { tile, parts, .. } = self.rows[at];
        let fits = tile.takes(p, dtype, &self.chip) && tile.splits(p, parts);
        fits.then_some((tile, parts))
    }

    /// How it was found, in words.
    fn origin(&self) -> String {
        self.measured().map_or("predicted".into(), |what| format!("measured on {what}"))
    }
}

const ADVICE: &str = "`medflamingo-tools tiles --output FILE` writes a table; without \
     MEDFLAMINGO_TILES those of the binary count";

/// What was expected, what was found.
type Wrong = (String, String);

/// A word or line of a stranger, fit for a message.
fn shown(text: &str) -> String {
    const MOST: usize = 60;
    let cut: String = text.chars().take(MOST).collect();
    let more = if cut.len() < text.len() { "..." } else { "" };
    format!("`{}{more}`", cut.escape_debug())
}

fn parse_chip(line: &str) -> Result<Chip, Wrong> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let found = match words[..] {
        ["chip", a, b, c] => [a, b, c].map(|word| word.parse().ok().filter(|n| *n > 0)),
        _ => [None; 3],
    };
    match found {
        [Some(capability), Some(multiprocessors), Some(shared_bytes)] => {
            Ok(Chip { capability, multiprocessors, shared_bytes })
        }
        _ => Err(("`chip CAPABILITY MULTIPROCESSORS SHARED_BYTES`".into(), shown(line))),
    }
}

fn parse_measured(line: &str) -> Result<Option<String>, Wrong> {
    match line.split_once(char::is_whitespace) {
        None if line == "predicted" => Ok(None),
        Some(("measured", what)) => Ok(Some(what.trim().into())),
        _ => Err(("`measured CARD, DAY` or `predicted`".into(), shown(line))),
    }
}

fn parse_row(line: &str, chip: &Chip) -> Result<TileRow, Wrong> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [m, n, k, variant, parts, us] = words[..] else {
        return Err(("`M N K TILE PARTS US`".into(), shown(line)));
    };
    let size = |word: &str| {
        let size = word.parse().ok().filter(|n| (1..MOST_SIZE).contains(n));
        size.ok_or_else(|| (format!("m, n and k of 1 to {}", MOST_SIZE - 1), shown(word)))
    };
    let shape = [size(m)?, size(n)?, size(k)?];
    let p = gemm_shape(shape);
    let list = |all: Vec<String>| all.join(", ");
    let takes = |tile: &&Tile| tile.takes(&p, DType::BF16, chip);
    let tile =
        TILES.iter().filter(takes).find(|tile| tile.variant == variant).ok_or_else(|| {
            let all = TILES.iter().filter(takes).map(|tile| tile.variant.to_string()).collect();
            (format!("a tile of this chip for this product: {}", list(all)), shown(variant))
        })?;
    let can_be = |parts: &i64| tile.splits(&p, *parts);
    let parts = parts.parse().ok().filter(|n| PARTS.contains(n) && can_be(n)).ok_or_else(|| {
        let all = PARTS.into_iter().filter(can_be).map(|n| n.to_string()).collect();
        (format!("parts that k can be split into here: {}", list(all)), shown(parts))
    })?;
    let us = us.parse().ok().filter(|us: &f64| us.is_finite() && *us >= 0.0);
    let us = us.ok_or_else(|| ("a time in us".into(), shown(words[5])))?;
    Ok(TileRow { shape, parts, us, tile })
}

/// The lines of a table before its rows; `measured` is on what and when, None if it is predicted.
pub fn tile_heading(chip: &Chip, measured: Option<&str>) -> String {
    let Chip { capability, multiprocessors, shared_bytes } = chip;
    let measured = measured.map_or("predicted".into(), |what| format!("measured {what}"));
    format!(
        "# Tiles of gemm, as medflamingo-tools tiles writes them and {FILE} reads them.\n\
         # chip: compute capability, multiprocessors, shared memory of a block in bytes.\n\
         chip {capability} {multiprocessors} {shared_bytes}\n\
         {measured}\n\
         # m n k tile parts us\n"
    )
}

/// A row of a table.
pub fn tile_line([m, n, k]: [i64; 3], tiling: &Tiling, us: f64) -> String {
    let Tiling { variant, parts, .. } = tiling;
    format!("{m} {n} {k} {variant} {parts} {us:.1}")
}

/// The tables of this binary; the tests read them.
static EMBEDDED: LazyLock<[TileTable; 2]> = LazyLock::new(|| {
    let tables = [include_str!("tables/a100.txt"), include_str!("tables/h200.txt")];
    tables.map(|text| TileTable::parse("tables of this binary", text).expect("tested"))
});

/// The table that [`FILE`] names, with the name, once a device that has tiles was opened. Of the
/// process, like the variable: it is for whichever card it names, so a [`Chip`], which is compared
/// and copied, need not carry it, and a launch pays one load to see it.
static GIVEN: OnceLock<Option<(String, TileTable)>> = OnceLock::new();

/// Reads the tables before the first launch asks for a tile, those of the binary too; the one that
/// [`FILE`] names, if any.
///
/// # Errors
/// If that file cannot be read, or is no table; the next call reads it again.
pub(in crate::ops) fn read_tiles() -> Result<Option<&'static (String, TileTable)>> {
    LazyLock::force(&EMBEDDED);
    if GIVEN.get().is_none() {
        let path = std::env::var_os(FILE).filter(|path| !path.is_empty());
        let table = path.map(|path| {
            let path = Path::new(&path);
            Ok((path.display().to_string(), TileTable::read(path)?))
        });
        let _ = GIVEN.set(table.transpose()?);
    }
    Ok(GIVEN.get().and_then(Option::as_ref))
}

/// Which table products on cards like `chip` are laid out by, in words.
///
/// # Errors
/// If `MEDFLAMINGO_TILES` names a file that cannot be read, or is no table.
pub fn tiles_in_use(chip: &Chip) -> Result<String> {
    let given = read_tiles()?;
    let own = EMBEDDED.iter().find(|table| table.chip == *chip);
    let own = own.map_or("none, by estimate".into(), |t| format!("{}, built in", t.origin()));
    Ok(match given {
        Some((name, table)) if table.chip == *chip => format!("{}, {name}", table.origin()),
        Some((name, table)) => {
            let Chip { capability, multiprocessors, shared_bytes } = table.chip;
            format!(
                "{own}; {name} is for another chip: compute {}.{}, {multiprocessors} \
                 multiprocessors, {shared_bytes} bytes of shared memory",
                capability / 10,
                capability % 10
            )
        }
        None => own,
    })
}

/// The tile for the class of `p` (see [`key`]) by the table that is given, else by the binary's.
pub(super) fn fastest(p: &GemmParams, dtype: DType, chip: &Chip) -> Option<(&'static Tile, i64)> {
    let given = GIVEN.get().and_then(Option::as_ref).map(|(_, table)| table);
    among(given.into_iter().chain(EMBEDDED.iter()), p, dtype, chip)
}

fn among<'a>(
    tables: impl Iterator<Item = &'a TileTable>,
    p: &GemmParams,
    dtype: DType,
    chip: &Chip,
) -> Option<(&'static Tile, i64)> {
    tables.filter(|table| table.chip == *chip).find_map(|table| table.fastest(p, dtype))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gemm::gemm_tilings;

    #[test]
    fn what_is_predicted_is_what_the_estimate_says() {
        let mut predicted = 0;
        for table in EMBEDDED.iter().filter(|t| t.measured.is_none()) {
            for row in &table.rows {
                let all = gemm_tilings(&gemm_shape(row.shape), DType::BF16, &table.chip);
                let own = |v: &str| v.starts_with("_sm90") == table.chip.has_wgmma();
                let usual = all.iter().filter(|t| own(t.variant) && t.variant != "_plain");
                let best = usual.min_by(|a, b| a.predicted_us.total_cmp(&b.predicted_us)).unwrap();
                let found = (best.variant, best.parts, (best.predicted_us * 10.0).round() / 10.0);
                assert_eq!((row.variant(), row.parts, row.us), found, "{:?}", row.shape);
                predicted += 1;
            }
        }
        assert_eq!(predicted, 38);
    }

    fn choice<'a>(
        tables: impl IntoIterator<Item = &'a TileTable>,
        shape: [i64; 3],
        chip: &Chip,
    ) -> Option<(&'static str, i64)> {
        let found = among(tables.into_iter(), &gemm_shape(shape), DType::BF16, chip);
        found.map(|(tile, parts)| (tile.variant, parts))
    }

    #[test]
    fn a_row_stands_for_its_weight_and_as_many_groups_of_rows() {
        let own = || EMBEDDED.iter();
        for m in [193, 250, 256] {
            let found = choice(own(), [m, 4096, 16384], &Chip::H200);
            assert_eq!(found, Some(("_sm90_128x128", 2)), "{m}");
        }
        for other in [[192, 4096, 16384], [257, 4096, 16384], [250, 4096, 16392]] {
            assert_eq!(choice(own(), other, &Chip::H200), None);
        }
        let another = Chip { multiprocessors: 114, ..Chip::H200 };
        assert_eq!(choice(own(), [250, 4096, 16384], &another), None);
        // Without a workspace the row's parts cannot be.
        let alone =
            GemmParams { workspace: std::ptr::null_mut(), ..gemm_shape([250, 4096, 16384]) };
        assert!(fastest(&alone, DType::BF16, &Chip::H200).is_none());
    }

    const TABLE: &str = "# by hand\nchip 90 132 232448\nmeasured a card, a day\n\
         \n  250 4096\t16384 _64x64 3 50.0\n# 1 2\n40 512 4096 _sm90_64x128 1 9\n";

    #[test]
    fn a_given_row_comes_before_the_binarys_and_for_its_chip_only() {
        let given = TileTable::parse("given", TABLE).unwrap();
        let first = |shape, chip| choice([&given].into_iter().chain(EMBEDDED.iter()), shape, chip);
        assert_eq!(first([256, 4096, 16384], &Chip::H200), Some(("_64x64", 3)));
        // What it does not have, the binary's still do.
        assert_eq!(first([250, 4096, 4096], &Chip::H200), Some(("_sm90_128x128", 2)));
        assert_eq!(first([250, 4096, 16384], &Chip::A100), Some(("_128x128", 3)));
        let found: Vec<_> = given.rows.iter().map(|r| (r.shape, r.variant(), r.us)).collect();
        let [small, large] = [[40, 512, 4096], [250, 4096, 16384]];
        assert_eq!(found, [(small, "_sm90_64x128", 9.0), (large, "_64x64", 50.0)]);
        assert_eq!(given.measured(), Some("a card, a day"));
    }

    #[test]
    fn what_is_no_table_is_refused_by_line() {
        let rows = |row: &str| format!("{TABLE}{row}\n");
        let many: Vec<_> =
            (1..=MOST_ROWS as i64).map(|n| format!("1 {n} 64 _plain 1 1\n")).collect();
        for (text, line, needles) in [
            ("", "", &["a chip", "the end"][..]),
            ("chip 90 132 232448\npredicted\n", "", &["rows", "the end"]),
            ("\u{1b}[2J", "line 1", &["`chip CAPABILITY", "`\\u{1b}[2J`"]),
            ("\nchip 90 132\n", "line 2", &["SHARED_BYTES`", "`chip 90 132`"]),
            ("chip 90 0 232448\n", "line 1", &["MULTIPROCESSORS"]),
            ("chip 90 -132 232448\n", "line 1", &["MULTIPROCESSORS"]),
            ("chip 90 132 232448\nmeasured\n", "line 2", &["`predicted`", "`measured`"]),
            (&rows("250 4096 4096 _64x64 1"), "line 8", &["`M N K TILE PARTS US`"]),
            (&rows(&"7 ".repeat(9000)), "line 8", &["`M N K TILE PARTS US`", "..."]),
            (&rows("0 4096 4096 _64x64 1 1"), "line 8", &["1 to 1073741823", "`0`"]),
            (&rows("1 -5 4096 _64x64 1 1"), "line 8", &["1 to", "`-5`"]),
            (&rows("1 1 99999999999999999999 _64x64 1 1"), "line 8", &["1 to"]),
            (&rows("1 1 1073741824 _64x64 1 1"), "line 8", &["1 to"]),
            (&rows("1 64 64 _63x64 1 1"), "line 8", &["a tile", "_64x64, _plain", "`_63x64`"]),
            (&rows("1 64 60 _64x64 1 1"), "line 8", &["product: _plain,"]),
            (&rows("250 4096 4096 _64x64 5 1"), "line 8", &["1, 2, 3, 4, 6,", "`5`"]),
            (&rows("250 4096 1024 _64x64 4 1"), "line 8", &["here: 1, 2,", "`4`"]),
            (&rows("250 4096 4096 _sm90_turns_128x128 2 1"), "line 8", &["here: 1,", "`2`"]),
            (&rows("250 4096 4096 _64x64 1 nan"), "line 8", &["a time in us", "`nan`"]),
            (&rows("250 4096 4096 _64x64 1 -1"), "line 8", &["a time in us"]),
            (&rows("193 4096 16384 _64x64 1 1"), "line 8", &["one row", "250 4096 16384"]),
            (&rows(&many.concat()), "line 4102", &["at most 4096 rows"]),
        ] {
            let e = TileTable::parse("file", text).unwrap_err();
            assert_eq!(e.exit_code(), 2);
            let e = e.to_string().replace('\n', ",");
            let has_line = e.starts_with(&format!("file: {line}"));
            assert!(has_line && needles.iter().all(|n| e.contains(n)), "{needles:?}: {e}");
            assert!(e.len() < 600 && e.contains("medflamingo-tools tiles"), "{e}");
        }
        // A tile of Hopper's on another chip.
        let text = "chip 80 108 166912\npredicted\n250 4096 4096 _sm90_128x128 1 1\n";
        let e = TileTable::parse("file", text).unwrap_err().to_string();
        assert!(e.contains("line 3") && e.contains("_128x128, _64x64, _plain, found"), "{e}");
    }

    #[test]
    fn a_file_is_text_of_bounded_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiles.txt");
        let refused = |bytes: &[u8], found: &str| {
            std::fs::write(&path, bytes).unwrap();
            let e = TileTable::read(&path).unwrap_err().to_string();
            assert!(e.contains("tiles.txt") && e.contains(found), "{e}");
        };
        refused(&[b'#'; MOST_BYTES + 1], "1048576 bytes, found more");
        refused(b"chip \xff", "no UTF-8");
        refused(b"#", "found the end");
        let padded = format!("{TABLE}#{}", " ".repeat(MOST_BYTES - TABLE.len() - 1));
        std::fs::write(&path, padded).unwrap();
        assert_eq!(TileTable::read(&path).unwrap().rows.len(), 2);
        assert!(TileTable::read(folder.path()).is_err(), "a folder");
        assert!(TileTable::read(&folder.path().join("away")).is_err());
    }
}
