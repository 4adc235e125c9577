//! Where the records of a stream come from: shards on disk, or pages that are made when due.

use super::order::Snapshot;
use super::record::{Content, read};
use super::rules::Rules;
use super::shards::{Record, Shards, Source};
use super::stream::StreamOptions;
use super::tally::{Reason, Refusal};
use crate::Result;
use crate::image::encode_png;
use crate::phantom::{Kind, Page, Pages, Split};
use crate::prompt::Part;
use std::sync::Arc;

#[derive(Clone)]
pub(super) enum Supply {
    Disk {
        source: Arc<Source>,
        shards: Arc<Shards>,
    },
    /// And what identifies them.
    Pages(Arc<Pages>, String),
}

/// One record, to be read by a worker.
pub(super) struct Job {
    pub record: Option<Record>,
    pub number: u64,
    pub before: Option<Arc<Snapshot>>,
}

impl Supply {
    /// What is not shuffled is for validation: pages that are never trained on.
    pub(super) fn open(source: Source, options: &StreamOptions) -> Result<Self> {
        let Source::Phantom { pages } = &source else {
            let shards = Arc::new(Shards::open(&source)?);
            return Ok(Supply::Disk { source: Arc::new(source), shards });
        };
        let split = if options.shuffle { Split::Train } else { Split::Validation };
        let name = format!("phantom {split:?}: {pages}");
        // Sources of a run draw different studies.
        let seed = options.seed.wrapping_add(options.source as u64 * 1_000_003);
        let made = Pages::new(seed, split, Kind::mix(pages)?)?;
        Ok(Supply::Pages(Arc::new(made), name))
    }

    /// Tells one supply from another.
    pub(super) fn fingerprint(&self) -> &str {
        match self {
            Supply::Disk { shards, .. } => shards.fingerprint(),
            Supply::Pages(_, name) => name,
        }
    }

    /// The content of a record, and where it is from.
    pub(super) fn read(&self, job: &Job, rules: &Rules) -> (Result<Content, Refusal>, String) {
        match (self, &job.record) {
            (Supply::Disk { source, shards }, Some(record)) => {
                (read(source, shards, record, rules), shards.place(record))
            }
            (Supply::Pages(pages, name), _) => {
                (content(&pages.page(job.number)), format!("{name}, page {}", job.number))
            }
            (Supply::Disk { .. }, None) => {
                (Err(Refusal::new(Reason::Io, "no record")), String::new())
            }
        }
    }
}

/// A page as a record has it, its pictures as files.
fn content(page: &Page) -> Result<Content, Refusal> {
    let mut parts = vec![Part::Text(page.preamble.clone())];
    for piece in &page.pieces {
        parts.push(match &piece.note {
            Some(note) => Part::Text(format!("{note} ")),
            None => {
                let file = piece.picture().and_then(|picture| encode_png(&picture));
                Part::Image(file.map_err(|e| Refusal::new(Reason::Image, e))?)
            }
        });
        parts.push(Part::Text(piece.text.clone()));
        parts.push(Part::EndOfChunk);
    }
    Ok(Content { parts, is_mmc4: false })
}
