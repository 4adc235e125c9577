//! `medflamingo-tools phantom`.

use crate::report;
use clap::Args;
use medflamingo::image::{Mode, Picture, encode_png};
use medflamingo::phantom::{Kind, Page, Pages, SIDE, Split};
use medflamingo::{Error, Result};
use std::path::{Path, PathBuf};

/// Draw synthetic phantom studies: pictures, captions, questions, few-shot episodes.
///
/// These are what the small model that comes with this program was trained on. They have no medical
/// meaning. The same seed gives the same bytes on every machine.
#[derive(Args)]
pub struct Phantom {
    /// A folder to make, with `pages.jsonl` and a PNG for each picture
    #[arg(long, value_name = "DIR", required_unless_present = "sheet")]
    output: Option<PathBuf>,
    /// A PNG file to make, with the pictures side by side
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,
    #[arg(long, value_name = "LIST", default_value = "caption=1", help = kinds())]
    #[arg(value_parser = mix)]
    kinds: Mix,
    /// How many pages
    #[arg(long, value_name = "N", default_value_t = 96)]
    pages: u64,
    /// What the random numbers start from
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

/// Kinds with weights; a type of its own, or the parser would take the list for many values.
#[derive(Clone, Debug)]
struct Mix(Vec<(Kind, u32)>);

fn kinds() -> String {
    let names = Kind::ALL.map(Kind::name).join(", ");
    format!("Kinds of pages and their weights, such as shots=1,words=2; of {names}")
}

fn mix(text: &str) -> Result<Mix> {
    Kind::mix(text).map(Mix)
}

impl Phantom {
    pub fn run(self) -> Result<()> {
        let source = Pages::new(self.seed, Split::Train, self.kinds.0)?;
        let pages: Vec<Page> = (0..self.pages).map(|i| source.page(i)).collect();
        if let Some(file) = &self.sheet {
            let mut pictures = Vec::new();
            for page in &pages {
                pictures.extend(page.pictures()?);
            }
            write(file, &encode_png(&sheet(&pictures)?)?)?;
            eprintln!("made {}, {} pictures", file.display(), pictures.len());
        }
        if let Some(folder) = &self.output {
            std::fs::create_dir(folder).map_err(|e| Error::io("create", folder, e))?;
            let lines = pages.iter().enumerate().map(|(i, page)| line(folder, i, page));
            let lines: String = lines.collect::<Result<_>>()?;
            write(&folder.join("pages.jsonl"), lines.as_bytes())?;
            eprintln!("made {}, {} pages", folder.display(), pages.len());
        }
        pages.iter().take(8).try_for_each(|page| report::print(format!("{}\n", page.text())))
    }
}

/// Writes the pictures of page `i`; its line of `pages.jsonl`.
fn line(folder: &Path, i: usize, page: &Page) -> Result<String> {
    let mut names = Vec::new();
    for (j, picture) in page.pictures()?.iter().enumerate() {
        let name = format!("{i:06}-{j}.png");
        write(&folder.join(&name), &encode_png(picture)?)?;
        names.push(name);
    }
    Ok(format!("{}\n", serde_json::json!({"text": page.text(), "images": names})))
}

/// All pictures side by side, twelve in a row, with a border of one pixel.
fn sheet(pictures: &[Picture]) -> Result<Picture> {
    const ACROSS: usize = 12;
    const CELL: usize = SIDE + 2;
    let across = pictures.len().clamp(1, ACROSS);
    let (width, height) = (across * CELL, pictures.len().div_ceil(across).max(1) * CELL);
    let mut data = vec![255; width * height];
    for (i, picture) in pictures.iter().enumerate() {
        let (left, top) = (i % across * CELL + 1, i / across * CELL + 1);
        for (y, row) in picture.data.chunks_exact(SIDE).enumerate() {
            let start = (top + y) * width + left;
            data[start..start + SIDE].copy_from_slice(row);
        }
    }
    Picture::new(width, height, Mode::Gray, data)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(|e| Error::io("write", path, e))
}
