use crate::judge::{for_every_type, message, normals, scaled, streams, tensor};
use medflamingo::DType;
use medflamingo::device::{Chip, Stream};
use medflamingo::dtype::Real;
use medflamingo::ops::{self, Choice, Choices, Draw, Draws, Edits};
use medflamingo::tensor::{Arena, Tensor};

pub struct Case {
    pub why: &'static str,
    pub vocabulary: usize,
    /// The logits' deviation; 0 makes them all equal.
    pub spread: f32,
    pub temperature: f32,
    pub top_k: usize,
    pub top_p: f64,
    pub min_p: f64,
    pub alternatives: usize,
    pub penalty: f32,
    /// Every so many tokens are penalised, and the ones after them banned.
    pub every: usize,
}

const ALL: Case = Case {
    why: "all",
    vocabulary: 500,
    spread: 3.0,
    temperature: 1.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    alternatives: 0,
    penalty: 1.0,
    every: 0,
};

pub fn cases() -> Vec<Case> {
    vec![
        ALL,
        Case { why: "smallest", vocabulary: 1, alternatives: 20, ..ALL },
        Case { why: "greedy", temperature: 0.0, alternatives: 5, ..ALL },
        Case { why: "top_k", top_k: 7, ..ALL },
        Case { why: "top_p", top_p: 0.9, ..ALL },
        Case { why: "top_p_of_nothing", top_p: 0.0, ..ALL },
        Case { why: "min_p", min_p: 0.05, temperature: 2.0, ..ALL },
        Case { why: "everything", top_k: 60, top_p: 0.8, min_p: 0.02, ..ALL },
        Case { why: "penalised_and_banned", penalty: 1.3, every: 3, alternatives: 3, ..ALL },
        Case { why: "greedy_with_edits", temperature: 0.0, penalty: 1.3, every: 2, ..ALL },
        Case { why: "ties_only", vocabulary: 1500, spread: 0.0, top_k: 9, top_p: 0.3003, ..ALL },
        Case { why: "cold", temperature: 0.01, top_p: 0.99, ..ALL },
        Case { why: "hot", vocabulary: 2100, temperature: 100.0, top_k: 1000, ..ALL },
        Case { why: "far_apart", spread: 1e4, alternatives: 20, ..ALL },
        Case { why: "model", vocabulary: 32_003, top_k: 50, top_p: 0.95, alternatives: 5, ..ALL },
    ]
}

const ROWS: usize = 3;

impl Case {
    fn logits<T: Real>(&self) -> Vec<f32> {
        let x = scaled(normals(7, ROWS * self.vocabulary), self.spread);
        x.into_iter().map(|x| T::from_f32(x).to_f32()).collect()
    }

    fn edits(&self) -> (Vec<i32>, Vec<i32>) {
        let some = |first: usize| match self.every {
            0 => Vec::new(),
            every => (first..self.vocabulary).step_by(every).map(|id| id as i32).collect(),
        };
        (some(0), some(1))
    }

    fn draw<'a>(&self, row: usize, edits: &'a (Vec<i32>, Vec<i32>)) -> Draw<'a> {
        // Places from the first token of the distribution to its last.
        let uniform = [0, 0x9e37_79b9_7f4a_7c15, u64::MAX][row];
        Draw {
            row,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            uniform,
            alternatives: self.alternatives,
            edits: Edits { penalty: self.penalty, penalised: &edits.0, banned: &edits.1 },
        }
    }
}

/// The tokens that may be drawn, in order, with their probabilities among all; and the scores'
/// definition, over full sorts in f64.
fn ranked(scores: &[f64], temperature: f64) -> Vec<(usize, f64)> {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut order: Vec<usize> = (0..scores.len()).filter(|&i| scores[i].is_finite()).collect();
    order.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).unwrap());
    order.into_iter().map(|i| (i, ((scores[i] - most) / temperature).exp())).collect()
}

/// What rounding may move a boundary between tokens by, as a share of everything.
const CLOSE: f64 = 1e-6;

/// The tokens that a draw may choose, and the place of its number among them if it is not so close
/// to the border of two that rounding decides.
fn oracle(draw: &Draw<'_>, logits: &[f32]) -> Vec<usize> {
    let mut scores: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
    for &id in draw.edits.penalised {
        let (s, penalty) = (&mut scores[id as usize], f64::from(draw.edits.penalty));
        *s = if *s < 0.0 { *s * penalty } else { *s / penalty };
    }
    for &id in draw.edits.banned {
        scores[id as usize] = f64::NEG_INFINITY;
    }
    if draw.temperature == 0.0 {
        return vec![ranked(&scores, 1.0)[0].0];
    }
    let mut kept = ranked(&scores, f64::from(draw.temperature));
    if draw.top_k > 0 && draw.top_k < kept.len() {
        let bar = kept[draw.top_k - 1].1;
        kept.retain(|(_, w)| *w >= bar * (1.0 - CLOSE));
    }
    if draw.top_p < 1.0 {
        let (goal, mut sum) = (draw.top_p * kept.iter().map(|(_, w)| w).sum::<f64>(), 0.0);
        let end = kept.iter().position(|(_, w)| {
            sum += w;
            sum >= goal
        });
        kept.truncate(end.unwrap() + 1);
    }
    kept.retain(|(_, w)| *w >= draw.min_p);
    let total: f64 = kept.iter().map(|(_, w)| w).sum();
    let (place, mut before) = (draw.uniform as f64 / 2f64.powi(64) * total, 0.0);
    let mut near = Vec::new();
    for (id, w) in kept {
        let slack = CLOSE * total;
        if before - slack <= place && place <= before + w + slack {
            near.push(id);
        }
        before += w;
    }
    near
}

fn check_model(why: &str, c: &Choice, draw: &Draw<'_>, logits: &[f32]) {
    let order = ranked(&logits.iter().map(|&x| f64::from(x)).collect::<Vec<_>>(), 1.0);
    let sum: f64 = order.iter().map(|(_, w)| w).sum();
    let most = f64::from(logits[order[0].0]);
    let close = |id: usize, found: f32| {
        let want = f64::from(logits[id]) - most - sum.ln();
        let error = (f64::from(found) - want).abs();
        assert!(error <= 1e-6 + 1e-6 * want.abs(), "{why}: {id}: {found} {want}");
    };
    close(c.id as usize, c.logprob);
    assert_eq!(c.top.len(), draw.alternatives.min(logits.len()), "{why}");
    for ((found, p), (want, _)) in c.top.iter().zip(order) {
        assert_eq!(*found as usize, want, "{why}");
        close(want, *p);
    }
}

fn choices(stream: &Stream, logits: &Tensor, draws: &[Draw<'_>]) -> Vec<Result<Choice, String>> {
    let [rows, vocabulary] = *logits.shape().sizes() else { unreachable!() };
    let bytes = Draws::footprint(draws) + Choices::footprint(draws.len());
    let mut arena = Arena::new(stream, bytes).unwrap();
    let mut choices = Choices::new(&mut arena, draws.len(), vocabulary).unwrap();
    let packed = Draws::new(&mut arena, draws, rows, vocabulary).unwrap();
    ops::sampling(stream, &mut choices, logits.view(), &packed).unwrap();
    choices
        .begin_read(&packed)
        .unwrap()
        .wait()
        .unwrap()
        .into_iter()
        .map(|c| c.map_err(|e| e.to_string()))
        .collect()
}

/// The same choices on every device to the last bit, all of them the oracle's.
fn check<T: Real>(streams: &[Stream], c: &Case) {
    let (logits, edits) = (c.logits::<T>(), c.edits());
    // Out of order, and a row twice.
    let draws = [2, 0, 1, 0].map(|row| c.draw(row, &edits));
    let row = |draw: &Draw<'_>| &logits[draw.row * c.vocabulary..][..c.vocabulary];
    let want = draws.map(|draw| ops::choose(row(&draw), &draw).map_err(|e| e.to_string()));
    for (draw, choice) in draws.iter().zip(&want) {
        let choice = choice.as_ref().unwrap();
        let may = oracle(draw, row(draw));
        assert!(may.contains(&(choice.id as usize)), "{}: {} not in {may:?}", c.why, choice.id);
        check_model(c.why, choice, draw, row(draw));
    }
    for stream in streams {
        let logits = tensor::<T>(stream, &logits, &[ROWS, c.vocabulary]);
        let found = choices(stream, &logits, &draws);
        assert_eq!(found, want, "{} {} {}", c.why, T::DTYPE, stream.describe());
    }
}

/// No number of threads or instruction set matters to this kernel, and of a card only how much a
/// block holds: one stream of each kind, and one whose blocks have room for few tokens.
fn devices() -> Vec<Stream> {
    let mut streams = streams();
    streams.dedup_by_key(|stream| stream.describe().split([',', ' ']).next().map(String::from));
    if std::env::var_os("MEDFLAMINGO_TEST_DEVICE").is_none() {
        let chip = Chip { shared_bytes: 16 << 10, ..Chip::A100 };
        streams.push(Stream::emulated(chip).unwrap());
    }
    streams
}

#[test]
fn every_device_chooses_what_the_oracle_may() {
    let streams = devices();
    for case in cases() {
        for_every_type!(check(&streams, &case));
    }
}

/// Every token is chosen by as many of the numbers as it is probable.
#[test]
fn numbers_in_order_are_tokens_in_order() {
    let logits: Vec<f32> = [0.5f32, 0.125, 0.25, 0.125].map(f32::ln).to_vec();
    let edits = (vec![], vec![]);
    for stream in devices() {
        let x = tensor::<f32>(&stream, &logits, &[1, 4]);
        let draws: Vec<Draw<'_>> = (0..16)
            .map(|i| Draw { row: 0, uniform: (i << 60) + (1 << 59), ..ALL.draw(0, &edits) })
            .collect();
        let ids: Vec<u32> =
            choices(&stream, &x, &draws).into_iter().map(|c| c.unwrap().id).collect();
        assert_eq!(ids, [0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 1, 1, 3, 3]);
    }
}

#[test]
fn rows_without_a_choice_are_errors_of_their_own() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let rows = [[0.0, 1.0, nan], [0.0, inf, 2.0], [-inf, -inf, -inf], [3.0, 1.0, -0.0]];
    let edits = (vec![], vec![1, 0, 2]);
    let none = (vec![], vec![]);
    for stream in devices() {
        let x = tensor::<f32>(&stream, &rows.concat(), &[4, 3]);
        let greedy = Case { temperature: 0.0, ..ALL };
        let mut draws: Vec<Draw<'_>> =
            (0..4).map(|row| Draw { row, ..greedy.draw(0, &none) }).collect();
        draws.push(Draw { row: 3, ..ALL.draw(0, &edits) });
        let found = choices(&stream, &x, &draws);
        let ends = ["found NaN at token 2", "found inf at token 1", "found 3 times -inf"];
        for (found, end) in found.iter().zip(ends) {
            assert!(found.as_ref().unwrap_err().ends_with(end), "{found:?}");
        }
        assert_eq!(found[3].as_ref().unwrap().id, 0);
        let after = "after penalties and suppression: logits: ";
        assert!(found[4].as_ref().unwrap_err().starts_with(after), "{:?}", found[4]);
    }
}

#[test]
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let edits = (vec![7], vec![]);
    let draw = ALL.draw(0, &edits);
    let mut arena = Arena::new(&stream, 1 << 12).unwrap();
    let mut e = |draws: &[Draw<'_>], vocabulary| {
        message(Draws::new(&mut arena, draws, 1, vocabulary).map(|_| ()))
    };
    assert!(e(&[], 0).starts_with("sampling: vocabulary: expected 1 to 262144 tokens"));
    assert!(e(&[draw], 7).contains("draw 0: edits: expected tokens below 7, found 7"));
    assert!(e(&[Draw { row: 1, ..draw }], 9).contains("row: expected one of 1, found 1"));
    let many = Draw { alternatives: 21, ..draw };
    assert!(e(&[many], 9).contains("alternatives: expected at most 20, found 21"));
    let mut arena = Arena::new(&stream, 1 << 12).unwrap();
    let packed = Draws::new(&mut arena, &[draw], 1, 9).unwrap();
    let mut choices = Choices::new(&mut arena, 2, 9).unwrap();
    let logits = Tensor::zeros(&stream, DType::F32, &[1, 9]).unwrap();
    let e = message(ops::sampling(&stream, &mut choices, logits.view(), &packed));
    assert!(e.starts_with("sampling: choices: expected 1 of 9 tokens, found 2 of 9"), "{e}");
    let logits = Tensor::zeros(&stream, DType::F32, &[1, 8]).unwrap();
    let e = message(ops::sampling(&stream, &mut choices, logits.view(), &packed));
    assert!(e.starts_with("sampling: logits: expected (1, 9), found (1, 8)"), "{e}");
}
