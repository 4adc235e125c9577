//! Every tensor of a model by name: those that are trained side by side in one flat tensor, the
//! others where the weights are, and as they are: a frozen matrix may have 8 or 4 bits a weight.

use super::super::config::{Config, TensorSpec};
use super::super::layers::stored;
use crate::device::Stream;
use crate::ops::Weight;
use crate::tensor::{Tensor, View, ViewMut};
use crate::weights::{Matrix, Weights};
use crate::{DType, Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// The parts of a model that can be trained. The default is upstream's choice: what was added to a
/// frozen vision encoder and a frozen language model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Trained {
    pub resampler: bool,
    pub gated_blocks: bool,
    /// The embeddings of `<image>` and `<|endofchunk|>`.
    pub embedding_rows: bool,
    /// The whole language model, with all embeddings.
    pub language: bool,
    /// The vision encoder, but for the projection that only CLIP itself uses.
    pub vision: bool,
}

impl Default for Trained {
    fn default() -> Self {
        let upstream = Trained { resampler: true, gated_blocks: true, ..Trained::NOTHING };
        Trained { embedding_rows: true, ..upstream }
    }
}

impl Trained {
    pub const NOTHING: Trained = Trained {
        resampler: false,
        gated_blocks: false,
        embedding_rows: false,
        language: false,
        vision: false,
    };
    /// For a model trained from nothing.
    pub const ALL: Trained = Trained {
        resampler: true,
        gated_blocks: true,
        embedding_rows: true,
        language: true,
        vision: true,
    };

    /// Refuses codes of few bits in what is trained: a step is less than what they can differ by.
    ///
    /// # Errors
    /// Names the tensor, the key of its part, and which parts of the model may be quantised.
    pub fn check(&self, weights: &Weights) -> Result<()> {
        let has_codes = |dtype: DType| !dtype.is_float();
        let mut all = weights.iter().filter(|(_, entry)| has_codes(entry.dtype));
        let Some((name, entry)) = all.find(|(name, _)| self.covers(name)) else { return Ok(()) };
        // The keys here, and the parts of `medflamingo-tools quantize`.
        let parts = [
            ("vision", self.vision, "vision"),
            ("resampler", self.resampler, "resampler"),
            ("gated_blocks", self.gated_blocks, "xattn"),
            ("language", self.language, "language,head"),
        ];
        let own = name.split('.').next().unwrap_or_default();
        let key = parts.iter().find(|p| p.2.starts_with(own)).map_or("", |p| p.0);
        let frozen: Vec<&str> = parts.iter().filter(|p| !p.1).map(|p| p.2).collect();
        let whole = "train from the folder that this one was quantised from";
        let advice = match frozen.is_empty() {
            true => whole.to_string(),
            false => {
                format!("{whole}, or from one quantised with --parts {}", frozen.join(","))
            }
        };
        let who = format!("{}: {name}", weights.folder().display());
        let expected = format!("{} weights, because train.trained.{key} is set", weights.dtype());
        Err(Error::invalid(who, expected, format!("{} codes", entry.dtype)).advise(advice))
    }

    /// True if the whole tensor called `name` is trained.
    fn covers(&self, name: &str) -> bool {
        match name.split('.').next().unwrap_or_default() {
            "vision" => {
                let is_unused = ["vision.ln_post.", "vision.projection."];
                self.vision && !is_unused.iter().any(|part| name.starts_with(part))
            }
            "resampler" => self.resampler,
            "xattn" => self.gated_blocks,
            _ => self.language,
        }
    }
}

/// The table of token embeddings, and the head where it is tied.
pub(super) const EMBEDDING: &str = "language.embedding.weight";

/// Parameters start at multiples of this many elements of the flat tensor: no block of 8-bit
/// moments is cut where ranks divide it.
pub const ALIGN: usize = 2048;

/// A tensor of the model, by its place in [`Parameters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(usize);

/// A tensor that is trained, or the rows of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    pub name: String,
    pub shape: Vec<usize>,
    /// Its elements in the flat tensors of parameters and gradients.
    pub range: Range<usize>,
    /// Rows of the model's tensor that these are, if not all.
    pub rows: Option<Vec<u32>>,
}

enum Held {
    Frozen(Matrix),
    /// Index of the parameter.
    Trained(usize),
}

/// The weights of a model in training.
pub struct Parameters {
    names: BTreeMap<String, Id>,
    held: Vec<(Vec<usize>, Held)>,
    trained: Vec<Parameter>,
    flat: Tensor,
}

impl Parameters {
    /// What would be trained of `config`, in the order of names.
    pub fn planned(config: &Config, parts: &Trained) -> Vec<Parameter> {
        let rows = (parts.embedding_rows && !parts.language).then(|| {
            let mut rows = vec![config.tokens.end_of_chunk, config.tokens.image];
            rows.sort_unstable();
            rows
        });
        laid_out(&specs(config, parts), parts, rows)
    }

    /// Finds every tensor of `config` in `weights` and copies those that are trained, in the order
    /// of their names.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape, one of few bits that is trained; too little
    /// memory.
    pub fn load(
        stream: &Stream,
        weights: &Weights,
        config: &Config,
        parts: &Trained,
    ) -> Result<Self> {
        parts.check(weights)?;
        let specs = specs(config, parts);
        let trained = Self::planned(config, parts);
        let elements = trained.last().map_or(0, |p| p.range.end.next_multiple_of(ALIGN));
        let dtype = config.dtype.into();
        let mut all = Parameters {
            names: BTreeMap::new(),
            held: Vec::new(),
            flat: Tensor::zeros(stream, dtype, &[1, elements])?,
            trained,
        };
        for (name, shape) in specs {
            all.hold(stream, weights, name, shape)?;
        }
        Ok(all)
    }

    fn hold(
        &mut self,
        stream: &Stream,
        weights: &Weights,
        name: String,
        shape: Vec<usize>,
    ) -> Result<()> {
        let place = self.trained.iter().position(|p| p.name == name);
        let held = match place {
            None => Held::Frozen(frozen(weights, &name, &shape)?),
            Some(i) if self.trained[i].rows.is_none() => {
                let (range, stored) = (self.trained[i].range.clone(), weights.get(&name, &shape)?);
                let target = self.flat.view_mut().block(0..1, range)?;
                target.shaped(&shape)?.copy_from(stored.view())?;
                Held::Trained(i)
            }
            Some(i) => {
                // Its rows change, so that it is a copy too.
                let stored = weights.get(&name, &shape)?;
                let mut table = Tensor::zeros(stream, stored.dtype(), &shape)?;
                table.view_mut().copy_from(stored.view())?;
                let parameter = &self.trained[i];
                for (k, &row) in parameter.rows.iter().flatten().enumerate() {
                    let start = parameter.range.start + k * shape[1];
                    let mut own = self.flat.view_mut().block(0..1, start..start + shape[1])?;
                    own.copy_from(row_of(&stored, row)?)?;
                }
                Held::Frozen(Matrix::Dense(table))
            }
        };
        self.names.insert(name, Id(self.held.len()));
        self.held.push((shape, held));
        Ok(())
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// If the model has none.
    pub(super) fn id(&self, name: &str) -> Result<Id> {
        let found = self.names.get(name).copied();
        found.ok_or_else(|| Error::invalid(name, "a tensor of the model", "no such tensor"))
    }

    /// What the model computes with: a tensor of elements.
    pub(super) fn view(&self, id: Id) -> Result<View<'_>> {
        match self.weight(id)? {
            Weight::Dense(view) => Ok(view),
            Weight::Quantized(of) => {
                let name = self.names.iter().find(|(_, own)| **own == id).map(|(name, _)| name);
                let name = name.map_or("tensor", String::as_str);
                Err(Error::invalid(name, self.dtype(), format!("{} codes", of.codes.dtype())))
            }
        }
    }

    /// As [`Parameters::view`], of the matrix of a linear layer: elements or codes.
    pub(super) fn weight(&self, id: Id) -> Result<Weight<'_>> {
        let (shape, held) = &self.held[id.0];
        match held {
            Held::Frozen(matrix) => Ok(stored(matrix)),
            Held::Trained(i) => {
                let own = self.flat.view().block(0..1, self.trained[*i].range.clone())?;
                own.shaped(shape).map(Weight::Dense)
            }
        }
    }

    /// Which parameter a tensor is; none if it is frozen, or only some of its rows are trained.
    pub(super) fn trained_as(&self, id: Id) -> Option<usize> {
        match &self.held[id.0].1 {
            Held::Trained(i) => Some(*i),
            Held::Frozen(_) => None,
        }
    }

    /// The trained rows of the embeddings: which parameter, and which rows.
    pub(super) fn embedding_rows(&self) -> Option<(usize, &[u32])> {
        let some = |(i, p): (usize, &'_ Parameter)| p.rows.is_some().then_some(i);
        let i = self.trained.iter().enumerate().find_map(some)?;
        self.trained[i].rows.as_deref().map(|rows| (i, rows))
    }

    /// What is trained, in the order of names.
    pub fn trained(&self) -> &[Parameter] {
        &self.trained
    }

    /// Storage type of the weights.
    pub fn dtype(&self) -> DType {
        self.flat.dtype()
    }

    /// Everything that is trained, (1, elements): a multiple of [`ALIGN`], the gaps are 0.
    pub fn flat(&self) -> View<'_> {
        self.flat.view()
    }

    /// As [`Parameters::flat`], to change it; then call [`Parameters::refresh`].
    pub fn flat_mut(&mut self) -> ViewMut<'_> {
        self.flat.view_mut()
    }

    /// Puts trained rows into the tensors that they are rows of.
    ///
    /// # Errors
    /// If the device has failed.
    pub fn refresh(&mut self) -> Result<()> {
        for parameter in &self.trained {
            let Some(rows) = &parameter.rows else { continue };
            let Some(id) = self.names.get(&parameter.name) else { continue };
            let Held::Frozen(Matrix::Dense(table)) = &mut self.held[id.0].1 else { continue };
            let cols = parameter.shape[1];
            for (k, &row) in rows.iter().enumerate() {
                let start = parameter.range.start + k * cols;
                let own = self.flat.view().block(0..1, start..start + cols)?;
                let row = row as usize;
                table.view_mut().block(row..row + 1, 0..cols)?.copy_from(own)?;
            }
        }
        Ok(())
    }
}

/// A tensor as it is stored: codes only where a linear layer multiplies with them.
fn frozen(weights: &Weights, name: &str, shape: &[usize]) -> Result<Matrix> {
    match (name.strip_suffix(".weight"), shape) {
        (Some(at), &[rows, cols]) if name != EMBEDDING => weights.matrix(at, rows, cols),
        _ => weights.get(name, shape).map(Matrix::Dense),
    }
}

/// Row `row` of a matrix.
fn row_of(matrix: &Tensor, row: u32) -> Result<View<'_>> {
    let row = row as usize;
    matrix.view().block(row..row + 1, 0..matrix.shape().cols())
}

/// The tensors that training reads, sorted. The frozen vision tower is the one of inference, and
/// finds its own.
fn specs(config: &Config, parts: &Trained) -> Vec<TensorSpec> {
    let mut specs = config.tensors();
    specs.retain(|(name, _)| parts.vision || !name.starts_with("vision."));
    specs.sort();
    specs
}

/// Where each trained tensor of the sorted `specs` goes.
fn laid_out(specs: &[TensorSpec], parts: &Trained, rows: Option<Vec<u32>>) -> Vec<Parameter> {
    let mut end = 0usize;
    let mut list = Vec::new();
    for (name, shape) in specs {
        let rows = if name == EMBEDDING { rows.clone() } else { None };
        if rows.is_none() && !parts.covers(name) {
            continue;
        }
        let mut shape = shape.clone();
        if let Some(rows) = &rows {
            shape[0] = rows.len();
        }
        let start = end.next_multiple_of(ALIGN);
        end = start + shape.iter().product::<usize>();
        list.push(Parameter { name: name.clone(), shape, range: start..end, rows });
    }
    list
}
