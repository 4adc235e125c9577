//! Release 0.0.2's augmentation of media placement: each forward of training draws its mask, and
//! nothing but the number of the forward decides which.

use crate::ranks::Alike;
use crate::runs::{batch, model, on, options, poisoned, restore, saved, trainer, with_poison};
use medflamingo::device::Stream;
use medflamingo::model::MaskMode;
use medflamingo::train::data::Placement;
use medflamingo::train::{Batch, Shard, TrainOptions, Trained, Trainer};

const PREVIOUS: MaskMode = MaskMode::V1AttendPrevious;
const NEXT: MaskMode = MaskMode::V1AttendNext;

fn with(mask_mode: Placement) -> TrainOptions {
    TrainOptions { mask_mode, seed: 9, ..options(Trained::default()) }
}

/// Every step is that of one of the two masks for each source, as drawn; both occur in both
/// sources, and not always together.
#[test]
fn each_forward_and_source_has_a_mask_of_its_own() {
    let model = model("llama-tiny");
    let mut drawn = trainer(&model, "f32", with(Placement::Augmented), 2);
    let masks = [PREVIOUS, NEXT];
    let mut fixed = masks.map(|m| trainer(&model, "f32", with(Placement::Fixed(m)), 2));
    let batch = batch(&model, &drawn, 3);
    let mut seen = Vec::new();
    for step in 0..8 {
        fixed.iter_mut().for_each(|other| restore(other, &drawn));
        let own = drawn.step(std::slice::from_ref(&batch)).unwrap().losses;
        let others = fixed.each_mut().map(|t| t.step(std::slice::from_ref(&batch)).unwrap().losses);
        let both = [0, 1].map(|source| {
            let [a, b] = [0, 1].map(|mask| others[mask][source].loss);
            assert_ne!(a, b, "the masks differ");
            let mask = if own[source].loss == a { PREVIOUS } else { NEXT };
            assert!([a, b].contains(&own[source].loss), "step {step}, source {source}");
            assert_eq!(mask, Placement::Augmented.mask(9, step, source), "step {step}");
            mask
        });
        seen.push(both);
    }
    for source in 0..2 {
        assert!(masks.iter().all(|m| seen.iter().any(|both| both[source] == *m)), "{seen:?}");
    }
    assert!(seen.iter().any(|[a, b]| a != b), "{seen:?}");
}

#[test]
fn validation_looks_at_the_next_image_always() {
    let model = model("llama-tiny");
    let mut drawn = trainer(&model, "f32", with(Placement::Augmented), 2);
    let mut fixed = trainer(&model, "f32", with(Placement::Fixed(NEXT)), 2);
    let batch = batch(&model, &drawn, 3);
    for _ in 0..4 {
        restore(&mut fixed, &drawn);
        assert_eq!(drawn.evaluate(&batch).unwrap(), fixed.evaluate(&batch).unwrap());
        drawn.step(std::slice::from_ref(&batch)).unwrap();
    }
}

#[test]
fn a_restored_run_draws_the_same_masks() {
    let model = model("llama-tiny");
    let mut whole = with_poison(&model, with(Placement::Augmented), 2);
    let mut resumed = with_poison(&model, with(Placement::Augmented), 1);
    let batches: Vec<_> = (0..2).map(|seed| batch(&model, &whole, seed)).collect();
    let bad = [poisoned(&batches[0]), batches[1].clone()];
    // A step that is left out has had its forwards, too.
    let good = batches.as_slice();
    for (i, batches) in [good, &bad, good, good, good].into_iter().enumerate() {
        if i == 3 {
            restore(&mut resumed, &whole);
        }
        let report = whole.step(batches).unwrap();
        assert_eq!(report.skipped.is_some(), i == 1);
        if i >= 3 {
            let again = resumed.step(batches).unwrap();
            assert_eq!((again.loss, again.grad_norm), (report.loss, report.grad_norm));
        }
    }
    assert!(saved(&whole) == saved(&resumed));
    let mut other =
        trainer(&model, "f32", TrainOptions { seed: 8, ..with(Placement::Augmented) }, 2);
    restore(&mut other, &whole);
    let differs = (0..6).any(|_| {
        let [a, b] = [&mut whole, &mut other].map(|t| t.step(&batches).unwrap().loss);
        restore(&mut other, &whole);
        a != b
    });
    assert!(differs, "the seed decides");
}

/// Micro-batches of ranks have the masks that they have on one rank.
#[test]
fn ranks_draw_what_one_would() {
    let model = model("llama-tiny");
    let mut whole = trainer(&model, "f32", with(Placement::Augmented), 2);
    let batches: Vec<Batch> = (0..4).map(|seed| batch(&model, &whole, seed)).collect();
    let mut sum = 0.0;
    let losses: Vec<f64> = (batches.iter())
        .map(|batch| {
            whole.accumulate(batch, 4).unwrap();
            let before = std::mem::replace(&mut sum, whole.loss());
            sum - before
        })
        .collect();
    for world in [2, 4] {
        for rank in 0..world {
            let how = with(Placement::Augmented);
            let sums = Some(Alike::boxed(Shard { rank, world }, 1 << 14));
            let mut own: Trainer = on(&model, "f32", how, Stream::host(2), sums);
            let mut before = 0.0;
            for (batch, loss) in batches.iter().zip(&losses).skip(rank).step_by(world) {
                own.accumulate(batch, 4).unwrap();
                let found = own.loss() - before;
                assert!((found - loss).abs() < 1e-9, "rank {rank} of {world}: {found} {loss}");
                before = own.loss();
            }
        }
    }
}
