//! The language model with its gated blocks: LLaMA, MPT and GPT-NeoX are one list of launches that
//! differ in norms, positions and the form of the MLP.

use super::config::{Config, Family, Language, Position};
use super::kv::{KvPool, PAGE_TOKENS};
use super::layers::{Linear, Norm};
use super::media::{Marker, Media, Origin};
use super::probe::Probe;
use super::session::Session;
use super::xattn::{CrossRoom, GatedBlock};
use crate::device::{Form, Stream};
use crate::ops::{self, Epilogue, MediaSpans, Out, Ragged, Sequence, TokenIds};
use crate::tensor::{Arena, Tensor, View};
use crate::weights::Weights;
use crate::{DType, Result};
use std::ops::Deref;
use std::sync::Arc;

/// Which rows of a sequence get logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// The last one, to choose the next token.
    Last,
    /// Every new token, to score them.
    All,
    /// None: more of the prompt follows.
    None,
}

/// New tokens for one session.
pub struct Step<'a> {
    pub session: &'a mut Session,
    /// Of a generated token that only the device knows, any.
    pub ids: &'a [u32],
    pub origin: Origin,
    pub logits: Rows,
}

pub struct Decoder {
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Norm,
    /// Absent when the head is the embedding.
    head: Option<Linear>,
    /// ALiBi slopes, (heads) f32.
    slopes: Option<Tensor>,
    shape: Language,
    cross_inner: usize,
    cross_hidden: usize,
    latents: usize,
    dtype: DType,
    /// Whose steps they are: another decoder's are others.
    identity: Arc<()>,
}

struct Layer {
    /// Counts decoder layers from 0.
    index: usize,
    block: Option<GatedBlock>,
    norm_1: Norm,
    qkv: Linear,
    qk_norm: Option<(Norm, Norm)>,
    out: Linear,
    norm_2: Norm,
    /// [gate; up] for LLaMA.
    fc1: Linear,
    fc2: Linear,
}

/// Intermediates, shared by all layers.
struct Room {
    cross: CrossRoom,
    normed: Tensor,
    qkv: Tensor,
    attended: Tensor,
    fc1: Tensor,
    hidden: Tensor,
}

/// The new tokens, where launches read them.
enum Ids<'a> {
    Given(TokenIds),
    Chosen(&'a TokenIds),
}

impl Deref for Ids<'_> {
    type Target = TokenIds;

    fn deref(&self) -> &TokenIds {
        match self {
            Ids::Given(ids) => ids,
            Ids::Chosen(ids) => ids,
        }
    }
}

/// What the launches of a step read beside weights and keys.
struct Index<'a> {
    ids: Ids<'a>,
    batch: Ragged,
    spans: MediaSpans,
    /// Of each gated block.
    seen: Vec<ops::Media<'a>>,
    /// Rows that get logits.
    chosen: TokenIds,
}

/// What the launches of a step write to beside keys.
struct Space {
    x: Tensor,
    room: Room,
    /// For the rows that get logits, where those are fewer.
    rest: Option<(Tensor, Room)>,
    normed: Tensor,
    logits: Tensor,
}

impl Decoder {
    pub fn load(stream: &Stream, weights: &Weights, config: &Config) -> Result<Self> {
        let l = &config.language;
        let layers = (0..l.layers).map(|i| Layer::load(weights, config, i));
        let head = (!l.tied_head)
            .then(|| Linear::load(weights, "language.head", l.vocabulary, l.width, false))
            .transpose()?;
        let slopes = match l.position {
            Position::Alibi { max_bias } => {
                Some(Tensor::upload(stream, &alibi_slopes(l.heads, max_bias), &[l.heads])?)
            }
            Position::Rope { .. } => None,
        };
        Ok(Decoder {
            embedding: weights.get("language.embedding.weight", &[l.vocabulary, l.width])?,
            layers: layers.collect::<Result<_>>()?,
            norm: language_norm(weights, config, "language.norm")?,
            head,
            slopes,
            shape: l.clone(),
            cross_inner: config.inner_widths().1,
            cross_hidden: config.cross_attention.mlp_width,
            latents: config.resampler.latents,
            dtype: config.dtype.into(),
            identity: Arc::default(),
        })
    }

    /// The gated blocks, first to last.
    pub fn blocks(&self) -> impl Iterator<Item = &GatedBlock> {
        self.layers.iter().filter_map(|l| l.block.as_ref())
    }

    /// Arena bytes that [`Decoder::run`] takes for `rows` tokens of which `logits` get logits.
    pub fn scratch(&self, rows: usize, logits: usize, sequences: usize, images: usize) -> usize {
        let l = &self.shape;
        let one = |n: usize| Arena::footprint(self.dtype, n);
        let widths = [3 * l.width, 2 * self.cross_inner, 3 * l.width, l.width, l.mlp_width];
        let widths = widths.into_iter().chain([self.cross_hidden, 2 * l.mlp_width]);
        // All rows, and in the last layer those that get logits.
        let state: usize = widths.map(|w| one(rows * w) + one(logits * w)).sum();
        let out = 2 * one(logits * l.width) + Arena::footprint(DType::F32, logits * l.vocabulary);
        let tables = sequences * (l.context.div_ceil(PAGE_TOKENS) + 8);
        let index = 64 * rows + 16 * logits + 8 * tables + 8 * images * self.layers.len();
        state + out + index + (64 << 10)
    }

    /// Runs the new tokens of every step through all layers, appending to their sessions.
    /// Logits (rows asked for, V) f32, steps in order. If they are `chosen`, all are generated, and
    /// they are these, not those of the steps.
    ///
    /// # Errors
    /// If a context or the pool is too small, or an id is outside the vocabulary; sessions are then
    /// as they were.
    pub fn run(
        &self,
        stream: &Stream,
        arena: &mut Arena,
        pool: &mut KvPool,
        steps: &mut [Step<'_>],
        chosen: Option<&TokenIds>,
        probe: &mut Probe<'_>,
    ) -> Result<Tensor> {
        let media: Vec<_> = steps.iter().flat_map(|s| s.session.media()).cloned().collect();
        let (index, markers) = self.index(arena, pool, steps, chosen, &media)?;
        let mut space = self.space(arena, index.ids.rows(), index.chosen.rows())?;
        let is_decode = index.ids.rows() == steps.len();
        let _phase = stream.phase(if is_decode { "decode" } else { "prefill" });
        if is_decode && !probe.is_watched() {
            let form = self.form(arena, pool, &index);
            stream.step_of(form, || self.compute(stream, &index, pool, &mut space, probe))?;
        } else {
            stream.overlapping(|| self.compute(stream, &index, pool, &mut space, probe))?;
        }
        for (step, marker) in steps.iter_mut().zip(markers) {
            step.session.advance(step.ids.len(), marker);
        }
        Ok(space.logits)
    }

    /// Reserves pages, and puts what the launches read beside weights and keys into `arena`, side
    /// by side: one upload. With it the text times after the step.
    fn index<'a>(
        &self,
        arena: &mut Arena,
        pool: &mut KvPool,
        steps: &mut [Step<'_>],
        chosen: Option<&'a TokenIds>,
        media: &'a [Arc<Media>],
    ) -> Result<(Index<'a>, Vec<Marker>)> {
        let ids: Vec<i32> = steps.iter().flat_map(|s| s.ids).map(|&id| id as i32).collect();
        let rows = ids.len();
        let ids = match chosen {
            Some(chosen) => Ids::Chosen(chosen),
            None => Ids::Given(TokenIds::new(arena, &ids, self.shape.vocabulary)?),
        };
        for step in steps.iter_mut() {
            step.session.reserve(pool, step.ids.len())?;
        }
        let batch = ragged(arena, pool, steps)?;
        let (spans, markers) = media_spans(arena, steps, media.len())?;
        let blocks = 0..self.blocks().count();
        let seen = blocks.map(|block| seen_by_block(arena, media, block, self.latents));
        let seen = seen.collect::<Result<_>>()?;
        let chosen = TokenIds::new(arena, &chosen_rows(steps), rows)?;
        Ok((Index { ids, batch, spans, seen, chosen }, markers))
    }

    /// All numbers and addresses of [`Decoder::compute`] that are not this decoder's own. Tensors
    /// of the arena lie where their sizes put them, one after the other.
    fn form(&self, arena: &Arena, pool: &KvPool, index: &Index<'_>) -> Form {
        let seen = index.seen.first().map_or([0; 4], ops::Media::form);
        let rows = [index.chosen.rows(), index.spans.images()];
        let (ids, batch) = (index.ids.form(), index.batch.form());
        let parts: [&[usize]; 6] = [&arena.form(), &pool.form(), &ids, &batch, &seen, &rows];
        Form::new(&self.identity, parts.concat())
    }

    /// The launches of a step.
    fn compute(
        &self,
        stream: &Stream,
        index: &Index<'_>,
        pool: &mut KvPool,
        space: &mut Space,
        probe: &mut Probe<'_>,
    ) -> Result<()> {
        let Index { ids, batch, spans, seen, chosen } = index;
        let Space { x, room, rest, normed, logits } = space;
        let (mut x, mut room, mut rest) = (x, room, rest.as_mut());
        ops::embedding(stream, x.view_mut(), ids, self.embedding.view())?;
        probe.see(|| "lm.embed".into(), x.view());
        let mut block = 0;
        for (i, layer) in self.layers.iter().enumerate() {
            if let Some(gated) = &layer.block {
                gated.run(stream, x, &seen[block], spans, &mut room.cross)?;
                gated.show(stream, probe, i, &room.cross)?;
                probe.see(|| format!("lm.{i:02}.gated_out"), x.view());
                block += 1;
            }
            self.attend(stream, layer, x, batch, pool, room)?;
            // After the last attention a row is nobody's but its own logits'.
            let is_last = i + 1 == self.layers.len() && !probe.is_watched();
            if let Some((few, few_room)) = rest.take_if(|_| is_last) {
                let attended = room.attended.view();
                ops::embedding(stream, few_room.attended.view_mut(), chosen, attended)?;
                ops::embedding(stream, few.view_mut(), chosen, x.view())?;
                (x, room) = (few, few_room);
            }
            self.add_layer(stream, layer, x, room)?;
            probe.see(|| format!("lm.{i:02}.layer_out"), x.view());
        }
        if let Some((few, _)) = rest {
            ops::embedding(stream, few.view_mut(), chosen, x.view())?;
            x = few;
        }
        self.logits(stream, x.view(), normed, logits, probe)
    }

    /// Attention of one layer into `room.attended`, appending keys and values.
    fn attend(
        &self,
        stream: &Stream,
        layer: &Layer,
        x: &Tensor,
        batch: &Ragged,
        pool: &mut KvPool,
        room: &mut Room,
    ) -> Result<()> {
        let l = &self.shape;
        let (d, rows, head_dim) = (l.width, x.shape().rows(), l.width / l.heads);
        let normed = layer.norm_1.of(x.view(), room.normed.view_mut());
        layer.qkv.run(stream, room.qkv.view_mut(), normed, Epilogue::default())?;
        if let Some((q, k)) = &layer.qk_norm {
            q.run_in_place(stream, room.qkv.view_mut().block(0..rows, 0..d)?)?;
            k.run_in_place(stream, room.qkv.view_mut().block(0..rows, d..2 * d)?)?;
        }
        let rotary = match l.position {
            Position::Rope { dims, base } => Some((dims, base)),
            Position::Alibi { .. } => None,
        };
        let slopes = self.slopes.as_ref().map(Tensor::view);
        let scale = (head_dim as f32).powf(-0.5);
        // One row each: a decode step, or prompts of one token.
        if rows == batch.sequences() {
            let (o, qkv) = (room.attended.view_mut(), room.qkv.view_mut());
            let pages = pool.layer_mut(layer.index)?;
            return ops::attention_decode(
                stream, o, qkv, pages, batch, rotary, slopes, l.heads, scale,
            );
        }
        let (pages, qkv) = (pool.layer_mut(layer.index)?, room.qkv.view_mut());
        ops::kv_append(stream, pages, qkv, batch, l.heads, head_dim, rotary)?;
        let q = room.qkv.view().block(0..rows, 0..d)?;
        let (o, pages) = (room.attended.view_mut(), pool.layer(layer.index)?);
        ops::self_attention(stream, o, q, pages, batch, slopes, l.heads, head_dim, scale)
    }

    /// Adds attention and MLP of one layer to `x`.
    fn add_layer(
        &self,
        stream: &Stream,
        layer: &Layer,
        x: &mut Tensor,
        room: &mut Room,
    ) -> Result<()> {
        let plain = Epilogue::default();
        let add = Epilogue { out: Out::Accumulate, ..plain };
        let is_parallel = self.shape.parallel_residual;
        if !is_parallel {
            layer.out.run(stream, x.view_mut(), room.attended.view(), add)?;
        }
        let (y, normed) =
            (room.hidden.view_mut(), layer.norm_2.of(x.view(), room.normed.view_mut()));
        if self.shape.family == Family::Llama {
            layer.fc1.run_swiglu(stream, y, room.fc1.view_mut(), normed)?;
        } else {
            let bend = Epilogue { activation: ops::Activation::Gelu, ..plain };
            layer.fc1.run(stream, y, normed, bend)?;
        }
        if is_parallel {
            layer.out.run(stream, x.view_mut(), room.attended.view(), add)?;
        }
        layer.fc2.run(stream, x.view_mut(), room.hidden.view(), add)
    }

    fn logits(
        &self,
        stream: &Stream,
        x: View<'_>,
        normed: &mut Tensor,
        logits: &mut Tensor,
        probe: &mut Probe<'_>,
    ) -> Result<()> {
        if probe.is_watched() {
            self.norm.run(stream, normed.view_mut(), x)?;
            probe.see(|| "lm.final_norm".into(), normed.view());
        }
        let (y, plain) = (logits.view_mut(), Epilogue::default());
        let x = self.norm.of(x, normed.view_mut());
        match &self.head {
            Some(head) => head.run(stream, y, x, plain)?,
            None => ops::linear(stream, y, x, self.embedding.view().into(), plain)?,
        }
        probe.see(|| "logits".into(), logits.view());
        Ok(())
    }

    /// Room for the launches of `rows` tokens of which `chosen` get logits.
    fn space(&self, arena: &mut Arena, rows: usize, chosen: usize) -> Result<Space> {
        let l = &self.shape;
        let state = |arena: &mut Arena, rows| {
            Ok((arena.take(self.dtype, &[rows, l.width])?, self.room(arena, rows)?))
        };
        let (x, room) = state(arena, rows)?;
        let rest = if chosen < rows { Some(state(arena, chosen)?) } else { None };
        let normed = arena.take(self.dtype, &[chosen, l.width])?;
        let logits = arena.take(DType::F32, &[chosen, l.vocabulary])?;
        Ok(Space { x, room, rest, normed, logits })
    }

    fn room(&self, arena: &mut Arena, rows: usize) -> Result<Room> {
        let l = &self.shape;
        let (inner, hidden) = (self.cross_inner, self.cross_hidden);
        let cross = CrossRoom::take(arena, self.dtype, rows, l.width, inner, hidden)?;
        let mut take = |cols| arena.take(self.dtype, &[rows, cols]);
        Ok(Room {
            cross,
            normed: take(l.width)?,
            qkv: take(3 * l.width)?,
            attended: take(l.width)?,
            fc1: take(if l.family == Family::Llama { 2 * l.mlp_width } else { 0 })?,
            hidden: take(l.mlp_width)?,
        })
    }

    /// Bytes of weights that one decoded token reads.
    pub fn decode_bytes(&self) -> usize {
        let head = self.head.as_ref().map_or(self.embedding.bytes(), Linear::bytes);
        let layer = |l: &Layer| {
            let linears = [&l.qkv, &l.out, &l.fc1, &l.fc2];
            linears.iter().map(|l| l.bytes()).sum::<usize>()
                + l.norm_1.bytes()
                + l.norm_2.bytes()
                + l.qk_norm.as_ref().map_or(0, |(q, k)| q.bytes() + k.bytes())
                + l.block.as_ref().map_or(0, GatedBlock::decode_bytes)
        };
        head + self.layers.iter().map(layer).sum::<usize>()
    }
}

impl Layer {
    fn load(weights: &Weights, config: &Config, i: usize) -> Result<Self> {
        let l = &config.language;
        let (d, bias, at) = (l.width, l.family.has_bias(), format!("language.layers.{i}"));
        let linear = |name: &str, outputs, inputs| {
            Linear::load(weights, &format!("{at}.{name}"), outputs, inputs, bias)
        };
        let block =
            config.has_block(i).then(|| GatedBlock::load(weights, config, i)).transpose()?;
        let qk_norm = if l.qk_norm {
            let norm =
                |name| Norm::layer(weights, &format!("{at}.attn.{name}"), d, false, l.norm_eps);
            Some((norm("q_norm")?, norm("k_norm")?))
        } else {
            None
        };
        Ok(Layer {
            index: i,
            block,
            norm_1: language_norm(weights, config, &format!("{at}.norm_1"))?,
            qkv: linear("attn.qkv", 3 * d, d)?,
            qk_norm,
            out: linear("attn.out", d, d)?,
            norm_2: language_norm(weights, config, &format!("{at}.norm_2"))?,
            fc1: match l.family {
                Family::Llama => linear("mlp.gate_up", 2 * l.mlp_width, d)?,
                _ => linear("mlp.fc1", l.mlp_width, d)?,
            },
            fc2: linear("mlp.fc2", d, l.mlp_width)?,
        })
    }
}

fn language_norm(weights: &Weights, config: &Config, at: &str) -> Result<Norm> {
    let l = &config.language;
    match l.family {
        Family::Llama => Norm::rms(weights, at, l.width, l.norm_eps),
        _ => Norm::layer(weights, at, l.width, l.family.has_bias(), l.norm_eps),
    }
}

/// Where the rows of each step are, and their pages.
fn ragged(arena: &mut Arena, pool: &KvPool, steps: &[Step<'_>]) -> Result<Ragged> {
    let tables: Vec<_> = steps.iter().map(|s| s.session.table()).collect();
    let sequences: Vec<_> = steps
        .iter()
        .zip(&tables)
        .map(|(s, table)| Sequence {
            table,
            kv_len: s.session.len() + s.ids.len(),
            rows: s.ids.len(),
        })
        .collect();
    Ragged::new(arena, &sequences, PAGE_TOKENS, pool.pages())
}

/// What each row may look at, counting the images of all steps, and the text times after it.
fn media_spans(
    arena: &mut Arena,
    steps: &[Step<'_>],
    images: usize,
) -> Result<(MediaSpans, Vec<Marker>)> {
    let (mut spans, mut markers) = (Vec::new(), Vec::new());
    let mut first = 0;
    for step in steps {
        let mut marker = step.session.marker().clone();
        marker.spans(step.ids, step.origin, first, &mut spans);
        first += step.session.media().len();
        markers.push(marker);
    }
    Ok((MediaSpans::new(arena, &spans, images)?, markers))
}

/// Keys and values of all images in one gated layer.
fn seen_by_block<'a>(
    arena: &mut Arena,
    media: &'a [Arc<Media>],
    block: usize,
    latents: usize,
) -> Result<ops::Media<'a>> {
    let view = |m: &'a Arc<Media>| {
        let kv = m.kv.view();
        kv.block(block * latents..(block + 1) * latents, 0..kv.cols())
    };
    let views: Vec<_> = media.iter().map(view).collect::<Result<_>>()?;
    ops::Media::new(arena, &views)
}

/// Rows of the batch that get logits.
fn chosen_rows(steps: &[Step<'_>]) -> Vec<i32> {
    let mut chosen = Vec::new();
    let mut begin = 0;
    for step in steps {
        let end = begin + step.ids.len();
        match step.logits {
            Rows::All => chosen.extend(begin as i32..end as i32),
            Rows::Last if end > begin => chosen.push(end as i32 - 1),
            _ => {}
        }
        begin = end;
    }
    chosen
}

/// 2^(-max_bias (h+1)/n) for n heads; for n not a power of two, every second slope of the next
/// power first (arXiv:2108.12409; transformers build_mpt_alibi_tensor).
pub(super) fn alibi_slopes(heads: usize, max_bias: f32) -> Vec<f32> {
    let power = heads.next_power_of_two();
    let slope = |h: usize| (-max_bias * (h + 1) as f32 / power as f32).exp2();
    let odd = (1..power).step_by(2).map(slope);
    let even = (0..power).step_by(2).map(slope);
    if power == heads {
        (0..power).map(slope).collect()
    } else {
        odd.chain(even).take(heads).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_of_mpt() {
        assert_eq!(alibi_slopes(4, 8.0), [0.25, 0.0625, 0.015625, 0.00390625]);
        // Six heads: slopes 2, 4, 6, 8 of eight, then 1, 3.
        let six: Vec<f32> = [2, 4, 6, 8, 1, 3].iter().map(|&h| (-(h as f32)).exp2()).collect();
        assert_eq!(alibi_slopes(6, 8.0), six);
    }
}
