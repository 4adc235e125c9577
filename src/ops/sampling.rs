//! `sampling`: the next token of a sequence: the best, or one drawn from the likelier part.

use super::batch::TokenIds;
use super::check;
use super::gemm::math::widen;
use super::logits::{Best, ONE, Unusable, first_maximum, log_sum, sum_of_weights, weight};
use super::rows::Rows;
use crate::contracts::{SamplingChoice, SamplingDraw, SamplingParams};
use crate::device::{Chip, Cost, Geometry, Host, Kernel, Landing, Stream};
use crate::dtype::Real;
use crate::tensor::{Arena, Tensor, View};
use crate::{DType, Error, Result, twins};
use std::cell::RefCell;

/// See `kernels/sampling.h`.
pub static SAMPLING: Kernel<SamplingParams> =
    Kernel { name: "sampling", twins: twins!(sampling_twin), geometry, cost, accounting: 0 };

/// What the kernel's entries leave room for beside |y|.
const MOST_TOKENS: usize = 1 << 18;
/// Alternatives that a [`Choice`] has room for.
const MOST_ALTERNATIVES: usize = 20;

/// Tokens that are to be chosen less often, or not at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Edits<'a> {
    /// Divides scores from 0 up, multiplies those below.
    pub penalty: f32,
    /// Distinct tokens that the penalty is for.
    pub penalised: &'a [i32],
    /// Tokens that may not be chosen.
    pub banned: &'a [i32],
}

impl Edits<'_> {
    /// Edits `scores` (V), whose tokens these are.
    pub fn apply(&self, scores: &mut [f32]) {
        for &id in self.penalised {
            let score = &mut scores[id as usize];
            *score = if *score < 0.0 { *score * self.penalty } else { *score / self.penalty };
        }
        for &id in self.banned {
            scores[id as usize] = f32::NEG_INFINITY;
        }
    }

    fn is_empty(&self) -> bool {
        self.penalised.is_empty() && self.banned.is_empty()
    }
}

/// How the next token of one sequence is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// The row of the logits.
    pub row: usize,
    /// Divides the logits; 0 takes the best token, whatever follows here.
    pub temperature: f32,
    /// So many of the best are kept, and what ties with the last of them; 0 keeps all.
    pub top_k: usize,
    /// The fewest of the best that have this share of what is left are kept; 1 keeps all.
    pub top_p: f64,
    /// Those at least this much as probable as the best are kept; 0 keeps all.
    pub min_p: f64,
    /// A random number; over 2^64 it is the place in what is kept.
    pub uniform: u64,
    /// Most probable tokens to report, at most 20.
    pub alternatives: usize,
    pub edits: Edits<'a>,
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    pub id: u32,
    /// ln p(id) under the model itself: log-softmax of the logits as they came, before penalties,
    /// suppression, temperature or truncation.
    pub logprob: f32,
    /// The most probable tokens with ln p, best first, of the same distribution; of equals the
    /// lowest id first.
    pub top: Vec<(u32, f32)>,
}

// SAFETY: numbers without padding between them, as `tests/contracts.rs` has the compiler say.
unsafe impl bytemuck::Zeroable for SamplingDraw {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for SamplingDraw {}
// SAFETY: as above.
unsafe impl bytemuck::Zeroable for SamplingChoice {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for SamplingChoice {}

impl Draw<'_> {
    /// As the kernel reads it, its edits from `begin` on.
    fn packed(&self, begin: usize) -> SamplingDraw {
        const WHOLE: f64 = 18_446_744_073_709_551_616.0;
        let penalised_end = begin + self.edits.penalised.len();
        SamplingDraw {
            uniform: self.uniform,
            // Below 1 the product is below 2^64; from there on the cast stays at all bits.
            top_p: (self.top_p * WHOLE) as u64,
            min_p: (self.min_p * f64::from(ONE)).ceil() as u64,
            temperature: self.temperature,
            penalty: self.edits.penalty,
            top_k: self.top_k.min(MOST_TOKENS) as i32,
            row: self.row as i32,
            penalised_begin: begin as i32,
            penalised_end: penalised_end as i32,
            banned_end: (penalised_end + self.edits.banned.len()) as i32,
            alternatives: self.alternatives as i32,
        }
    }

    fn check(&self, rows: usize, vocabulary: usize) -> Result<()> {
        if self.row >= rows {
            return Err(Error::invalid("row", format!("one of {rows}"), self.row));
        }
        if self.alternatives > MOST_ALTERNATIVES {
            let expected = format!("at most {MOST_ALTERNATIVES}");
            return Err(Error::invalid("alternatives", expected, self.alternatives));
        }
        let mut ids = self.edits.penalised.iter().chain(self.edits.banned);
        match ids.find(|&&id| id < 0 || id as usize >= vocabulary) {
            Some(id) => Err(Error::invalid("edits", format!("tokens below {vocabulary}"), id)),
            None => Ok(()),
        }
    }
}

/// How the tokens of a step are chosen, where the kernel reads it.
pub struct Draws {
    draws: Tensor,
    edits: Tensor,
    /// Of each draw.
    alternatives: Vec<usize>,
    rows: usize,
    vocabulary: usize,
}

impl Draws {
    /// Puts `draws` from logits (rows, vocabulary) into `arena`.
    ///
    /// # Errors
    /// A vocabulary of 0 or more than 2^18 tokens; a row, a token or a number of alternatives that
    /// there is not.
    pub fn new(
        arena: &mut Arena,
        draws: &[Draw<'_>],
        rows: usize,
        vocabulary: usize,
    ) -> Result<Self> {
        if !(1..=MOST_TOKENS).contains(&vocabulary) {
            let expected = format!("1 to {MOST_TOKENS} tokens");
            return Err(Error::invalid("sampling: vocabulary", expected, vocabulary));
        }
        let (mut packed, mut edits) = (Vec::with_capacity(draws.len()), Vec::<i32>::new());
        for (i, draw) in draws.iter().enumerate() {
            draw.check(rows, vocabulary).map_err(|e| e.within(format!("sampling: draw {i}")))?;
            packed.push(draw.packed(edits.len()));
            edits.extend(draw.edits.penalised.iter().chain(draw.edits.banned));
        }
        let bytes = bytemuck::cast_slice::<_, u8>(&packed);
        Ok(Draws {
            draws: arena.put(bytes, &[bytes.len()])?,
            edits: arena.put(&edits, &[edits.len()])?,
            alternatives: draws.iter().map(|d| d.alternatives).collect(),
            rows,
            vocabulary,
        })
    }

    /// Bytes of arena that [`Draws::new`] takes.
    pub fn footprint(draws: &[Draw<'_>]) -> usize {
        let edits = draws.iter().map(|d| d.edits.penalised.len() + d.edits.banned.len()).sum();
        Arena::footprint(DType::U8, draws.len() * size_of::<SamplingDraw>())
            + Arena::footprint(DType::I32, edits)
    }
}

/// The tokens of a step and what the model thought of them, on the device.
pub struct Choices {
    ids: TokenIds,
    choices: Tensor,
}

impl Choices {
    /// Room in `arena` for `count` tokens of a vocabulary.
    ///
    /// # Errors
    /// If the arena is too small.
    pub fn new(arena: &mut Arena, count: usize, vocabulary: usize) -> Result<Self> {
        let choices = arena.take(DType::U8, &[count * size_of::<SamplingChoice>()])?;
        Ok(Choices { ids: TokenIds::new(arena, &vec![0; count], vocabulary)?, choices })
    }

    /// Bytes of arena that [`Choices::new`] takes.
    pub fn footprint(count: usize) -> usize {
        Arena::footprint(DType::U8, count * size_of::<SamplingChoice>())
            + Arena::footprint(DType::I32, count)
    }

    /// The tokens, where the next step's embedding reads them.
    pub fn ids(&self) -> &TokenIds {
        &self.ids
    }

    /// Begins to copy what [`sampling`] leaves here for `draws` from the device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn begin_read(&self, draws: &Draws) -> Result<PendingChoices> {
        Ok(PendingChoices {
            landing: self.choices.view().begin_read()?,
            alternatives: draws.alternatives.clone(),
            vocabulary: self.ids.vocabulary(),
        })
    }
}

/// Choices on their way from the device.
pub struct PendingChoices {
    landing: Landing,
    alternatives: Vec<usize>,
    vocabulary: usize,
}

impl PendingChoices {
    /// Waits for them; one result per draw.
    ///
    /// # Errors
    /// Of the whole: if the device fails. Of a draw: NaN or +inf among the logits; nothing left to
    /// choose.
    pub fn wait(self) -> Result<Vec<Result<Choice>>> {
        let bytes = self.landing.wait()?;
        let found = bytes.chunks_exact(size_of::<SamplingChoice>());
        let found = found.map(bytemuck::pod_read_unaligned::<SamplingChoice>);
        let each = found.zip(self.alternatives);
        Ok(each.map(|(c, alternatives)| choice(&c, alternatives, self.vocabulary)).collect())
    }
}

fn choice(found: &SamplingChoice, alternatives: usize, vocabulary: usize) -> Result<Choice> {
    if found.fault != 0 {
        let unusable = Unusable { value: found.logit, token: found.id as u32 };
        let error = unusable.error(vocabulary);
        return Err(match found.fault {
            1 => error,
            _ => error.within("after penalties and suppression"),
        });
    }
    let log_sum = log_sum(found.sum);
    let logprob = |x: f32| (x - found.maximum) - log_sum;
    let top = found.top_id.iter().zip(&found.top_logit).take(alternatives.min(vocabulary));
    Ok(Choice {
        id: found.id as u32,
        logprob: logprob(found.logit),
        top: top.map(|(&id, &x)| (id as u32, logprob(x))).collect(),
    })
}

/// Chooses a token for each draw from its row of `logits` (rows, vocabulary), which may be strided.
///
/// # Errors
/// If the draws are of other logits than these, or `choices` has another number of places.
pub fn sampling(
    stream: &Stream,
    choices: &mut Choices,
    logits: View<'_>,
    draws: &Draws,
) -> Result<()> {
    check::matrix("sampling", "logits", &logits, draws.rows, draws.vocabulary)?;
    let places = (choices.ids.rows(), choices.ids.vocabulary());
    let count = draws.alternatives.len();
    if places != (count, draws.vocabulary) {
        let expected = format!("{count} of {} tokens", draws.vocabulary);
        let found = format!("{} of {}", places.0, places.1);
        return Err(Error::invalid("sampling: choices", expected, found));
    }
    let params = SamplingParams {
        ids: choices.ids.ids_mut(),
        choices: choices.choices.view_mut().ptr(),
        logits: logits.ptr(),
        draws: draws.draws.view().ptr(),
        edits: draws.edits.view().ptr(),
        count: count as i64,
        vocabulary: draws.vocabulary as i64,
        row_stride: logits.stride() as i64,
    };
    // SAFETY: shapes were checked; rows and tokens of the draws when they were made.
    unsafe { stream.launch(&SAMPLING, logits.dtype(), &params) }
}

/// The choice that [`sampling`] makes from one row, on this thread.
///
/// # Errors
/// As [`Draws::new`] and [`PendingChoices::wait`].
pub fn choose(logits: &[f32], draw: &Draw<'_>) -> Result<Choice> {
    draw.check(1 + draw.row, logits.len())?;
    let (packed, edits) = (draw.packed(0), &draw.edits);
    let found = SCRATCH.with_borrow_mut(|scratch| scratch.choose(logits, &packed, edits));
    choice(&found, draw.alternatives, logits.len())
}

fn geometry(p: &SamplingParams, _: DType, chip: &Chip) -> Geometry {
    /// `sizeof(SamplingShared)`; then two bits a token, and four bytes of as many as there is room
    /// for.
    const SHARED: u32 = 1024 * 3 * 4 + 32 * 8 + 16;
    let bits = SHARED + 2 * 4 * (p.vocabulary as u32).div_ceil(32);
    let kept = (4 * p.vocabulary as u32).min(chip.shared_bytes.saturating_sub(bits) / 4 * 4);
    Geometry { shared: bits + kept, ..Geometry::linear(p.count as u32, 1024) }
}

fn cost(p: &SamplingParams, dtype: DType) -> Cost {
    let cells = (p.count * p.vocabulary) as f64;
    // A maximum and an exponential, the least that any choice takes.
    Cost { bytes: cells * dtype.size() as f64, flops: 20.0 * cells }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What a choice needs room for, reused from token to token.
#[derive(Default)]
struct Scratch {
    logits: Vec<f32>,
    scores: Vec<f32>,
    entries: Vec<u64>,
    best: Best,
}

impl Scratch {
    fn choose(&mut self, logits: &[f32], draw: &SamplingDraw, edits: &Edits<'_>) -> SamplingChoice {
        let mut found: SamplingChoice = bytemuck::Zeroable::zeroed();
        let faulty = |found: SamplingChoice, fault, unusable: Unusable| {
            let (id, logit) = (unusable.token as i32, unusable.value);
            SamplingChoice { id, logit, fault, ..found }
        };
        let (maximum, argmax) = match first_maximum(logits) {
            Ok(first) => first,
            Err(unusable) => return faulty(found, 1, unusable),
        };
        found.maximum = maximum;
        found.sum = sum_of_weights(logits, maximum);
        self.best.restart(draw.alternatives as usize);
        self.best.offer(logits, 0);
        for (i, &(x, id)) in self.best.items().iter().enumerate() {
            (found.top_logit[i], found.top_id[i]) = (x, id as i32);
        }
        let (mut scores, mut maximum, mut id) = (logits, maximum, argmax);
        if !edits.is_empty() {
            self.scores.clear();
            self.scores.extend_from_slice(logits);
            edits.apply(&mut self.scores);
            scores = &self.scores;
            (maximum, id) = match first_maximum(scores) {
                Ok(first) => first,
                Err(unusable) => return faulty(found, 2, unusable),
            };
        }
        if draw.temperature != 0.0 {
            order(&mut self.entries, scores, maximum, draw.temperature);
            id = draw_token(&mut self.entries, draw);
        }
        SamplingChoice { id: id as i32, logit: logits[id as usize], ..found }
    }
}

/// Tokens that may be drawn, each one number: (bits of |y|) << 32 | id, where y <= 0 is the score
/// relative to the best and divided by the temperature. Ascending numbers are descending scores,
/// and ascending ids among equals.
fn order(entries: &mut Vec<u64>, scores: &[f32], maximum: f32, temperature: f32) {
    entries.clear();
    entries.extend(scores.iter().zip(0u64..).filter_map(|(&score, id)| {
        let y = (score - maximum) / temperature;
        (y > f32::NEG_INFINITY).then(|| u64::from(y.abs().to_bits()) << 32 | id)
    }));
}

/// The weight of an entry; that of the best is 2^40.
fn mass(entry: u64) -> u64 {
    weight(-f32::from_bits((entry >> 32) as u32))
}

fn draw_token(entries: &mut Vec<u64>, draw: &SamplingDraw) -> u32 {
    keep(entries, draw);
    let total: u64 = entries.iter().map(|&entry| mass(entry)).sum();
    let before = ((u128::from(draw.uniform) * u128::from(total)) >> 64) as u64;
    let chosen = reach(entries, before + 1);
    entries[chosen] as u32
}

/// Leaves the tokens that may be drawn; the most probable one always is.
fn keep(entries: &mut Vec<u64>, draw: &SamplingDraw) {
    if draw.top_k > 0 {
        keep_top_k(entries, draw.top_k as usize);
    }
    if draw.top_p != u64::MAX {
        let total: u64 = entries.iter().map(|&entry| mass(entry)).sum();
        // Rounded up.
        let goal = (u128::from(draw.top_p) * u128::from(total)).div_ceil(1 << 64) as u64;
        let last = reach(entries, goal.max(1));
        entries.truncate(last + 1);
    }
    if draw.min_p > 0 {
        entries.retain(|&entry| mass(entry) >= draw.min_p);
    }
}

/// The `k` best and all that tie with the last of them.
fn keep_top_k(entries: &mut Vec<u64>, k: usize) {
    if k >= entries.len() {
        return;
    }
    let (_, &mut last, _) = entries.select_nth_unstable(k - 1);
    let mut end = k;
    for i in k..entries.len() {
        if entries[i] >> 32 == last >> 32 {
            entries.swap(end, i);
            end += 1;
        }
    }
    entries.truncate(end);
}

/// The place of the first entry, in ascending order, up to which masses add up to `goal`, which is
/// at most their sum; only what is before that place is smaller. Sorts no further than needed.
fn reach(entries: &mut [u64], mut goal: u64) -> usize {
    let (mut start, mut end) = (0, entries.len());
    while end - start > 1 {
        let middle = (start + end) / 2;
        entries[start..end].select_nth_unstable(middle - start);
        let lower: u64 = entries[start..middle].iter().map(|&entry| mass(entry)).sum();
        if lower >= goal {
            end = middle;
        } else {
            goal -= lower;
            start = middle;
        }
    }
    start
}

/// # Safety
/// As [`Stream::launch`].
unsafe fn sampling_twin<T: Real>(p: &SamplingParams, host: &Host) {
    let count = p.count as usize;
    let ids = Rows::<i32>::dense(p.ids.cast(), 1);
    let choices = Rows::<SamplingChoice>::dense(p.choices.cast(), 1);
    let draws = Rows::<SamplingDraw>::dense(p.draws.cast(), 1);
    let edits = Rows::<i32>::dense(p.edits.cast(), 0);
    let logits = Rows::<T>::new(p.logits, p.row_stride, p.vocabulary as usize);
    host.pool.run(count, |i| {
        // SAFETY: the draw exists, and its row and its edits do.
        let (draw, row) = unsafe {
            let draw = draws.get(i)[0];
            (draw, logits.get(draw.row as usize))
        };
        let part = |begin: i32, end: i32| {
            // SAFETY: as above.
            unsafe { edits.part(0, begin as usize, (end - begin) as usize) }
        };
        let edits = Edits {
            penalty: draw.penalty,
            penalised: part(draw.penalised_begin, draw.penalised_end),
            banned: part(draw.penalised_end, draw.banned_end),
        };
        let found = SCRATCH.with_borrow_mut(|scratch| {
            let mut logits = std::mem::take(&mut scratch.logits);
            logits.clear();
            logits.extend(row.iter().map(|&x| widen(x)));
            let found = scratch.choose(&logits, &draw, &edits);
            scratch.logits = logits;
            found
        });
        // SAFETY: each draw has its own places.
        unsafe {
            ids.get_mut(i)[0] = found.id;
            choices.get_mut(i)[0] = found;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All that may be chosen, at temperature 1.
    const ALL: Draw<'static> = Draw {
        row: 0,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        uniform: 0,
        alternatives: 0,
        edits: Edits { penalty: 1.0, penalised: &[], banned: &[] },
    };

    /// The ids that may be drawn, in ascending order.
    fn kept(scores: &[f32], draw: &Draw<'_>) -> Vec<u32> {
        let mut entries = Vec::new();
        order(&mut entries, scores, first_maximum(scores).unwrap().0, draw.temperature);
        keep(&mut entries, &draw.packed(0));
        let mut ids: Vec<u32> = entries.iter().map(|&entry| entry as u32).collect();
        ids.sort_unstable();
        ids
    }

    fn ln(p: &[f32]) -> Vec<f32> {
        p.iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn ties_with_the_last_of_top_k_are_kept() {
        let scores = [1.0, 3.0, 2.0, 2.0, 0.0, 2.0];
        assert_eq!(kept(&scores, &Draw { top_k: 1, ..ALL }), [1]);
        assert_eq!(kept(&scores, &Draw { top_k: 2, ..ALL }), [1, 2, 3, 5]);
        assert_eq!(kept(&scores, &Draw { top_k: 5, ..ALL }), [0, 1, 2, 3, 5]);
        assert_eq!(kept(&scores, &Draw { top_k: 100, ..ALL }), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn top_p_cuts_where_the_mass_before_reaches_p() {
        let scores = ln(&[0.05, 0.5, 0.15, 0.3]);
        assert_eq!(kept(&scores, &Draw { top_p: 0.0, ..ALL }), [1]);
        assert_eq!(kept(&scores, &Draw { top_p: 0.49, ..ALL }), [1]);
        assert_eq!(kept(&scores, &Draw { top_p: 0.51, ..ALL }), [1, 3]);
        assert_eq!(kept(&scores, &Draw { top_p: 0.81, ..ALL }), [1, 2, 3]);
        assert_eq!(kept(&scores, &Draw { top_p: 1.0, ..ALL }), [0, 1, 2, 3]);
        let halves = [0.0, f32::ln(0.5), f32::ln(0.5)];
        assert_eq!(kept(&halves, &Draw { top_p: 0.5, ..ALL }), [0]);
    }

    #[test]
    fn top_p_sees_what_top_k_left() {
        // Of all: .4 .3 .2 .1; of the best two, renormalised: 4/7 and 3/7.
        let scores = ln(&[0.4, 0.3, 0.2, 0.1]);
        assert_eq!(kept(&scores, &Draw { top_p: 0.45, ..ALL }), [0, 1]);
        assert_eq!(kept(&scores, &Draw { top_k: 2, top_p: 0.45, ..ALL }), [0]);
    }

    #[test]
    fn min_p_is_relative_to_the_best_after_temperature() {
        let scores = ln(&[0.5, 0.26, 0.24]);
        assert_eq!(kept(&scores, &Draw { min_p: 0.5, ..ALL }), [0, 1]);
        assert_eq!(kept(&scores, &Draw { min_p: 1.0, ..ALL }), [0]);
        // At temperature 2 the ratios are square roots: 0.72 and 0.69.
        assert_eq!(kept(&scores, &Draw { temperature: 2.0, min_p: 0.5, ..ALL }), [0, 1, 2]);
    }

    proptest! {
        #[test]
        fn truncation_agrees_with_its_definition(
            scores in prop::collection::vec(-6i8..6, 1..300), divisor in 1u8..9,
            k in 0usize..40, p in 0.0f64..1.2, least in 0.0f64..0.5,
        ) {
            let scores: Vec<f32> =
                scores.into_iter().map(|s| f32::from(s) / f32::from(divisor)).collect();
            let (top_p, min_p) = (p.min(1.0), if least < 0.1 { 0.0 } else { least });
            let ids = kept(&scores, &Draw { top_k: k, top_p, min_p, ..ALL });
            prop_assert!(!ids.is_empty());
            prop_assert!(ids.contains(&first_maximum(&scores).unwrap().1));
            // Definition, over a full sort in f64.
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            if k != 0 && k < order.len() {
                let bar = scores[order[k - 1]];
                order.retain(|&i| scores[i] >= bar);
            }
            let mass = |order: &[usize]| -> f64 {
                order.iter().map(|&i| f64::from(scores[i]).exp()).sum()
            };
            let total = mass(&order);
            let share = |n: usize| mass(&order[..n]) / total;
            // A cut within rounding of a boundary may fall on either side of it.
            prop_assume!((1..order.len()).all(|n| (share(n) - top_p).abs() > 1e-6));
            let n = (1..order.len()).find(|&n| share(n) >= top_p).unwrap_or(order.len());
            order.truncate(n);
            let ratio = |i: usize| f64::from(scores[i] - scores[order[0]]).exp();
            prop_assume!(order.iter().all(|&i| (ratio(i) - min_p).abs() > 1e-6));
            let mut expected: Vec<u32> =
                order.iter().filter(|&&i| ratio(i) >= min_p).map(|&i| i as u32).collect();
            expected.sort_unstable();
            prop_assert_eq!(ids, expected);
        }
    }
}
