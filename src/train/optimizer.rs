//! AdamW over the flat tensor of parameters, or over a rank's share of it.

use super::options::{OptimizerOptions, Precision};
use crate::device::Stream;
use crate::model::{Parameter, Parameters};
use crate::ops::{self, AdamwStep, Codebooks, Moments8};
use crate::tensor::{Tensor, View, ViewMut};
use crate::{DType, Result};
use std::ops::Range;

/// The moments of a piece.
enum Moments {
    Full { m: Tensor, v: Tensor },
    Eight { codes: [Tensor; 2], absmax: [Tensor; 2] },
}

/// A parameter, or as much of it as is in the shard.
struct Piece {
    parameter: usize,
    /// Of the flat tensor.
    range: Range<usize>,
    decays: bool,
    master: Option<Tensor>,
    moments: Moments,
}

/// A tensor of the state of a training run.
pub struct StateTensor<'a> {
    /// The parameter's name and what of it this is, such as `xattn.3.attn.gate/m`; a part of a
    /// parameter also says which elements, as in `.../m[0..2048]`.
    pub name: String,
    pub view: View<'a>,
}

pub(super) struct Optimizer {
    options: OptimizerOptions,
    seed: u64,
    /// The first element of the share.
    start: usize,
    pieces: Vec<Piece>,
    books: Option<Codebooks>,
    /// What the kernels multiply gradients with, (1) f32.
    factor: Tensor,
}

impl Optimizer {
    pub fn new(
        stream: &Stream,
        params: &Parameters,
        options: &OptimizerOptions,
        seed: u64,
        own: Range<usize>,
    ) -> Result<Self> {
        let piece = |(i, p): (usize, &Parameter)| {
            let range = p.range.start.max(own.start)..p.range.end.min(own.end);
            (range.start < range.end).then(|| Piece::new(stream, params, options, i, range))
        };
        let pieces = params.trained().iter().enumerate().filter_map(piece);
        let books = match options.bits {
            8 => Some(Codebooks::new(stream, options.second_moment)?),
            _ => None,
        };
        Ok(Optimizer {
            options: options.clone(),
            seed,
            start: own.start,
            pieces: pieces.collect::<Result<_>>()?,
            books,
            factor: Tensor::zeros(stream, DType::F32, &[1])?,
        })
    }

    /// Step number `step`, from 1, with the share's gradients times `factor`.
    pub fn step(
        &mut self,
        stream: &Stream,
        params: &mut Parameters,
        grads: View<'_>,
        step: u64,
        lr: f64,
        factor: f32,
    ) -> Result<()> {
        self.factor.view_mut().write(&[factor])?;
        let (o, factor) = (&self.options, self.factor.view());
        let is_random = o.precision == Precision::Stochastic && params.dtype() == DType::BF16;
        for piece in &mut self.pieces {
            let at = AdamwStep {
                step,
                lr: lr as f32,
                betas: o.betas,
                eps: o.eps,
                weight_decay: if piece.decays { o.weight_decay } else { 0.0 },
                seed: if is_random { noise_seed(self.seed, step, piece.range.start) } else { 0 },
            };
            let param = params.flat_mut().block(0..1, piece.range.clone())?;
            let own = piece.range.start - self.start..piece.range.end - self.start;
            let grad = grads.block(0..1, own)?;
            let master = piece.master.as_mut().map(Tensor::view_mut);
            match (&mut piece.moments, &self.books) {
                (Moments::Eight { codes, absmax }, Some(books)) => {
                    let moments = Moments8 {
                        codes: codes.each_mut().map(Tensor::view_mut),
                        absmax: absmax.each_mut().map(Tensor::view_mut),
                    };
                    let factor = Some(factor);
                    ops::adamw8(stream, param, master, moments, grad, factor, books, o.block, &at)?;
                }
                (Moments::Full { m, v }, _) => {
                    let (m, v) = (m.view_mut(), v.view_mut());
                    ops::adamw(stream, param, master, m, v, grad, Some(factor), &at)?;
                }
                (Moments::Eight { .. }, None) => {}
            }
        }
        params.refresh()
    }

    /// Everything that must be saved to go on, in the order of the parameters.
    pub fn state<'a>(&'a self, params: &'a Parameters) -> Result<Vec<StateTensor<'a>>> {
        let mut list = Vec::new();
        for piece in &self.pieces {
            let param = params.flat().block(0..1, piece.range.clone())?;
            list.push((piece.name(params, "param"), param));
            for (what, tensor) in piece.tensors() {
                list.push((piece.name(params, what), tensor.view()));
            }
        }
        Ok(list.into_iter().map(|(name, view)| StateTensor { name, view }).collect())
    }

    /// Lets `read` fill every tensor of [`Optimizer::state`], by name.
    pub fn restore(
        &mut self,
        params: &mut Parameters,
        read: &mut dyn FnMut(&str, ViewMut<'_>) -> Result<()>,
    ) -> Result<()> {
        for piece in &mut self.pieces {
            let name = piece.name(params, "param");
            read(&name, params.flat_mut().block(0..1, piece.range.clone())?)?;
            let names: Vec<_> = piece.tensors().map(|(what, _)| piece.name(params, what)).collect();
            for (tensor, name) in piece.tensors_mut().zip(names) {
                read(&name, tensor.view_mut())?;
            }
        }
        params.refresh()
    }

    /// Bytes of moments and master copies.
    pub fn bytes(&self) -> usize {
        self.pieces.iter().flat_map(Piece::tensors).map(|(_, tensor)| tensor.bytes()).sum()
    }
}

impl Piece {
    fn new(
        stream: &Stream,
        params: &Parameters,
        options: &OptimizerOptions,
        i: usize,
        range: Range<usize>,
    ) -> Result<Self> {
        let (parameter, n) = (&params.trained()[i], range.len());
        let zeros = |dtype, n| Tensor::zeros(stream, dtype, &[1, n]);
        let is_small = parameter.range.len() < OptimizerOptions::SMALL;
        let moments = if options.bits == 8 && !is_small {
            let scales = n.div_ceil(options.block);
            Moments::Eight {
                codes: [zeros(DType::U8, n)?, zeros(DType::U8, n)?],
                absmax: [zeros(DType::F32, scales)?, zeros(DType::F32, scales)?],
            }
        } else {
            Moments::Full { m: zeros(DType::F32, n)?, v: zeros(DType::F32, n)? }
        };
        let has_master = options.precision == Precision::Master && params.dtype() != DType::F32;
        let master = match has_master {
            true => {
                let values = params.flat().block(0..1, range.clone())?.to_f32()?;
                Some(Tensor::upload(stream, &values, &[1, n])?)
            }
            false => None,
        };
        let decays = options.decayed.applies(&parameter.name, parameter.shape.len());
        Ok(Piece { parameter: i, range, decays, master, moments })
    }

    fn name(&self, params: &Parameters, what: &str) -> String {
        let Parameter { name, range, .. } = &params.trained()[self.parameter];
        match self.range == *range {
            true => format!("{name}/{what}"),
            false => {
                let (start, end) = (self.range.start - range.start, self.range.end - range.start);
                format!("{name}/{what}[{start}..{end}]")
            }
        }
    }

    fn tensors(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        let master = self.master.iter().map(|t| ("master", t));
        let moments: Vec<_> = match &self.moments {
            Moments::Full { m, v } => vec![("m", m), ("v", v)],
            Moments::Eight { codes: [m, v], absmax: [a, b] } => {
                vec![("m8", m), ("v8", v), ("m8.absmax", a), ("v8.absmax", b)]
            }
        };
        master.chain(moments)
    }

    /// Those of [`Piece::tensors`].
    fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let moments: Vec<&mut Tensor> = match &mut self.moments {
            Moments::Full { m, v } => vec![m, v],
            Moments::Eight { codes, absmax } => codes.iter_mut().chain(absmax).collect(),
        };
        self.master.iter_mut().chain(moments)
    }
}

/// What the noise of a step starts from, for elements of the flat tensor from `start` on. Kernels
/// count a tensor's elements from 0 in steps of the same constant, so that an element's noise is
/// the same wherever it is cut.
fn noise_seed(seed: u64, step: u64, start: usize) -> u64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let of_step = (seed ^ step.wrapping_mul(0xbf58_476d_1ce4_e5b9)).rotate_left(31);
    of_step.wrapping_add((start as u64).wrapping_mul(GOLDEN)).max(1)
}
