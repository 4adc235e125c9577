//! Samples of phantom studies, drawn when they are due: training data that needs no disk.
//!
//! Labels are upstream's for interleaved pages (`labels`, V2): what lies between an image and its
//! end of chunk. A note in the place of a picture is not predicted either: its words are drawn at
//! random, and what cannot be known would drown what can be learned. Nor is a made-up word where it
//! is said for the first time: whoever guesses there learns which words there are, and those of
//! examinations are not among them. Questions are drawn as well; a source may leave them out.

use super::stream::Stream;
use super::tally::Tally;
use crate::image::{Preprocess, preprocess};
use crate::phantom::{Kind, Page, Pages, Split};
use crate::text::Tokenizer;
use crate::train::batch::NO_LABEL;
use crate::train::{Batch, Sample};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// What [`PhantomStream::state`] writes.
const STATE_FORMAT: u64 = 1;

/// Pages of phantom studies as samples.
pub struct PhantomStream {
    pages: Pages,
    kinds: String,
    tokenizer: Tokenizer,
    preprocess: Preprocess,
    /// `Question`, with and without a space, `Answer`, `:`.
    marks: [u32; 4],
    predicts_questions: bool,
    source: usize,
    threads: usize,
    tally: Tally,
}

impl PhantomStream {
    /// `kinds` as in `shots=1, words=3`; this is worker `rank` of `ranks`. Validation has pages of
    /// its own.
    ///
    /// # Errors
    /// Kinds that do not exist, a rank that does not; a model of other tokens or pictures.
    pub fn open(
        kinds: &str,
        split: Split,
        (seed, rank, ranks): (u64, u64, u64),
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        source: usize,
    ) -> Result<Self> {
        if preprocess.size != crate::phantom::SIDE
            || tokenizer.vocab_size() != crate::phantom::TOKENS
        {
            let found = format!("{} ids, images of {}", tokenizer.vocab_size(), preprocess.size);
            let expected = "a model of phantom studies";
            return Err(Error::invalid("model", expected, found)
                .advise("make one with `medflamingo-tools synth --preset phantom --untrained`"));
        }
        let pages = Pages::new(seed, split, Kind::mix(kinds)?)?.of_rank(rank, ranks)?;
        let mark = |text: &str| {
            let ids = tokenizer.encode_text(text)?;
            ids.first().copied().ok_or_else(|| Error::invalid("tokenizer", text, "nothing"))
        };
        let marks = [mark("Question")?, mark(" Question")?, mark(" Answer")?, mark(":")?];
        Ok(PhantomStream {
            pages,
            kinds: kinds.to_string(),
            tokenizer,
            preprocess,
            marks,
            predicts_questions: true,
            source,
            threads: 1,
            tally: Tally::default(),
        })
    }

    /// Draws with `threads` threads; the samples do not depend on it.
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Whether questions are predicted, or answers and captions alone.
    pub fn with_questions(mut self, predicts_questions: bool) -> Self {
        self.predicts_questions = predicts_questions;
        self
    }

    /// The next `n` samples; there always are.
    ///
    /// # Errors
    /// Never for the tokenizer of phantom models.
    pub fn samples(&mut self, n: usize) -> Result<Vec<Sample>> {
        let mut next = self.pages.clone();
        let pages: Vec<Page> = (0..n).map(|_| next.next_page()).collect();
        let each = n.div_ceil(self.threads).max(1);
        let own = &*self;
        let build = |some: &[Page]| some.iter().map(|page| own.build(page)).collect();
        let parts: Vec<Result<Vec<Sample>>> = std::thread::scope(|scope| {
            let start = |some| scope.spawn(move || build(some));
            let workers: Vec<_> = pages.chunks(each).map(start).collect();
            let join = |worker: std::thread::ScopedJoinHandle<'_, _>| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            workers.into_iter().map(join).collect()
        });
        let mut samples = Vec::with_capacity(n);
        for part in parts {
            samples.extend(part?);
        }
        self.pages = next;
        samples.iter().for_each(|_| self.tally.keep());
        Ok(samples)
    }

    fn build(&self, page: &Page) -> Result<Sample> {
        let specials = self.tokenizer.specials();
        let mut ids: Vec<u32> = self.tokenizer.leading().into_iter().collect();
        ids.extend(self.tokenizer.encode_text(&page.preamble)?);
        let mut labels = vec![NO_LABEL; ids.len()];
        let mut images = Vec::new();
        for piece in &page.pieces {
            let text = match &piece.note {
                Some(note) => {
                    ids.extend(self.tokenizer.encode_text(note)?);
                    format!(" {}", piece.text)
                }
                None => {
                    ids.push(specials.image);
                    let pixels = preprocess(&piece.picture()?, &self.preprocess)?;
                    images.push(Arc::new(pixels.data));
                    piece.text.clone()
                }
            };
            labels.resize(ids.len(), NO_LABEL);
            ids.extend(self.tokenizer.encode_text(&text)?);
            ids.push(specials.end_of_chunk);
            match piece.is_first {
                true => labels.resize(ids.len(), NO_LABEL),
                false => self.label(&ids, &mut labels),
            }
        }
        Ok(Sample { ids, labels, images, source: self.source })
    }

    /// Labels what has been added to `ids`.
    fn label(&self, ids: &[u32], labels: &mut Vec<i32>) {
        let [opening, spaced, answer, colon] = self.marks;
        let mut is_question = false;
        for i in labels.len()..ids.len() {
            is_question |= ids[i] == opening || ids[i] == spaced;
            let is_left_out = is_question && !self.predicts_questions;
            labels.push(if is_left_out { NO_LABEL } else { ids[i] as i32 });
            is_question &= !(ids[i] == colon && i > 0 && ids[i - 1] == answer);
        }
    }

    fn state(&self) -> Value {
        json!({"format": STATE_FORMAT, "kinds": self.kinds, "pages": self.pages.state(),
            "tally": self.tally.to_json()})
    }

    fn restore(&mut self, state: &Value) -> Result<()> {
        let who = || format!("data state of source {}", self.source);
        for (key, own) in [("format", json!(STATE_FORMAT)), ("kinds", json!(self.kinds))] {
            if state[key] != own {
                return Err(Error::invalid(format!("{}: {key}", who()), own, &state[key])
                    .advise("resume with the data and options that the checkpoint was made with"));
            }
        }
        let tally = Tally::from_json(&state["tally"]);
        let tally = tally.ok_or_else(|| Error::invalid(who(), "a whole data state", "tally"))?;
        self.pages.restore(&state["pages"]).map_err(|e| e.within(who()))?;
        self.tally = tally;
        Ok(())
    }
}

/// One source of samples, read or drawn.
pub enum Feed {
    Records(Box<Stream>),
    Phantom(Box<PhantomStream>),
}

impl Feed {
    /// Up to `n` samples; None when there are no more.
    ///
    /// # Errors
    /// As [`Stream::next`] and [`PhantomStream::samples`].
    pub fn batch(&mut self, n: usize) -> Result<Option<Batch>> {
        match self {
            Feed::Records(stream) => stream.batch(n),
            Feed::Phantom(pages) => {
                let sequences = pages.samples(n)?;
                Ok((!sequences.is_empty()).then_some(Batch { sequences }))
            }
        }
    }

    /// As [`Stream::state`].
    pub fn state(&self) -> Value {
        match self {
            Feed::Records(stream) => stream.state(),
            Feed::Phantom(pages) => pages.state(),
        }
    }

    /// As [`Stream::restore`].
    ///
    /// # Errors
    /// A state of other data.
    pub fn restore(&mut self, state: &Value) -> Result<()> {
        match self {
            Feed::Records(stream) => stream.restore(state),
            Feed::Phantom(pages) => pages.restore(state),
        }
    }

    /// As [`Stream::tally`].
    pub fn tally(&self) -> &Tally {
        match self {
            Feed::Records(stream) => stream.tally(),
            Feed::Phantom(pages) => &pages.tally,
        }
    }

    /// As [`Stream::waited`]; drawing is work of the step itself.
    pub fn waited(&self) -> (Duration, u64) {
        match self {
            Feed::Records(stream) => stream.waited(),
            Feed::Phantom(_) => (Duration::ZERO, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::labels::label;
    use super::super::rules::{Form, LabelRules};
    use super::*;
    use crate::model::preset;

    fn open(kinds: &str, rank: u64, ranks: u64) -> PhantomStream {
        let tokenizer = crate::phantom::prepared().unwrap().tokenizer;
        let preprocess = Preprocess::clip(crate::phantom::SIDE);
        PhantomStream::open(kinds, Split::Train, (1, rank, ranks), tokenizer, preprocess, 0)
            .unwrap()
    }

    /// Ids are those of the whole text, labels of pages with pictures those of upstream's rules,
    /// but for made-up words that nothing before could have told.
    #[test]
    fn samples_are_what_the_phantom_model_reads() {
        let config = preset("phantom").unwrap();
        let mut pages = open("caption,questions,interleaved,shots,words=2,reports=3", 0, 1);
        let (source, tokenizer) = (pages.pages.clone(), pages.tokenizer.clone());
        let batch = Batch { sequences: pages.samples(60).unwrap() };
        batch.check(&config).unwrap();
        for (i, sample) in batch.sequences.iter().enumerate() {
            let text = source.page(i as u64).text();
            assert_eq!(sample.ids, tokenizer.encode_prompt(&text).unwrap(), "{text}");
            if !sample.images.is_empty() {
                let specials = tokenizer.specials();
                let form = Form::Interleaved;
                let mut expected = label(&sample.ids, &specials, form, LabelRules::V2);
                let mut pieces = source.page(i as u64).pieces.into_iter();
                let mut is_first = pieces.next().is_some_and(|piece| piece.is_first);
                for (id, label) in sample.ids.iter().zip(&mut expected) {
                    *label = if is_first { NO_LABEL } else { *label };
                    if *id == specials.end_of_chunk {
                        is_first = pieces.next().is_some_and(|piece| piece.is_first);
                    }
                }
                assert_eq!(sample.labels, expected, "{text}");
            }
            let labelled = sample.labels.iter().filter(|l| **l != NO_LABEL).count();
            assert!(labelled > 3 && labelled < sample.ids.len());
        }
    }

    #[test]
    fn without_questions_only_replies_and_captions_are_predicted() {
        let mut pages = open("shots,words,reports", 0, 1).with_questions(false);
        let (source, tokenizer) = (pages.pages.clone(), pages.tokenizer.clone());
        for (i, sample) in pages.samples(30).unwrap().into_iter().enumerate() {
            let pairs = sample.ids.iter().zip(&sample.labels);
            let predicted = pairs.filter(|(_, l)| **l != NO_LABEL).map(|(id, _)| *id);
            let said = tokenizer.decode(&predicted.collect::<Vec<_>>(), false);
            // A caption may have the form of a note; one in the place of a picture is not said.
            let page = source.page(i as u64);
            let captions = page.pieces.iter().filter(|p| p.text.contains("Note")).count();
            let known = page.pieces.iter().filter(|p| !p.is_first).count();
            assert!(!said.contains("Question") && !said.contains("Answer"), "{said}");
            assert_eq!(said.matches("Note").count(), captions, "{said}");
            assert_eq!(said.matches("<|endofchunk|>").count(), known);
        }
    }

    #[test]
    fn a_restored_feed_goes_on_and_another_ones_state_is_refused() {
        let mut feed = Feed::Phantom(Box::new(open("shots", 1, 2)));
        drop(feed.batch(3).unwrap());
        let state = feed.state();
        assert_eq!(feed.tally().kept(), 3);
        let ids = |feed: &mut Feed| -> Vec<_> {
            let batch = feed.batch(2).unwrap().unwrap();
            batch.sequences.into_iter().map(|s| s.ids).collect()
        };
        let next = ids(&mut feed);
        let mut other = Feed::Phantom(Box::new(open("shots", 1, 2).with_threads(3)));
        other.restore(&state).unwrap();
        assert_eq!(ids(&mut other), next);
        let mut wrong = Feed::Phantom(Box::new(open("words", 1, 2)));
        assert!(wrong.restore(&state).unwrap_err().to_string().contains("kinds"));
        assert!(Feed::Phantom(Box::new(open("shots", 0, 1))).restore(&state).is_err());
    }
}
