use crate::judge::{for_every_type, judge, message, normals, rounded, scaled, streams, tensor};
use crate::oracle::attend;
use medflamingo::DType;
use medflamingo::device::Stream;
use medflamingo::dtype::Real;
use medflamingo::ops::{self, Ragged, Sequence};
use medflamingo::tensor::{Arena, Tensor};

pub struct Case {
    pub why: &'static str,
    /// Tokens of each sequence, the new one included.
    pub kv_len: Vec<usize>,
    pub page_tokens: usize,
    pub heads: usize,
    pub head_dim: usize,
    /// 0 is none.
    pub rotary: usize,
    pub is_alibi: bool,
    pub spread: f32,
    /// Angles are f32, and a turned cell may be rounded the other way.
    pub atol: f64,
}

pub fn cases() -> Vec<Case> {
    let plain = |why, kv_len, page_tokens, heads, head_dim, rotary| Case {
        why,
        kv_len,
        page_tokens,
        heads,
        head_dim,
        rotary,
        is_alibi: false,
        spread: 1.0,
        atol: if rotary > 0 { 1e-3 } else { 3e-6 },
    };
    vec![
        plain("smallest", vec![1], 1, 1, 1, 0),
        plain("odd_head", vec![5, 3, 9], 4, 3, 6, 4),
        plain("llama", vec![70, 1, 300], 16, 2, 128, 128),
        plain("neox_head_of_80", vec![45, 17], 16, 2, 80, 20),
        plain("several_parts", vec![600, 2, 256], 16, 1, 64, 0),
        plain("eight_parts", vec![512, 64, 65], 16, 1, 80, 20),
        plain("head_of_300", vec![9], 4, 1, 300, 300),
        Case { is_alibi: true, ..plain("alibi", vec![140, 7], 16, 4, 32, 0) },
        Case { is_alibi: true, ..plain("mpt", vec![130, 20], 16, 2, 128, 0) },
        Case { spread: 1000.0, atol: 4e-3, ..plain("huge_logits", vec![60], 16, 2, 64, 0) },
    ]
}

const BASE: f32 = 10000.0;

impl Case {
    fn page(&self) -> usize {
        2 * self.heads * self.page_tokens * self.head_dim
    }

    fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Pages of sequence `s`: those of a pool from its end.
    fn table(&self, s: usize) -> Vec<i32> {
        let pages = |n: &usize| n.div_ceil(self.page_tokens);
        let end = self.pages() - self.kv_len[..s].iter().map(pages).sum::<usize>();
        (end - pages(&self.kv_len[s])..end).rev().map(|page| page as i32).collect()
    }

    fn pages(&self) -> usize {
        self.kv_len.iter().map(|n| n.div_ceil(self.page_tokens)).sum()
    }

    /// Where key (part 0) or value (part 1) `j` of a head begins in the pool.
    fn line(&self, table: &[i32], (part, head): (usize, usize), j: usize) -> usize {
        let (page, offset) = (table[j / self.page_tokens] as usize, j % self.page_tokens);
        page * self.page()
            + ((part * self.heads + head) * self.page_tokens + offset) * self.head_dim
    }
}

struct Inputs {
    qkv: Vec<f32>,
    pool: Vec<f32>,
}

fn inputs(c: &Case) -> Inputs {
    let mut pool = vec![f32::NAN; c.pages() * c.page()];
    let mut fresh = normals(7, pool.len()).into_iter();
    // What is not a key yet stays NaN, the new key's slot too.
    for (s, n) in c.kv_len.iter().enumerate() {
        let table = c.table(s);
        for (j, part) in (0..n - 1).flat_map(|j| [(j, 0), (j, 1)]) {
            for head in 0..c.heads {
                let line = c.line(&table, (part, head), j);
                pool[line..line + c.head_dim].fill_with(|| fresh.next().unwrap());
            }
        }
    }
    Inputs { qkv: scaled(normals(1, c.kv_len.len() * 3 * c.width()), c.spread), pool }
}

/// The head turned, rounded to `T`.
fn turned<T: Real>(c: &Case, head: &[f64], position: usize) -> Vec<f64> {
    let (mut out, half) = (head.to_vec(), c.rotary / 2);
    for i in 0..half {
        let angle = position as f64 * (BASE as f64).powf(-2.0 * i as f64 / c.rotary as f64);
        let (a, b) = (head[i], head[i + half]);
        out[i] = a * angle.cos() - b * angle.sin();
        out[i + half] = b * angle.cos() + a * angle.sin();
    }
    out.iter().map(|x| T::from_f32(*x as f32).to_f32() as f64).collect()
}

/// The output, and the pool afterwards.
fn oracle<T: Real>(c: &Case, i: &Inputs) -> (Vec<f64>, Vec<f64>) {
    let (qkv, mut pool) = (rounded::<T>(&i.qkv), rounded::<T>(&i.pool));
    let mut o = Vec::new();
    for (s, row) in qkv.chunks_exact(3 * c.width()).enumerate() {
        let (table, last) = (c.table(s), c.kv_len[s] - 1);
        for h in 0..c.heads {
            let cell = |part: usize| &row[part * c.width() + h * c.head_dim..][..c.head_dim];
            let line = |part, j| c.line(&table, (part, h), j);
            pool[line(0, last)..][..c.head_dim].copy_from_slice(&turned::<T>(c, cell(1), last));
            pool[line(1, last)..][..c.head_dim].copy_from_slice(cell(2));
            let slope = if c.is_alibi { slopes(c)[h] as f64 } else { 0.0 };
            let keys: Vec<_> = (0..=last)
                .map(|j| {
                    let cut = |part| &pool[line(part, j)..][..c.head_dim];
                    (cut(0), cut(1), slope * (j as f64 - last as f64))
                })
                .collect();
            let q = turned::<T>(c, cell(0), last);
            o.extend(attend(&q, &keys, 1.0 / (c.head_dim as f64).sqrt()));
        }
    }
    (o, pool)
}

fn slopes(c: &Case) -> Vec<f32> {
    (1..=c.heads).map(|h| 2f32.powf(-8.0 * h as f32 / c.heads as f32)).collect()
}

/// Output and pool after a step of the sequences `which`.
fn run<T: Real>(stream: &Stream, c: &Case, i: &Inputs, which: &[usize]) -> (Tensor, Tensor) {
    let tables: Vec<_> = which.iter().map(|&s| c.table(s)).collect();
    let sequence =
        |(&s, table)| Sequence { table: Vec::as_slice(table), kv_len: c.kv_len[s], rows: 1 };
    let sequences: Vec<_> = which.iter().zip(&tables).map(sequence).collect();
    let mut arena = Arena::new(stream, 1 << 14).unwrap();
    let batch = Ragged::new(&mut arena, &sequences, c.page_tokens, c.pages()).unwrap();
    let (rows, width) = (which.len(), c.width());
    let own = which.iter().flat_map(|s| &i.qkv[s * 3 * width..(s + 1) * 3 * width]);
    let own: Vec<f32> = own.copied().collect();
    let mut qkv = tensor::<T>(stream, &own, &[rows, 3 * width]);
    let mut pool = tensor::<T>(stream, &i.pool, &[c.pages(), c.page()]);
    let slopes = Tensor::upload(stream, &slopes(c), &[c.heads]).unwrap();
    let mut o = Tensor::zeros(stream, T::DTYPE, &[rows, width]).unwrap();
    ops::attention_decode(
        stream,
        o.view_mut(),
        qkv.view_mut(),
        pool.view_mut(),
        &batch,
        (c.rotary > 0).then_some((c.rotary, BASE)),
        c.is_alibi.then(|| slopes.view()),
        c.heads,
        1.0 / (c.head_dim as f32).sqrt(),
    )
    .unwrap();
    (o, pool)
}

fn check<T: Real>(streams: &[Stream], c: &Case) {
    let i = inputs(c);
    let (want, want_pool) = oracle::<T>(c, &i);
    let all: Vec<_> = (0..c.kv_len.len()).collect();
    for pair in streams.chunks(2) {
        let (one, pool) = run::<T>(&pair[0], c, &i, &all);
        judge::<T>(c.why, one.view(), &want, c.atol);
        judge::<T>(c.why, pool.view(), &want_pool, c.atol);
        let one = one.view().to_f32().unwrap();
        let (other, _) = run::<T>(&pair[1], c, &i, &all);
        assert!(other.view().to_f32().unwrap() == one, "{}: depends on who runs it", c.why);
        for (s, row) in one.chunks_exact(c.width()).enumerate() {
            let (alone, _) = run::<T>(&pair[1], c, &i, &[s]);
            assert!(alone.view().to_f32().unwrap() == row, "{}: depends on the batch", c.why);
        }
    }
}

#[test]
fn agrees_with_the_oracle_and_not_with_the_neighbours() {
    let streams = streams();
    for case in cases() {
        for_every_type!(check(&streams, &case));
    }
}

#[test]
fn nan_reaches_its_own_sequence_only() {
    let all = cases();
    for stream in streams() {
        for (c, j) in all[4..=5].iter().flat_map(|c| [0, 299, c.kv_len[0] - 2].map(|j| (c, j))) {
            let mut i = inputs(c);
            i.pool[c.line(&c.table(0), (0, 0), j)] = f32::NAN;
            let (o, _) = run::<half::bf16>(&stream, c, &i, &[0, 1]);
            let o = o.view().to_f32().unwrap();
            let (own, other) = o.split_at(c.width());
            assert!(own.iter().all(|o| o.is_nan()), "key {j}");
            assert!(other.iter().all(|o| o.is_finite()), "key {j}");
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let mut arena = Arena::new(&stream, 1 << 12).unwrap();
    let zeros = |shape: &[usize]| Tensor::zeros(&stream, DType::F32, shape).unwrap();
    let batch = |arena: &mut Arena, rows| {
        Ragged::new(arena, &[Sequence { table: &[0], kv_len: 2, rows }], 4, 3).unwrap()
    };
    let (one, two) = (batch(&mut arena, 1), batch(&mut arena, 2));
    for (batch, qkv, pages, rotary, expected) in [
        (&two, zeros(&[2, 48]), zeros(&[3, 128]), None, "rows: expected one for each of 1 seq"),
        (&one, zeros(&[1, 40]), zeros(&[3, 128]), None, "qkv: expected (1, 48), found (1, 40)"),
        (&one, zeros(&[1, 48]), zeros(&[2, 128]), None, "pages: expected at least (3, 128)"),
        (&one, zeros(&[1, 48]), zeros(&[3, 128]), Some((3, BASE)), "rotary: expected even, 2"),
        (&one, zeros(&[1, 48]), zeros(&[3, 128]), Some((4, -1.0)), "base: expected a positive"),
    ] {
        let (mut o, mut qkv, mut pages) = (zeros(&[batch.rows(), 16]), qkv, pages);
        let views = (o.view_mut(), qkv.view_mut(), pages.view_mut());
        let e = message(ops::attention_decode(
            &stream, views.0, views.1, views.2, batch, rotary, None, 2, 1.0,
        ));
        assert!(e.starts_with(&format!("attention_decode: {expected}")), "{e}");
    }
}
