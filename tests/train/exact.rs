//! What must hold of a step whatever the model: which gradients there are, that bits do not depend
//! on threads, shards or interruptions, and that bad steps change nothing.

use crate::golden_folder::relative_l2;
use crate::ranks::Alike;
use crate::runs::{
    batch, gradients, held, model, on, options, poisoned, restore, saved, trainer, with_poison,
};
use medflamingo::device::{Chip, Stream};
use medflamingo::train::{
    ALIGN, Batch, NO_LABEL, Outliers, Precision, Shard, Skipped, Trained, Trainer,
};
use std::collections::BTreeMap;

#[test]
fn threads_do_not_change_bits() {
    let model = model("llama-tiny");
    let run = |threads: usize| {
        let mut trainer = trainer(&model, "f32", options(Trained::ALL), threads);
        let batches = [batch(&model, &trainer, 1), batch(&model, &trainer, 2)];
        let report = trainer.step(&batches).unwrap();
        (report.loss.to_bits(), report.grad_norm.to_bits(), trainer.flat().to_f32().unwrap())
    };
    assert!(run(1) == run(3));
}

#[test]
fn parts_are_trained_as_if_the_others_were_too() {
    let model = model("mpt-tiny");
    let mut everything = trainer(&model, "f32", options(Trained::ALL), 2);
    let batch = [batch(&model, &everything, 5)];
    let full = gradients(&mut everything, &batch);
    let full: BTreeMap<_, _> =
        everything.parameters().iter().map(|p| (&p.name, (&full[p.range.clone()], p))).collect();
    let only = |change: &dyn Fn(&mut Trained)| {
        let mut trained = Trained::NOTHING;
        change(&mut trained);
        let mut some = trainer(&model, "f32", options(trained), 2);
        let flat = gradients(&mut some, &batch);
        assert!(!some.parameters().is_empty());
        for p in some.parameters() {
            let (expected, of) = full[&p.name];
            let own = &flat[p.range.clone()];
            match &p.rows {
                None => assert!(relative_l2(own, expected) < 1e-5, "{trained:?} {}", p.name),
                Some(rows) => {
                    let width = of.shape[1];
                    let at = rows.iter().map(|&r| r as usize * width);
                    let expected: Vec<_> =
                        at.flat_map(|at| expected[at..at + width].to_vec()).collect();
                    assert!(relative_l2(own, &expected) < 1e-5, "{}", p.name);
                }
            }
        }
    };
    only(&|t| t.resampler = true);
    only(&|t| t.gated_blocks = true);
    only(&|t| t.embedding_rows = true);
    only(&|t| t.language = true);
    only(&|t| t.vision = true);
}

#[test]
fn micro_batches_are_averaged() {
    let model = model("llama-tiny");
    let mut trainer = trainer(&model, "f32", options(Trained::default()), 2);
    let batches = [batch(&model, &trainer, 1), batch(&model, &trainer, 2)];
    let mut of = |batches: &[Batch]| {
        let found = gradients(&mut trainer, batches);
        let loss = trainer.loss();
        // A step that is left out forgets what was accumulated.
        assert_eq!(trainer.update(&[], 1.0, f64::NAN).unwrap().skipped, Some(Skipped::NotFinite));
        (found, loss)
    };
    let (both, loss) = of(&batches);
    let ((a, first), (b, second)) = (of(&batches[..1]), of(&batches[1..]));
    let mean: Vec<f32> = a.iter().zip(&b).map(|(a, b)| (a + b) / 2.0).collect();
    assert!(relative_l2(&both, &mean) < 1e-6);
    assert!((loss - (first + second) / 2.0).abs() < 1e-9);
}

#[test]
fn losses_of_sources_are_weighted_and_means_of_their_own_tokens() {
    let model = model("llama-tiny");
    let weights = [0.25, 2.0];
    let mut both = options(Trained::default());
    both.loss_weights = weights.to_vec();
    let mut both = trainer(&model, "f32", both, 2);
    let together = batch(&model, &both, 3);
    let found = gradients(&mut both, std::slice::from_ref(&together));
    let mut sum = vec![0f32; found.len()];
    for (source, weight) in weights.into_iter().enumerate() {
        let mut alone = trainer(&model, "f32", options(Trained::default()), 2);
        let own = together.sequences.iter().filter(|s| s.source == source).cloned().collect();
        let own = gradients(&mut alone, &[Batch { sequences: own }]);
        sum.iter_mut().zip(own).for_each(|(s, g)| *s += weight as f32 * g);
    }
    assert!(relative_l2(&found, &sum) < 1e-5);
}

#[test]
fn the_loss_of_one_batch_falls_to_nothing() {
    let model = model("llama-tiny");
    for (bits, dtype, precision) in [
        (32, "f32", Precision::Master),
        (8, "f32", Precision::Master),
        (8, "bf16", Precision::Master),
        (32, "bf16", Precision::Stochastic),
    ] {
        let mut how = options(Trained::ALL);
        how.optimizer.bits = bits;
        how.optimizer.precision = precision;
        how.schedule.lr = 2e-3;
        let mut trainer = trainer(&model, dtype, how, 2);
        let batch = [batch(&model, &trainer, 1)];
        let first = trainer.step(&batch).unwrap();
        let last = (0..24).map(|_| trainer.step(&batch).unwrap()).last().unwrap();
        let at = format!("{bits} bits, {dtype}, {precision:?}: {} {}", first.loss, last.loss);
        assert!(first.loss > 8.0 && last.loss < 0.5 * first.loss, "{at}");
    }
}

/// 16-bit gradients are near those of f32.
#[test]
fn bf16_gradients_are_near_those_of_f32() {
    let model = model("llama-tiny");
    let of = |dtype: &str| {
        let mut trainer = trainer(&model, dtype, options(Trained::default()), 2);
        let batch = batch(&model, &trainer, 1);
        let found = gradients(&mut trainer, &[batch]);
        let parts: Vec<_> = trainer.parameters().to_vec();
        (found, parts)
    };
    let ((exact, parts), (rounded, _)) = (of("f32"), of("bf16"));
    assert!(relative_l2(&rounded, &exact) < 0.05);
    for p in parts.iter().filter(|p| p.range.len() > 1) {
        let error = relative_l2(&rounded[p.range.clone()], &exact[p.range.clone()]);
        assert!(error < 0.15, "{}: {error}", p.name);
    }
}

/// The whole step on the real kernels, under the emulator.
#[test]
fn emulated_kernels_give_the_hosts_gradients() {
    let model = model("llama-tiny");
    let mut how = options(Trained::default());
    how.optimizer.bits = 8;
    let mut host = trainer(&model, "f32", how.clone(), 2);
    let mut one = batch(&model, &host, 1);
    one.sequences.truncate(1);
    let expected = gradients(&mut host, std::slice::from_ref(&one));
    let stream = Stream::emulated(Chip::A100).unwrap();
    let mut emulated = on(&model, "f32", how, stream, None);
    let found = gradients(&mut emulated, &[one]);
    let error = relative_l2(&found, &expected);
    assert!(error < 1e-5, "{error:e}");
    for trainer in [&mut host, &mut emulated] {
        let (squares, loss) = (trainer.squares().unwrap(), trainer.loss());
        assert_eq!(trainer.update(&squares, 1.0, loss).unwrap().skipped, None);
    }
    let [a, b] = [&emulated, &host].map(|t| t.flat().to_f32().unwrap());
    assert!(relative_l2(&a, &b) < 1e-4);
}

#[test]
fn a_restored_run_goes_on_to_the_bit() {
    let model = model("llama-tiny");
    for (bits, dtype, precision) in
        [(32, "f32", Precision::Master), (8, "bf16", Precision::Stochastic)]
    {
        let mut how = options(Trained::default());
        how.optimizer.bits = bits;
        how.optimizer.precision = precision;
        how.outliers = Outliers { loss_z: 6.0, gradient_z: 6.0, window: 16 };
        let mut whole = trainer(&model, dtype, how.clone(), 2);
        let batches: Vec<_> = (0..4).map(|i| [batch(&model, &whole, i)]).collect();
        let mut second = trainer(&model, dtype, how, 2);
        for (i, batch) in batches.iter().enumerate() {
            if i == 2 {
                restore(&mut second, &whole);
            }
            let report = whole.step(batch).unwrap();
            if i >= 2 {
                let again = second.step(batch).unwrap();
                assert_eq!((again.loss, again.grad_norm), (report.loss, report.grad_norm));
            }
        }
        assert!(saved(&whole) == saved(&second), "{bits} {dtype}");
        assert_eq!(whole.progress(), second.progress());
    }
}

/// Ranks that exchange nothing but squares and parameters: here each computes the same gradients.
#[test]
fn shards_make_the_step_of_one_rank() {
    let model = model("llama-tiny");
    for (bits, dtype, precision) in
        [(8, "bf16", Precision::Stochastic), (8, "f32", Precision::Master)]
    {
        let mut how = options(Trained::default());
        how.optimizer.bits = bits;
        how.optimizer.precision = precision;
        let mut whole = trainer(&model, dtype, how.clone(), 2);
        let batch = batch(&model, &whole, 1);
        let report = whole.step(std::slice::from_ref(&batch)).unwrap();
        let expected = whole.flat().to_f32().unwrap();
        for world in [2, 3] {
            let shards = (0..world).map(|rank| Shard { rank, world });
            let one = |shard| {
                on(&model, dtype, how.clone(), Stream::host(1), Some(Alike::boxed(shard, 1 << 14)))
            };
            let mut ranks: Vec<Trainer> = shards.map(one).collect();
            let mut squares = Vec::new();
            for rank in &mut ranks {
                rank.accumulate(&batch, 1).unwrap();
                squares.extend(rank.squares().unwrap());
            }
            let mut found = Vec::new();
            for rank in &mut ranks {
                let own = rank.update(&squares, 1.0, report.loss).unwrap();
                assert_eq!(own.grad_norm, report.grad_norm);
                found.extend_from_slice(&rank.flat().to_f32().unwrap()[rank.own()]);
                assert!(rank.own().len().is_multiple_of(ALIGN));
            }
            assert!(found == expected, "{world} ranks, {dtype}");
        }
    }
}

#[test]
fn steps_that_are_not_finite_change_nothing_and_are_counted() {
    let model = model("llama-tiny");
    let mut trainer = with_poison(&model, options(Trained::default()), 2);
    let good = batch(&model, &trainer, 1);
    trainer.step(std::slice::from_ref(&good)).unwrap();
    let before = saved(&trainer);
    let report = trainer.step(&[good.clone(), poisoned(&good)]).unwrap();
    assert_eq!(report.skipped, Some(Skipped::NotFinite));
    assert!(saved(&trainer) == before);
    assert_eq!((trainer.progress().steps, trainer.progress().skipped), (1, 1));
    assert_eq!(trainer.step(&[good]).unwrap().skipped, None);
}

#[test]
fn sequences_without_images_or_labels_are_no_trouble() {
    let model = model("mpt-tiny");
    let mut trainer = trainer(&model, "f32", options(Trained::ALL), 2);
    let mut text = batch(&model, &trainer, 1);
    text.sequences.retain(|s| s.images.is_empty());
    let report = trainer.step(std::slice::from_ref(&text)).unwrap();
    assert!(report.skipped.is_none() && report.images == 0 && report.losses.len() == 1);
    for sample in &mut text.sequences {
        sample.labels.fill(NO_LABEL);
    }
    let report = trainer.step(std::slice::from_ref(&text)).unwrap();
    assert!(report.losses.is_empty() && report.grad_norm == 0.0);
    let report = trainer.step(&[Batch::default()]).unwrap();
    assert_eq!((report.tokens, report.grad_norm), (0, 0.0));
}

/// What a step needs is known after the first of its size.
#[test]
fn nothing_more_is_allocated_after_the_first_step() {
    let model = model("llama-tiny");
    let mut trainer = trainer(&model, "f32", options(Trained::default()), 2);
    let batch = [batch(&model, &trainer, 1)];
    held(&mut trainer, &batch);
}
