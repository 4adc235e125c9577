//! Index data that lives on the device: it cannot be checked per launch, so it is checked once,
//! when it is made, and its fields are private. The wrappers then compare sizes only.

use crate::contracts::MediaSpan;
use crate::tensor::{Arena, Tensor, View};
use crate::{DType, Error, Result};
use std::ffi::c_void;
use std::marker::PhantomData;

/// One sequence of a step.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// The pages of its keys and values, in order; at least enough for `kv_len` tokens.
    pub table: &'a [i32],
    /// Its tokens after this step.
    pub kv_len: usize,
    /// How many of them, the last ones, are computed in this step.
    pub rows: usize,
}

/// The sequences of one step: which rows belong to which, their positions and their pages.
pub struct Ragged {
    positions: Tensor,
    slots: Tensor,
    tables: Tensor,
    q_begin: Tensor,
    kv_len: Tensor,
    rows: usize,
    sequences: usize,
    table_stride: usize,
    page_tokens: usize,
    pages: usize,
    pairs: usize,
    keys: usize,
}

impl Ragged {
    /// Puts the step's indices into `arena`. The pool has `pages` pages of `page_tokens` tokens.
    ///
    /// # Errors
    /// If there is no sequence, one has no row or more rows than tokens, a table is too short or
    /// names a page outside the pool, or two rows would write the same slot.
    pub fn new(
        arena: &mut Arena,
        sequences: &[Sequence<'_>],
        page_tokens: usize,
        pages: usize,
    ) -> Result<Self> {
        if sequences.is_empty() || page_tokens == 0 {
            let found = format!("{} sequences, {page_tokens}", sequences.len());
            return Err(Error::invalid("batch", "sequences and tokens per page", found));
        }
        let limit = i32::MAX as usize;
        if sequences.len() >= limit || pages.saturating_mul(page_tokens) > limit {
            return Err(Error::invalid("batch", "sizes below 2^31", "a larger one"));
        }
        let mut table_stride = 0;
        for (s, sequence) in sequences.iter().enumerate() {
            let used = check_sequence(sequence, page_tokens, pages)
                .map_err(|e| e.within(format!("sequence {s}")))?;
            table_stride = table_stride.max(used);
        }
        // So that params stay the same from token to token.
        let table_stride = table_stride.next_power_of_two();
        let rows = sequences.iter().map(|s| s.rows).sum();
        if rows > limit {
            return Err(Error::invalid("batch", "fewer than 2^31 rows", rows));
        }
        let slots = distinct_slots(sequences, rows, page_tokens)?;
        let mut tables = vec![0i32; sequences.len() * table_stride];
        let mut q_begin = vec![0i32];
        for (sequence, row) in sequences.iter().zip(tables.chunks_exact_mut(table_stride)) {
            let used = sequence.kv_len.div_ceil(page_tokens);
            row[..used].copy_from_slice(&sequence.table[..used]);
            q_begin.push(q_begin[q_begin.len() - 1] + sequence.rows as i32);
        }
        let positions: Vec<i32> =
            sequences.iter().flat_map(|s| (s.kv_len - s.rows) as i32..s.kv_len as i32).collect();
        let kv_len: Vec<i32> = sequences.iter().map(|s| s.kv_len as i32).collect();
        Ok(Ragged {
            positions: arena.put(&positions, &[rows])?,
            slots: arena.put(&slots, &[rows])?,
            tables: arena.put(&tables, &[sequences.len(), table_stride])?,
            q_begin: arena.put(&q_begin, &[sequences.len() + 1])?,
            kv_len: arena.put(&kv_len, &[sequences.len()])?,
            rows,
            sequences: sequences.len(),
            table_stride,
            page_tokens,
            pages,
            pairs: sequences.iter().map(|s| s.rows * (2 * s.kv_len + 1 - s.rows) / 2).sum(),
            keys: sequences.iter().map(|s| s.kv_len).sum(),
        })
    }

    /// Bytes of arena that [`Ragged::new`] takes at most, for sequences of at most `kv_len` tokens.
    pub fn footprint(rows: usize, sequences: usize, kv_len: usize, page_tokens: usize) -> usize {
        let tables = sequences * kv_len.div_ceil(page_tokens.max(1)).next_power_of_two();
        Arena::footprint(DType::I32, rows)
            + Arena::footprint(DType::I64, rows)
            + Arena::footprint(DType::I32, tables)
            + Arena::footprint(DType::I32, sequences + 1)
            + Arena::footprint(DType::I32, sequences)
    }

    /// New tokens of all sequences.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Sequences in the step.
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// Tokens per page.
    pub fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    /// Pages in the pool that the tables were checked against.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// (query, key) pairs that are not masked.
    pub fn pairs(&self) -> usize {
        self.pairs
    }

    /// Keys of all sequences, those of earlier steps included.
    pub fn keys(&self) -> usize {
        self.keys
    }

    /// What launches are told of it; the rest is in its cells.
    pub(crate) fn form(&self) -> [usize; 5] {
        [self.rows, self.sequences, self.table_stride, self.page_tokens, self.pages]
    }

    pub(super) fn positions(&self) -> *const i32 {
        self.positions.view().ptr()
    }

    pub(super) fn slots(&self) -> *const i64 {
        self.slots.view().ptr()
    }

    pub(super) fn tables(&self) -> *const i32 {
        self.tables.view().ptr()
    }

    pub(super) fn table_stride(&self) -> i64 {
        self.table_stride as i64
    }

    pub(super) fn q_begin(&self) -> *const i32 {
        self.q_begin.view().ptr()
    }

    pub(super) fn kv_len(&self) -> *const i32 {
        self.kv_len.view().ptr()
    }
}

/// The pages that a sequence uses, if it is a legal one.
fn check_sequence(sequence: &Sequence<'_>, page_tokens: usize, pages: usize) -> Result<usize> {
    let &Sequence { table, kv_len, rows } = sequence;
    if rows == 0 || rows > kv_len || kv_len > i32::MAX as usize {
        return Err(Error::invalid("rows", format!("1 to {kv_len}"), rows));
    }
    let used = kv_len.div_ceil(page_tokens);
    if table.len() < used {
        let expected = format!("{used} pages for {kv_len} tokens");
        return Err(Error::invalid("table", expected, table.len()));
    }
    match table[..used].iter().find(|&&page| page < 0 || page as usize >= pages) {
        Some(page) => Err(Error::invalid("table", format!("pages below {pages}"), page)),
        None => Ok(used),
    }
}

fn distinct_slots(sequences: &[Sequence<'_>], rows: usize, page_tokens: usize) -> Result<Vec<i64>> {
    let mut slots = Vec::with_capacity(rows);
    for s in sequences {
        slots.extend((s.kv_len - s.rows..s.kv_len).map(|position| {
            s.table[position / page_tokens] as i64 * page_tokens as i64
                + (position % page_tokens) as i64
        }));
    }
    let mut sorted = slots.clone();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => {
            Err(Error::invalid("batch", "one row per slot", format!("two at {}", pair[0]))
                .advise("a page that is written must belong to one sequence only"))
        }
        None => Ok(slots),
    }
}

/// Token ids, one per row, all inside a vocabulary.
pub struct TokenIds {
    ids: Tensor,
    vocabulary: usize,
}

impl TokenIds {
    /// Puts `ids` into `arena`.
    ///
    /// # Errors
    /// If an id is negative or not below `vocabulary`.
    pub fn new(arena: &mut Arena, ids: &[i32], vocabulary: usize) -> Result<Self> {
        if let Some(id) = ids.iter().find(|&&id| id < 0 || id as usize >= vocabulary) {
            return Err(Error::invalid("token id", format!("0 to {vocabulary} - 1"), id));
        }
        Ok(TokenIds { ids: arena.put(ids, &[ids.len()])?, vocabulary })
    }

    /// Number of ids.
    pub fn rows(&self) -> usize {
        self.ids.shape().elements()
    }

    /// What the ids were checked against.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// What launches are told of them.
    pub(crate) fn form(&self) -> [usize; 2] {
        [self.rows(), self.ids().addr()]
    }

    pub(super) fn ids(&self) -> *const i32 {
        self.ids.view().ptr()
    }

    /// For a kernel that writes nothing but tokens of the vocabulary.
    pub(super) fn ids_mut(&mut self) -> *mut i32 {
        self.ids.view_mut().ptr()
    }
}

/// The class that each row of logits should have been, or none.
pub struct Labels {
    labels: Tensor,
    vocabulary: usize,
}

impl Labels {
    /// Puts `labels` into `arena`; a negative one is none.
    ///
    /// # Errors
    /// If a label is not below `vocabulary`.
    pub fn new(arena: &mut Arena, labels: &[i32], vocabulary: usize) -> Result<Self> {
        if let Some(label) = labels.iter().find(|&&l| l >= 0 && l as usize >= vocabulary) {
            return Err(Error::invalid("label", format!("less than {vocabulary}"), label));
        }
        Ok(Labels { labels: arena.put(labels, &[labels.len()])?, vocabulary })
    }

    /// Number of labels, those that are none included.
    pub fn rows(&self) -> usize {
        self.labels.shape().elements()
    }

    /// What the labels were checked against.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    pub(super) fn labels(&self) -> *const i32 {
        self.labels.view().ptr()
    }
}

/// Tokens by what they share: a row of a gradient, to which each of them adds.
pub struct TokenGroups {
    rows: Tensor,
    begin: Tensor,
    order: Tensor,
    groups: usize,
    /// One more than the largest row and token.
    bounds: (usize, usize),
}

impl TokenGroups {
    /// Puts the groups of tokens with the same `row_of(id)` into `arena`; tokens of whose id it is
    /// none are in no group. In a group they keep their order.
    ///
    /// # Errors
    /// If a row or the number of tokens is not below 2^31, or the arena is too small.
    pub fn new(
        arena: &mut Arena,
        ids: &[i32],
        row_of: impl Fn(i32) -> Option<usize>,
    ) -> Result<Self> {
        let limit = i32::MAX as usize;
        let mut pairs = Vec::with_capacity(ids.len());
        for (token, id) in ids.iter().enumerate() {
            let Some(row) = row_of(*id) else { continue };
            if row >= limit || token >= limit {
                return Err(Error::invalid("token groups", "rows and tokens below 2^31", row));
            }
            pairs.push((row as i32, token as i32));
        }
        pairs.sort_unstable();
        let order: Vec<i32> = pairs.iter().map(|(_, token)| *token).collect();
        let (mut rows, mut begin) = (Vec::new(), Vec::new());
        for (at, (row, _)) in pairs.iter().enumerate() {
            if rows.last() != Some(row) {
                rows.push(*row);
                begin.push(at as i32);
            }
        }
        begin.push(order.len() as i32);
        let end = |of: &[i32]| of.iter().max().map_or(0, |most| *most as usize + 1);
        Ok(TokenGroups {
            groups: rows.len(),
            bounds: (end(&rows), end(&order)),
            rows: arena.put(&rows, &[rows.len()])?,
            begin: arena.put(&begin, &[begin.len()])?,
            order: arena.put(&order, &[order.len()])?,
        })
    }

    /// Bytes of arena that [`TokenGroups::new`] takes at most.
    pub fn footprint(tokens: usize) -> usize {
        2 * Arena::footprint(DType::I32, tokens) + Arena::footprint(DType::I32, tokens + 1)
    }

    /// Groups, each of at least one token.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Tokens of all groups.
    pub fn tokens(&self) -> usize {
        self.order.shape().elements()
    }

    /// Rows that a gradient has at least, and tokens.
    pub(super) fn bounds(&self) -> (usize, usize) {
        self.bounds
    }

    /// Rows, begins and order.
    pub(super) fn indices(&self) -> [*const i32; 3] {
        [self.rows.view().ptr(), self.begin.view().ptr(), self.order.view().ptr()]
    }
}

/// What each row of a step may look at; made once per step, used by every gated layer.
pub struct MediaSpans {
    spans: Tensor,
    images: usize,
    visible: usize,
}

impl MediaSpans {
    /// Puts one span per row into `arena`; spans count the images of the step from 0.
    ///
    /// # Errors
    /// If a span leaves `0 .. images` or `uniform` is neither 0 nor 1.
    pub fn new(arena: &mut Arena, spans: &[MediaSpan], images: usize) -> Result<Self> {
        let legal = |s: &&MediaSpan| {
            0 <= s.begin && s.begin <= s.end && s.end as usize <= images && s.uniform >> 1 == 0
        };
        if let Some((row, span)) = spans.iter().enumerate().find(|(_, s)| !legal(s)) {
            let expected = format!("images inside 0..{images}");
            return Err(Error::invalid(format!("media span {row}"), expected, format!("{span:?}")));
        }
        let flat: Vec<i32> = spans.iter().flat_map(|s| [s.begin, s.end, s.uniform]).collect();
        Ok(MediaSpans {
            spans: arena.put(&flat, &[spans.len(), 3])?,
            images,
            visible: spans.iter().map(|s| (s.end - s.begin) as usize).sum(),
        })
    }

    /// Number of spans.
    pub fn rows(&self) -> usize {
        self.spans.shape().rows()
    }

    /// Images that the spans were checked against.
    pub fn images(&self) -> usize {
        self.images
    }

    /// (row, image) pairs that are not masked.
    pub fn visible(&self) -> usize {
        self.visible
    }

    pub(super) fn spans(&self) -> *const MediaSpan {
        self.spans.view().ptr()
    }
}

/// The keys and values of a step's images in one gated layer.
pub struct Media<'a> {
    table: Tensor,
    images: PhantomData<View<'a>>,
    latents: usize,
    width: usize,
    dtype: Option<DType>,
}

impl<'a> Media<'a> {
    /// Puts a table of the images' addresses into `arena`. Each image is (latents, 2*width), keys
    /// then values; all have one shape and dtype. There may be none.
    ///
    /// # Errors
    /// If shapes or dtypes differ, or an image is not dense or empty.
    pub fn new(arena: &mut Arena, images: &[View<'a>]) -> Result<Self> {
        let (latents, cols) = images.first().map_or((0, 0), |i| (i.rows(), i.cols()));
        let dtype = images.first().map(View::dtype);
        for (j, image) in images.iter().enumerate() {
            super::check::matrix("media", format_args!("image {j}"), image, latents, cols)?;
            super::check::dense("media", format_args!("image {j}"), image)?;
            if latents == 0 || cols == 0 || !cols.is_multiple_of(2) || Some(image.dtype()) != dtype
            {
                let expected = "(latents, 2*width) of one dtype";
                let found = format!("{} {}", image.shape(), image.dtype());
                return Err(Error::invalid(format!("media: image {j}"), expected, found));
            }
        }
        // Addresses of at most 64 bits, stored in 64; read back as pointers by the kernel.
        let addresses: Vec<i64> =
            images.iter().map(|i| i.ptr::<u8>().expose_provenance() as i64).collect();
        let table = arena.put(&addresses, &[images.len()])?;
        Ok(Media { table, images: PhantomData, latents, width: cols / 2, dtype })
    }

    /// Number of images.
    pub fn images(&self) -> usize {
        self.table.shape().elements()
    }

    /// Latents per image; 0 if there is none.
    pub fn latents(&self) -> usize {
        self.latents
    }

    /// Columns of the keys, and of the values; 0 if there is no image.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Of the keys and values; none if there is no image.
    pub fn dtype(&self) -> Option<DType> {
        self.dtype
    }

    /// As [`Ragged::form`].
    pub(crate) fn form(&self) -> [usize; 4] {
        let dtype = self.dtype.map_or(usize::MAX, |dtype| dtype as usize);
        [self.images(), self.latents, self.width, dtype]
    }

    pub(super) fn table(&self) -> *const *const c_void {
        self.table.view().ptr()
    }
}
