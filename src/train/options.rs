//! How a model is trained: which parts, which optimiser, which schedule; and what is impossible.

use super::data::Placement;
use crate::model::{Recompute, Trained};
use crate::ops::SecondMomentMap;
use crate::{DType, Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Everything that decides what a step computes, apart from model and data. The defaults are those
/// of OpenFlamingo 2.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainOptions {
    /// Which parts are trained; the others stay as they are and get no gradients.
    pub trained: Trained,
    /// Factor of each source's loss, by source number; 1 for those that are not here.
    pub loss_weights: Vec<f64>,
    /// Which image a text token attends to; `v1-augmented` draws it for each forward.
    pub mask_mode: Placement,
    pub optimizer: OptimizerOptions,
    pub schedule: Schedule,
    /// Largest norm of all gradients together; 0 for no limit.
    pub clip: f64,
    /// Which activations are computed again in backward instead of being kept.
    pub recompute: Recompute,
    pub outliers: Outliers,
    /// Rows of logits that exist at a time.
    pub logit_rows: usize,
    /// Of the noise of stochastic rounding, and of the masks that are drawn.
    pub seed: u64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        TrainOptions {
            trained: Trained::default(),
            loss_weights: Vec::new(),
            mask_mode: Placement::default(),
            optimizer: OptimizerOptions::default(),
            schedule: Schedule::default(),
            clip: 1.0,
            recompute: Recompute::None,
            outliers: Outliers::default(),
            logit_rows: 2048,
            seed: 0,
        }
    }
}

/// AdamW and what it applies to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerOptions {
    /// Bits of each moment: 32, or 8 for tensors of at least [`OptimizerOptions::SMALL`] elements.
    pub bits: u32,
    /// Elements that share a scale where moments have 8 bits: 256 or 2048.
    pub block: usize,
    /// Which numbers the codes of second moments stand for.
    pub second_moment: SecondMomentMap,
    pub betas: [f32; 2],
    pub eps: f32,
    /// Share of a parameter that the learning rate takes away per step.
    pub weight_decay: f32,
    pub decayed: Decayed,
    pub precision: Precision,
}

impl OptimizerOptions {
    /// Tensors of fewer elements keep moments of 32 bits, as in bitsandbytes.
    pub const SMALL: usize = 4096;
}

impl Default for OptimizerOptions {
    fn default() -> Self {
        OptimizerOptions {
            bits: 32,
            block: 256,
            second_moment: SecondMomentMap::Dynamic,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.1,
            decayed: Decayed::V2,
            precision: Precision::Master,
        }
    }
}

/// Which parameters weight decay applies to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decayed {
    /// All of the gated blocks, gates and norms included (OpenFlamingo 2).
    #[default]
    V2,
    /// The gated blocks without gates, biases and the norm of the attention; the norm before the
    /// MLP is in, because its name says nothing of a norm (OpenFlamingo 0.0.2).
    V1,
    /// Matrices of every trained part but embeddings: for a model trained from nothing.
    Matrices,
    None,
}

impl Decayed {
    /// True if the parameter called `name`, of that many dimensions, decays.
    pub fn applies(self, name: &str, rank: usize) -> bool {
        let is_block = name.starts_with("xattn.");
        match self {
            Decayed::V2 => is_block,
            Decayed::V1 => {
                let spared = [".gate", ".bias", ".attn.norm."];
                is_block && !spared.iter().any(|part| name.contains(part))
            }
            Decayed::Matrices => {
                let spared = ["embedding", "latents"];
                rank == 2 && !spared.iter().any(|part| name.contains(part))
            }
            Decayed::None => false,
        }
    }
}

/// What a 16-bit parameter remembers of the steps that are too small for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// A copy in f32, which the stored parameter is the rounding of. f32 parameters are their own.
    #[default]
    Master,
    /// Nothing: bf16 parameters are rounded up or down at random, so that steps hold on average.
    Stochastic,
    /// Nothing: small steps are lost.
    Nearest,
}

/// The learning rate of each step (transformers get_{constant,linear,cosine}_schedule_with_warmup).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    pub kind: ScheduleKind,
    /// The largest learning rate.
    pub lr: f64,
    /// Steps in which the rate rises from 0, which is that of the first.
    pub warmup_steps: u64,
    /// Steps after which it has fallen to 0.
    pub total_steps: u64,
}

/// What the learning rate does after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    #[default]
    Constant,
    Linear,
    /// Half a wave down to 0.
    Cosine,
}

impl Default for Schedule {
    fn default() -> Self {
        let kind = ScheduleKind::Constant;
        Schedule { kind, lr: 1e-4, warmup_steps: 5000, total_steps: 100_000 }
    }
}

impl Schedule {
    /// The learning rate of a step; the first is 0.
    pub fn at(&self, step: u64) -> f64 {
        let (s, w, t) = (step as f64, self.warmup_steps as f64, self.total_steps as f64);
        if step < self.warmup_steps {
            return self.lr * (s / w.max(1.0));
        }
        let rest = (t - w).max(1.0);
        self.lr
            * match self.kind {
                ScheduleKind::Constant => 1.0,
                ScheduleKind::Linear => ((t - s) / rest).max(0.0),
                ScheduleKind::Cosine => {
                    let wave = std::f64::consts::PI * 0.5 * 2.0 * ((s - w) / rest);
                    (0.5 * (1.0 + wave.cos())).max(0.0)
                }
            }
    }
}

/// Steps that are left out because their loss or gradient is far from those before.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Outliers {
    /// Standard deviations of the loss above its mean that a step may be; 0 for any.
    pub loss_z: f64,
    /// As `loss_z`, of the norm of the gradient.
    pub gradient_z: f64,
    /// Steps that mean and deviation are of.
    pub window: usize,
}

impl Default for Outliers {
    fn default() -> Self {
        Outliers { loss_z: 0.0, gradient_z: 0.0, window: 128 }
    }
}

impl TrainOptions {
    /// The factor of a source's loss.
    pub fn loss_weight(&self, source: usize) -> f64 {
        self.loss_weights.get(source).copied().unwrap_or(1.0)
    }

    /// Refuses what no run can do. `dtype` is that of the model's weights.
    ///
    /// # Errors
    /// Names the option, what it may be and what it is.
    pub fn check(&self, dtype: DType) -> Result<()> {
        if self.trained == Trained::NOTHING {
            let advice = "turn on resampler, gated_blocks, embedding_rows, language or vision";
            return Err(Error::invalid("trained", "at least one part", "none").advise(advice));
        }
        let o = &self.optimizer;
        among("optimizer.bits", o.bits, &[8, 32])?;
        among("optimizer.block", o.block, &[256, 2048])?;
        for (name, beta) in [("optimizer.betas[0]", o.betas[0]), ("optimizer.betas[1]", o.betas[1])]
        {
            if !(0.0..1.0).contains(&beta) {
                return Err(Error::invalid(name, "0 or more, less than 1", beta));
            }
        }
        for (name, value) in [
            ("optimizer.eps", f64::from(o.eps)),
            ("optimizer.weight_decay", f64::from(o.weight_decay)),
            ("schedule.lr", self.schedule.lr),
            ("clip", self.clip),
            ("outliers.loss_z", self.outliers.loss_z),
            ("outliers.gradient_z", self.outliers.gradient_z),
        ] {
            not_negative(name, value)?;
        }
        for (i, &weight) in self.loss_weights.iter().enumerate() {
            not_negative(&format!("loss_weights[{i}]"), weight)?;
        }
        if o.precision == Precision::Stochastic && dtype != DType::BF16 {
            let expected = "master or nearest, unless weights are bf16";
            return Err(Error::invalid("optimizer.precision", expected, "stochastic"));
        }
        at_least_one("logit_rows", self.logit_rows)?;
        at_least_one("outliers.window", self.outliers.window)
    }
}

fn among<T: PartialEq + fmt::Display>(name: &str, found: T, allowed: &[T]) -> Result<()> {
    if allowed.contains(&found) {
        return Ok(());
    }
    let allowed: Vec<_> = allowed.iter().map(T::to_string).collect();
    Err(Error::invalid(name, allowed.join(" or "), found))
}

fn not_negative(name: &str, found: f64) -> Result<()> {
    if found >= 0.0 && found.is_finite() {
        return Ok(());
    }
    Err(Error::invalid(name, "0 or a positive number", found))
}

fn at_least_one(name: &str, found: usize) -> Result<()> {
    if found > 0 { Ok(()) } else { Err(Error::invalid(name, "1 or more", found)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_both_releases() {
        let gate = ("xattn.3.attn.gate", 1);
        let norm = ("xattn.3.attn.norm.weight", 1);
        let mlp_norm = ("xattn.3.mlp.norm.weight", 1);
        let mlp_bias = ("xattn.3.mlp.norm.bias", 1);
        let matrix = ("xattn.3.attn.q.weight", 2);
        let latents = ("resampler.latents", 2);
        let plain = ("resampler.layers.0.attn.q.weight", 2);
        let all = [gate, norm, mlp_norm, mlp_bias, matrix, latents, plain];
        let of = |d: Decayed| all.map(|(name, rank)| d.applies(name, rank));
        assert_eq!(of(Decayed::V2), [true, true, true, true, true, false, false]);
        assert_eq!(of(Decayed::V1), [false, false, true, false, true, false, false]);
        assert_eq!(of(Decayed::Matrices), [false, false, false, false, true, false, true]);
        assert_eq!(of(Decayed::None), [false; 7]);
    }

    #[test]
    fn impossible_options_are_named() {
        let refused = |change: &dyn Fn(&mut TrainOptions)| {
            let mut options = TrainOptions::default();
            change(&mut options);
            options.check(DType::F32).unwrap_err().to_string()
        };
        TrainOptions::default().check(DType::F32).unwrap();
        assert!(refused(&|o| o.trained = Trained::NOTHING).starts_with("trained: expected at"));
        assert!(refused(&|o| o.optimizer.bits = 16).contains("8 or 32, found 16"));
        assert!(refused(&|o| o.optimizer.block = 512).contains("256 or 2048"));
        assert!(refused(&|o| o.optimizer.betas[1] = 1.0).starts_with("optimizer.betas[1]"));
        assert!(refused(&|o| o.schedule.lr = f64::NAN).starts_with("schedule.lr"));
        assert!(refused(&|o| o.loss_weights = vec![1.0, -1.0]).starts_with("loss_weights[1]"));
        assert!(refused(&|o| o.optimizer.precision = Precision::Stochastic).contains("bf16"));
        assert!(refused(&|o| o.logit_rows = 0).starts_with("logit_rows"));
        let json = r#"{"schedule": {"kind": "cosine", "lr": 0.001}, "trained": {"vision": true}}"#;
        let read: TrainOptions = serde_json::from_str(json).unwrap();
        assert!(read.trained.vision && read.trained.resampler && !read.trained.language);
        assert_eq!(read.schedule.kind, ScheduleKind::Cosine);
        assert!(serde_json::from_str::<TrainOptions>(r#"{"learning_rate": 1}"#).is_err());
    }
}
