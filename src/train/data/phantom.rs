//! Samples of phantom studies, drawn when they are due: training data that needs no disk.

use super::labels::label;
use super::rules::{Form, LabelRules};
use super::stream::Stream;
use super::tally::Tally;
use crate::image::{Preprocess, preprocess};
use crate::phantom::{Kind, Page, Pages, Split};
use crate::text::Tokenizer;
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
    labels: LabelRules,
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
        (labels, source): (LabelRules, usize),
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
        let (kinds, tally, threads) = (kinds.to_string(), Tally::default(), 1);
        Ok(PhantomStream { pages, kinds, tokenizer, preprocess, labels, source, threads, tally })
    }

    /// Draws with `threads` threads; the samples do not depend on it.
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
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
        let ids = self.tokenizer.encode_prompt(&page.text())?;
        let pictures = page.pictures()?;
        // Without pictures it is text to learn the language from: all of it is predicted.
        let form = if pictures.is_empty() { Form::Pairs } else { Form::Interleaved };
        let labels = label(&ids, &self.tokenizer.specials(), form, self.labels);
        let pixels = |picture| Ok(Arc::new(preprocess(picture, &self.preprocess)?.data));
        let images = pictures.iter().map(pixels).collect::<Result<_>>()?;
        Ok(Sample { ids, labels, images, source: self.source })
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
    use super::*;
    use crate::model::preset;
    use crate::train::batch::NO_LABEL;

    fn open(kinds: &str, rank: u64, ranks: u64) -> PhantomStream {
        let tokenizer = crate::phantom::prepared().unwrap().tokenizer;
        let preprocess = Preprocess::clip(crate::phantom::SIDE);
        let address = (1, rank, ranks);
        PhantomStream::open(kinds, Split::Train, address, tokenizer, preprocess, Default::default())
            .unwrap()
    }

    #[test]
    fn samples_are_what_the_phantom_model_reads() {
        let config = preset("phantom").unwrap();
        let mut feed = Feed::Phantom(Box::new(open("caption,shots,words=2,reports", 0, 1)));
        let batch = feed.batch(24).unwrap().unwrap();
        batch.check(&config).unwrap();
        for sample in &batch.sequences {
            let labelled = sample.labels.iter().filter(|l| **l != NO_LABEL).count();
            let masked = sample.ids.len() - labelled;
            // The leading id, the preamble and the markers; of text alone, nothing.
            let is_text = sample.images.is_empty();
            assert!(if is_text { masked == 0 } else { masked > sample.images.len() });
        }
        assert_eq!(feed.tally().kept(), 24);
    }

    #[test]
    fn a_restored_feed_goes_on_and_another_ones_state_is_refused() {
        let mut feed = Feed::Phantom(Box::new(open("shots", 1, 2)));
        drop(feed.batch(3).unwrap());
        let state = feed.state();
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
