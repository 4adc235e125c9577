//! Sampling and beam search against transformers 4.33.3, hand-worked cases and slow oracles.

use medflamingo::engine::beam::{Beams, Hypothesis};
use medflamingo::engine::options::{EarlyStopping, GenerateOptions};
use medflamingo::engine::sampler::Sampler;
use medflamingo::ops::Summary;
use proptest::prelude::*;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Runs a whole search with `model(ids)` for the model.
fn search(mut beams: Beams, prompt: &[u32], model: impl Fn(&[u32]) -> Vec<f32>) -> Vec<Hypothesis> {
    let mut open = vec![prompt.to_vec()];
    loop {
        let rows: Vec<Vec<f32>> = open.iter().map(|ids| model(ids)).collect();
        let rows: Vec<&[f32]> = rows.iter().map(|row| &row[..]).collect();
        let next = beams.step(&rows).unwrap();
        let grow = |(&parent, &token): (&usize, &u32)| {
            let mut ids = open[parent].clone();
            ids.push(token);
            ids
        };
        let grown = next.parents.iter().zip(next.tokens).map(grow).collect();
        let done = next.done;
        open = grown;
        if done {
            return beams.finish();
        }
    }
}

fn ln(p: &[f32]) -> Vec<f32> {
    p.iter().map(|p| p.ln()).collect()
}

// ---- transformers ----

#[derive(Deserialize)]
struct BeamFile {
    tables: Vec<Vec<Vec<f32>>>,
    cases: Vec<BeamCase>,
}

#[derive(Deserialize)]
struct BeamCase {
    table: usize,
    prompt: Vec<u32>,
    left_pads: usize,
    eos: Vec<u32>,
    suppress: Vec<u32>,
    options: GenerateOptions,
    hypotheses: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    answer: Vec<u32>,
    score: f64,
}

#[test]
fn beams_equal_those_of_transformers() {
    let file: BeamFile = serde_json::from_str(include_str!("golden/sampling/beams.json")).unwrap();
    assert_eq!(file.cases.len(), 80);
    for (i, case) in file.cases.iter().enumerate() {
        let length = case.prompt.len();
        let table = &file.tables[case.table];
        let model = |ids: &[u32]| {
            let [.., before, last] = ids else { unreachable!("prompts have two tokens") };
            let row = *last as usize + 3 * *before as usize + 5 * (ids.len() - length);
            table[row % table.len()].clone()
        };
        let beams = Beams::new(&case.options, &case.prompt, &case.eos, &case.suppress).unwrap();
        let found = search(beams.with_left_pads(case.left_pads), &case.prompt, model);
        assert_eq!(found.len(), case.hypotheses.len(), "case {i}");
        for (found, expected) in found.iter().zip(&case.hypotheses) {
            let (prompt, answer) = found.ids.split_at(length);
            assert_eq!(prompt, case.prompt, "case {i}");
            let mut expected_answer = expected.answer.clone();
            if found.is_ended && case.eos.contains(answer.last().unwrap()) {
                // Upstream writes the first end token whichever was generated.
                *expected_answer.last_mut().unwrap() = *answer.last().unwrap();
                assert_eq!(*expected.answer.last().unwrap(), case.eos[0], "case {i}");
            }
            assert_eq!(answer, expected_answer, "case {i}");
            assert_eq!(found.logprobs.len(), answer.len());
            let error = (found.score - expected.score).abs();
            assert!(error <= 2e-6 * expected.score.abs().max(1.0), "case {i}: {error}");
        }
    }
}

#[derive(Deserialize)]
struct ChoiceFile {
    cases: Vec<ChoiceCase>,
}

#[derive(Deserialize)]
struct ChoiceCase {
    logits: Vec<f32>,
    history: Vec<u32>,
    generated: usize,
    eos: Vec<u32>,
    suppress: Vec<u32>,
    options: GenerateOptions,
    greedy: u32,
    probabilities: BTreeMap<u32, f64>,
}

#[test]
fn choices_follow_those_of_transformers() {
    let file: ChoiceFile =
        serde_json::from_str(include_str!("golden/sampling/choices.json")).unwrap();
    assert_eq!(file.cases.len(), 40);
    for (i, case) in file.cases.iter().enumerate() {
        let next = |options: &GenerateOptions, draws: usize| {
            let mut sampler = Sampler::new(options, &case.eos, &case.suppress);
            let mut counts = BTreeMap::new();
            for _ in 0..draws {
                let choice = sampler.next(&case.logits, &case.history, case.generated).unwrap();
                *counts.entry(choice.id).or_insert(0u32) += 1;
            }
            counts
        };
        let greedy = GenerateOptions { temperature: 0.0, ..case.options.clone() };
        assert_eq!(next(&greedy, 1).into_keys().next(), Some(case.greedy), "case {i}");
        let counts = next(&case.options, 20_000);
        assert!(counts.keys().all(|id| case.probabilities.contains_key(id)), "case {i}");
        for (id, p) in &case.probabilities {
            let (mean, count) = (p * 2e4, f64::from(counts.get(id).copied().unwrap_or(0)));
            // Five standard deviations and one.
            assert!((count - mean).abs() <= 5.0 * mean.sqrt() + 1.0, "case {i} token {id}");
        }
    }
}

// ---- by hand ----

/// Tokens a = 0, b = 1, end = 2; the answer so far decides:
///
/// | answer | a | b | end |
/// |---|---|---|---|
/// | (none) | .60 | .10 | .30 |
/// | a | .36 | .04 | .60 |
/// | b, ba | .50 | .30 | .20 |
/// | aa | .95 | .01 | .04 |
fn three_tokens(answer: &[u32]) -> Vec<f32> {
    ln(match answer {
        [] => &[0.60, 0.10, 0.30],
        [0] => &[0.36, 0.04, 0.60],
        [1] | [1, 0] => &[0.50, 0.30, 0.20],
        [0, 0] => &[0.95, 0.01, 0.04],
        _ => panic!("{answer:?} is never open"),
    })
}

/// Two beams, at most three new tokens, after a prompt of `length` tokens.
fn worked(length: usize, length_penalty: f64, left_pads: usize) -> Vec<(Vec<u32>, f64)> {
    let options =
        GenerateOptions { max_new_tokens: 3, num_beams: 2, length_penalty, ..Default::default() };
    let prompt = vec![0; length];
    let beams = Beams::new(&options, &prompt, &[2], &[]).unwrap().with_left_pads(left_pads);
    let found = search(beams, &prompt, |ids| three_tokens(&ids[length..]));
    found.into_iter().map(|h| (h.ids[length..].to_vec(), h.score)).collect()
}

fn assert_answers(found: Vec<(Vec<u32>, f64)>, expected: [(&[u32], f64); 2]) {
    assert_eq!(found.len(), 2);
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.0, expected.0);
        assert!((found.1 - expected.1).abs() < 1e-5, "{} {}", found.1, expected.1);
    }
}

// Step 1, candidates by probability: a .60, end .30, b .10. The end is second of two beams, so it
// counts: answer "end", ln .30 = -1.203973, at length L (the prompt's). Open: a, b.
// Step 2: a end .36, aa .216, ba .05, bb .03 are the best four. Answer "a end", ln .36 = -1.021651,
// at length L + 1. Open: aa, ba. Two answers are complete, so the search may stop now: if the worse
// of the two is at least -1.021651 / (L + 2)^penalty.
// Step 3: aaa .2052, baa .025, bab .015, ba end .01: both beams are filled before the end is seen.
// Stop if the worse answer is at least ln .2052 / (L + 3)^penalty, ln .2052 = -1.583770; otherwise
// aaa and baa (ln .025 = -3.688879) compete at length L + 3.

#[test]
fn penalty_minus_2_prefers_the_shortest() {
    // L = 2: -1.203973 * 4 = -4.815891 and -1.021651 * 9 = -9.194861. After step 2 the bound is
    // -1.021651 * 16 = -16.3: stop.
    assert_answers(worked(2, -2.0, 0), [(&[2], -4.815891), (&[0, 2], -9.194861)]);
}

#[test]
fn penalty_0_compares_sums() {
    // After step 2: -1.203973 < -1.021651, go on. After step 3: -1.203973 >= -1.583770, stop.
    assert_answers(worked(2, 0.0, 0), [(&[0, 2], -1.021651), (&[2], -1.203973)]);
    assert_answers(worked(10, 0.0, 0), [(&[0, 2], -1.021651), (&[2], -1.203973)]);
}

#[test]
fn penalty_1_depends_on_the_length_of_the_prompt() {
    // L = 2: -1.203973 / 2 = -.601986 and -1.021651 / 3 = -.340550. Step 2: -.601986 < -.255413;
    // step 3: -.601986 < -1.583770 / 5 = -.316754: not done, so aaa gets in at -.316754 and "end"
    // drops out; baa at -3.688879 / 5 = -.737776 does not get in.
    assert_answers(worked(2, 1.0, 0), [(&[0, 0, 0], -0.316754), (&[0, 2], -0.340550)]);
    // L = 10: -.120397 and -1.021651 / 11 = -.092877. Step 2: -.120397 < -1.021651 / 12 = -.085138;
    // step 3: -.120397 >= -1.583770 / 13 = -.121828: stop, aaa is never considered.
    assert_answers(worked(10, 1.0, 0), [(&[0, 2], -0.092877), (&[2], -0.120397)]);
    // Eight pads before a prompt of two count as upstream counts them.
    assert_answers(worked(2, 1.0, 8), [(&[0, 2], -0.092877), (&[2], -0.120397)]);
}

#[test]
fn stopping_early_takes_the_first_answers_and_never_waits() {
    let run = |early_stopping, length_penalty| {
        let options = GenerateOptions {
            max_new_tokens: 3,
            num_beams: 2,
            length_penalty,
            early_stopping,
            ..Default::default()
        };
        let beams = Beams::new(&options, &[0; 10], &[2], &[]).unwrap();
        let found = search(beams, &[0; 10], |ids| three_tokens(&ids[10..]));
        found.into_iter().map(|h| h.ids[10..].to_vec()).collect::<Vec<_>>()
    };
    // "never" with a positive penalty divides by the limit, 13. Penalty 1, step 2: -.120397 <
    // -1.021651 / 13 = -.078589; step 3 as with "false", since its length is the limit: stop.
    assert_eq!(run(EarlyStopping::Never, 1.0), [vec![0, 2], vec![2]]);
    // Penalty 2: "end" -1.203973 / 100 = -.012040, "a end" -1.021651 / 121 = -.008443. Step 2:
    // -.012040 < -1.021651 / 144 = -.007095; step 3: -.012040 < -1.583770 / 169 = -.009371. Not
    // done: aaa gets in at -.009371 and "end" drops out.
    assert_eq!(run(EarlyStopping::False, 2.0), [vec![0, 2], vec![0, 0, 0]]);
    // "true" stops after step 2, with two answers.
    assert_eq!(run(EarlyStopping::True, 2.0), [vec![0, 2], vec![2]]);
}

#[test]
fn never_looks_as_far_as_the_limit() {
    let run = |early_stopping, length_penalty| {
        let options = GenerateOptions {
            max_new_tokens: 10,
            length_penalty,
            early_stopping,
            ..Default::default()
        };
        let beams = Beams::new(&options, &[0, 0], &[2], &[]).unwrap();
        let found = search(beams, &[0, 0], |ids| match ids.len() {
            2 => ln(&[0.39, 0.01, 0.60]),
            3 => ln(&[0.90, 0.05, 0.05]),
            _ => ln(&[0.99, 0.005, 0.005]),
        });
        found[0].ids.len()
    };
    // One beam, penalty 1. "end": ln .6 / 2 = -.2554. After step 2 the best is .39 * .9 = .351, ln
    // = -1.0470: / 4 = -.2617 could not win, / 12 = -.0872 could, and at .99 a step it does.
    assert_eq!(run(EarlyStopping::False, 1.0), 3);
    assert_eq!(run(EarlyStopping::Never, 1.0), 12);
    // With a negative penalty length only harms, so the present length is the best there is.
    assert_eq!(run(EarlyStopping::Never, -1.0), 3);
}

#[test]
fn an_answer_as_good_as_the_bound_ends_the_search() {
    // One beam, penalty 0: the end is the best candidate, so its score is the bound itself.
    let options = GenerateOptions { max_new_tokens: 9, length_penalty: 0.0, ..Default::default() };
    let mut beams = Beams::new(&options, &[0], &[2], &[]).unwrap();
    assert!(beams.step(&[&ln(&[0.3, 0.1, 0.6])]).unwrap().done);
}

#[test]
fn an_end_below_the_beams_is_not_an_answer() {
    // Two beams: a .5, b .3, end .2 leaves the end third, so nothing is complete after one step.
    let options = GenerateOptions { max_new_tokens: 1, num_beams: 2, ..Default::default() };
    let beams = Beams::new(&options, &[0], &[2], &[]).unwrap();
    let found = search(beams, &[0], |_| ln(&[0.5, 0.3, 0.2]));
    assert_eq!(found.iter().map(|h| h.ids[1]).collect::<Vec<_>>(), [0, 1]);
    assert!(found.iter().all(|h| !h.is_ended));
}

// ---- misuse ----

#[test]
fn beams_refuse_what_they_cannot_use() {
    let options = GenerateOptions { max_new_tokens: 1, num_beams: 2, ..Default::default() };
    let text = |prompt: &[u32], rows: &[&[f32]]| {
        let mut beams = Beams::new(&options, prompt, &[2], &[]).map_err(|e| e.to_string())?;
        beams.step(rows).map(|_| ()).map_err(|e| e.to_string())
    };
    let row = [0.0f32, 0.1, 0.2];
    assert!(text(&[], &[&row]).unwrap_err().starts_with("prompt: "));
    assert!(text(&[0], &[]).unwrap_err().contains("expected 2 rows, found 0"));
    assert!(text(&[0], &[&row[..]; 3]).unwrap_err().contains("found 3"));
    assert!(text(&[0], &[&row, &row[..2]]).unwrap_err().contains("expected rows of 3, found 2"));
    assert!(text(&[0], &[&[], &[]]).is_err());
    assert!(text(&[0], &[&[0.0, f32::NAN, 0.0]]).unwrap_err().contains("NaN at token 1"));
    assert!(text(&[0], &[&[f32::NEG_INFINITY; 3]]).is_err());
    let mut beams = Beams::new(&options, &[0], &[0, 1, 2], &[]).unwrap();
    assert!(beams.step(&[&row]).unwrap_err().to_string().contains("do not end the answer"));
    let mut beams = Beams::new(&options, &[0], &[2], &[]).unwrap();
    assert!(beams.step(&[&row]).unwrap().done);
    assert!(beams.step(&[&row]).unwrap_err().to_string().contains("found done"));
    let none = GenerateOptions { num_beams: 0, ..options.clone() };
    assert!(Beams::new(&none, &[0], &[2], &[]).is_err());
}

// ---- oracles ----

/// Logits after `ids`: small integers over `step`, from a hash, so that ties are common.
fn hashed(ids: &[u32], seed: u64, vocabulary: u32, step: f32) -> Vec<f32> {
    let mix =
        |h: u64, x: u32| (h ^ u64::from(x)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
    let state = ids.iter().fold(seed, |h, &id| mix(h, id));
    (0..vocabulary).map(|token| (mix(mix(state, token), 7) % 64) as f32 / step).collect()
}

struct Oracle<'a> {
    options: &'a GenerateOptions,
    prompt: &'a [u32],
    eos: u32,
}

impl Oracle<'_> {
    /// The rules of the search, word for word: every candidate is sorted, every list is kept.
    fn search(&self, model: impl Fn(&[u32]) -> Vec<f32>) -> Vec<(Vec<u32>, f64)> {
        let (k, lp) = (self.options.num_beams, self.options.length_penalty);
        let limit = self.prompt.len() + self.options.max_new_tokens;
        let mut open: Vec<(Vec<u32>, f32)> = vec![(self.prompt.to_vec(), -1e9); k];
        open[0].1 = 0.0;
        let mut ended: Vec<(Vec<u32>, f64)> = Vec::new();
        let mut done = false;
        while !done && open[0].0.len() < limit {
            let mut candidates = Vec::new();
            for (ids, sum) in &open {
                let row = model(ids);
                let model = Summary::of(&row).unwrap();
                for (token, &x) in row.iter().enumerate() {
                    candidates.push(([&ids[..], &[token as u32]].concat(), model.logprob(x) + sum));
                }
            }
            candidates.sort_by(|a, b| b.1.total_cmp(&a.1));
            candidates.truncate(2 * k);
            let best = f64::from(candidates[0].1);
            open.clear();
            for (rank, (ids, sum)) in candidates.into_iter().enumerate() {
                if open.len() == k {
                    break;
                } else if *ids.last().unwrap() != self.eos {
                    open.push((ids, sum));
                } else if rank < k {
                    let length = ids.len() - 1;
                    self.insert(&mut ended, ids, f64::from(sum) / (length as f64).powf(lp));
                }
            }
            let length = match self.options.early_stopping {
                EarlyStopping::Never if lp > 0.0 => limit,
                _ => open[0].0.len(),
            };
            let bound = best / (length as f64).powf(lp);
            let worst = ended.iter().map(|e| e.1).fold(f64::INFINITY, f64::min);
            let enough = self.options.early_stopping == EarlyStopping::True || worst >= bound;
            done = ended.len() == k && enough;
        }
        if !done {
            for (ids, sum) in open {
                let score = f64::from(sum) / (ids.len() as f64).powf(lp);
                self.insert(&mut ended, ids, score);
            }
        }
        ended.sort_by(|a, b| a.1.total_cmp(&b.1));
        ended.reverse();
        ended
    }

    fn insert(&self, ended: &mut Vec<(Vec<u32>, f64)>, ids: Vec<u32>, score: f64) {
        let worst = ended.iter().map(|e| e.1).fold(f64::INFINITY, f64::min);
        if ended.len() == self.options.num_beams {
            if score <= worst {
                return;
            }
            let first = ended.iter().position(|e| e.1 == worst).unwrap();
            ended.remove(first);
        }
        ended.push((ids, score));
    }
}

/// More cases than usual; failures are printed, not written into the tree.
fn config() -> ProptestConfig {
    ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() }
}

/// When a search may stop, by number.
const EARLY: [EarlyStopping; 3] = [EarlyStopping::False, EarlyStopping::True, EarlyStopping::Never];

proptest! {
    #![proptest_config(config())]

    #[test]
    fn beams_equal_the_rules_word_for_word(
        seed in any::<u64>(), vocabulary in 3u32..30, num_beams in 1usize..7, length in 1usize..9,
        max_new_tokens in 1usize..9, penalty in 0usize..5, early in 0usize..3, coarse in 1u8..40,
    ) {
        let options = GenerateOptions {
            num_beams,
            max_new_tokens,
            length_penalty: [-2.0, 0.0, 0.5, 1.0, 3.0][penalty],
            early_stopping: EARLY[early],
            ..Default::default()
        };
        let prompt: Vec<u32> = (0..length as u32).map(|i| i % vocabulary).collect();
        let model = |ids: &[u32]| hashed(ids, seed, vocabulary, f32::from(coarse));
        let expected = Oracle { options: &options, prompt: &prompt, eos: 1 }.search(model);
        let beams = Beams::new(&options, &prompt, &[1], &[]).unwrap();
        let found = search(beams, &prompt, model);
        let found: Vec<_> = found.into_iter().map(|h| (h.ids, h.score)).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn enough_beams_find_the_most_probable_answer(seed in any::<u64>()) {
        // Two tokens and an end, three steps: 1 + 2 + 4 + 8 answers, all within 16 beams.
        let options = GenerateOptions {
            num_beams: 16, max_new_tokens: 3, length_penalty: 0.0, ..Default::default()
        };
        let model = |ids: &[u32]| hashed(ids, seed, 3, 16.0);
        let mut answers: Vec<(Vec<u32>, f64)> = Vec::new();
        let mut open = vec![(vec![0u32], 0.0f64)];
        while let Some((ids, sum)) = open.pop() {
            let row: Vec<f64> = model(&ids).into_iter().map(f64::from).collect();
            let total: f64 = row.iter().map(|x| x.exp()).sum();
            for (token, x) in row.iter().enumerate() {
                let next = ([&ids[..], &[token as u32]].concat(), sum + x - total.ln());
                let is_answer = token == 2 || next.0.len() == 4;
                if is_answer { answers.push(next) } else { open.push(next) }
            }
        }
        answers.sort_by(|a, b| b.1.total_cmp(&a.1));
        let found = search(Beams::new(&options, &[0], &[2], &[]).unwrap(), &[0], model);
        prop_assert!((found[0].score - answers[0].1).abs() < 1e-5);
        if answers[0].1 - answers[1].1 > 1e-5 {
            prop_assert_eq!(&found[0].ids, &answers[0].0);
        }
        // The raw log-probabilities of an answer add up to its score when nothing is penalised.
        let sum: f64 = found[0].logprobs.iter().map(|&x| f64::from(x)).sum();
        prop_assert!((sum - found[0].score).abs() < 1e-5);
    }

    #[test]
    fn one_beam_that_stops_at_once_is_greedy(seed in any::<u64>(), vocabulary in 3u32..30) {
        let early_stopping = EarlyStopping::True;
        let options = GenerateOptions { max_new_tokens: 6, early_stopping, ..Default::default() };
        let model = |ids: &[u32]| hashed(ids, seed, vocabulary, 7.0);
        let found = search(Beams::new(&options, &[0], &[1], &[]).unwrap(), &[0], model);
        let mut sampler = Sampler::new(&options, &[1], &[]);
        let mut ids = vec![0];
        while ids.len() < 7 && (ids.len() == 1 || ids.last() != Some(&1)) {
            ids.push(sampler.next(&model(&ids), &ids, ids.len() - 1).unwrap().id);
        }
        prop_assert_eq!(&found[0].ids, &ids);
    }

    #[test]
    fn a_seed_reproduces_its_tokens(seed in any::<u64>(), temperature in 0.1f64..3.0) {
        let options = GenerateOptions { seed, temperature, ..Default::default() };
        let run = |options: &GenerateOptions| {
            let mut sampler = Sampler::new(options, &[], &[]);
            let draw = |i: u32| sampler.next(&hashed(&[i], 1, 500, 16.0), &[], 0).unwrap().id;
            (0..20).map(draw).collect::<Vec<_>>()
        };
        prop_assert_eq!(run(&options), run(&options));
        let other = GenerateOptions { seed: seed ^ 1, ..options.clone() };
        prop_assert_ne!(run(&options), run(&other));
    }
}

// ---- distribution ----

/// Pearson's statistic of 20 000 draws against `expected`; a token that may not come never does.
fn chi_square(options: &GenerateOptions, logits: &[f32], expected: &[f64]) -> f64 {
    const DRAWS: usize = 20_000;
    let mut sampler = Sampler::new(options, &[], &[]);
    let mut counts = vec![0u32; logits.len()];
    for _ in 0..DRAWS {
        counts[sampler.next(logits, &[], 0).unwrap().id as usize] += 1;
    }
    let mut sum = 0.0;
    for (&count, &p) in counts.iter().zip(expected) {
        let mean = p * DRAWS as f64;
        if p == 0.0 {
            assert_eq!(count, 0);
        } else {
            sum += (f64::from(count) - mean).powi(2) / mean;
        }
    }
    sum
}

#[test]
fn draws_follow_the_distribution() {
    let p = [0.05f32, 0.3, 0.02, 0.4, 0.13, 0.1];
    let logits = ln(&p);
    let base = GenerateOptions { temperature: 1.0, seed: 5, ..Default::default() };
    // 0.1 % points of chi-square: 20.5 with 5 degrees of freedom, 13.8 with 2.
    let all = p.map(f64::from);
    assert!(chi_square(&base, &logits, &all) < 20.5);
    let squares: f64 = all.iter().map(|p| p * p).sum();
    let sharp = GenerateOptions { temperature: 0.5, ..base.clone() };
    assert!(chi_square(&sharp, &logits, &all.map(|p| p * p / squares)) < 20.5);
    let three = [0.0, 0.3, 0.0, 0.4, 0.13, 0.0].map(|p| p / 0.83);
    assert!(chi_square(&GenerateOptions { top_k: 3, ..base.clone() }, &logits, &three) < 13.8);
    assert!(chi_square(&GenerateOptions { top_p: 0.75, ..base.clone() }, &logits, &three) < 13.8);
    assert!(chi_square(&GenerateOptions { min_p: 0.3, ..base.clone() }, &logits, &three) < 13.8);
    // The test can fail: the wrong distribution is far outside.
    assert!(chi_square(&sharp, &logits, &all) > 1000.0);
}

/// `cargo test --release --test sampler speed -- --ignored --nocapture`
#[test]
#[ignore = "prints times"]
fn speed() {
    let vocabulary = 32_003;
    let logits = hashed(&[1], 3, vocabulary, 3.7);
    let history: Vec<u32> = (0..1000).collect();
    let suppress = [32_001, 32_002];
    let options = |change: fn(&mut GenerateOptions)| {
        let mut options = GenerateOptions::default();
        change(&mut options);
        options
    };
    let kinds = [
        ("greedy", options(|_| ())),
        ("greedy, 5 logprobs", options(|o| o.logprobs = 5)),
        ("repetition penalty", options(|o| o.repetition_penalty = 1.1)),
        ("temperature", options(|o| o.temperature = 0.7)),
        ("top_k 50", options(|o| (o.temperature, o.top_k) = (0.7, 50))),
        ("top_p 0.9", options(|o| (o.temperature, o.top_p) = (0.7, 0.9))),
        ("min_p 0.05", options(|o| (o.temperature, o.min_p) = (0.7, 0.05))),
    ];
    for (name, options) in kinds {
        let mut sampler = Sampler::new(&options, &[32_000], &suppress);
        let mut times: Vec<f64> = (0..200)
            .map(|_| {
                let start = std::time::Instant::now();
                std::hint::black_box(sampler.next(&logits, &history, 10).unwrap());
                start.elapsed().as_secs_f64() * 1e6
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let (median, least) = (times[100], times[0]);
        println!("{name:20} {median:7.1} us per token (least {least:.1}, V = {vocabulary})");
    }
    let options = GenerateOptions { num_beams: 5, max_new_tokens: 200, ..Default::default() };
    let mut beams = Beams::new(&options, &history, &[32_000], &suppress).unwrap();
    let mut times: Vec<f64> = (0..100)
        .map(|_| {
            let start = std::time::Instant::now();
            beams.step(&[&logits[..]; 5]).unwrap();
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("{:20} {:7.1} us per step", "5 beams", times[50]);
}
