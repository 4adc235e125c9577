use crate::judge::{for_every_type, judge, message, normals, rounded, streams, tensor};
use medflamingo::DType;
use medflamingo::device::Stream;
use medflamingo::dtype::Real;
use medflamingo::ops::{self, Ragged, Sequence};
use medflamingo::tensor::{Arena, Tensor};

pub struct Case {
    pub why: &'static str,
    /// (table, tokens, new rows) of each sequence.
    pub sequences: Vec<(Vec<i32>, usize, usize)>,
    pub pages: usize,
    pub page_tokens: usize,
    pub heads: usize,
    pub head_dim: usize,
    /// 0 is none.
    pub rotary: usize,
}

pub fn cases() -> Vec<Case> {
    let case = |why, sequences, pages, page_tokens, heads, head_dim, rotary| Case {
        why,
        sequences,
        pages,
        page_tokens,
        heads,
        head_dim,
        rotary,
    };
    vec![
        case("smallest", vec![(vec![0], 1, 1)], 1, 1, 1, 1, 0),
        case("page_border", vec![(vec![4, 1, 2], 9, 6)], 5, 4, 2, 3, 0),
        case("two_sequences", vec![(vec![3], 2, 2), (vec![1, 0], 5, 1)], 4, 4, 2, 8, 0),
        case("model_width", vec![(vec![1, 0], 20, 20)], 2, 16, 32, 128, 0),
        case("smallest_that_turns", vec![(vec![0], 2, 1)], 1, 2, 1, 2, 2),
        case("llama", vec![(vec![1, 0], 20, 9)], 2, 16, 32, 128, 128),
        case("neox_head_of_80", vec![(vec![3, 1], 31, 4), (vec![2], 2, 2)], 4, 16, 3, 80, 80),
        // 16-byte groups: an odd number, two of which turn, and three that do not.
        case("partial_rotary", vec![(vec![0, 1], 7, 5)], 2, 4, 2, 40, 16),
        case("odd_rest", vec![(vec![2, 0], 6, 3)], 3, 4, 3, 7, 4),
    ]
}

const BASE: f32 = 10000.0;

/// Feature i of a head at a position.
fn turned(c: &Case, head: &[f64], i: usize, position: usize) -> f64 {
    let half = c.rotary / 2;
    if i >= c.rotary {
        return head[i];
    }
    let exponent = -2.0 * (i % half) as f64 / c.rotary as f64;
    let angle = position as f64 * (BASE as f64).powf(exponent);
    let (a, b) = (head[i % half], head[i % half + half]);
    if i < half { a * angle.cos() - b * angle.sin() } else { b * angle.cos() + a * angle.sin() }
}

/// The pool has two layers, a page's layers side by side; the second one is written.
fn check<T: Real>(stream: &Stream, c: &Case) {
    let (inner, page) = (c.heads * c.head_dim, 2 * c.heads * c.page_tokens * c.head_dim);
    let sequences: Vec<_> = c
        .sequences
        .iter()
        .map(|(table, kv_len, rows)| Sequence { table, kv_len: *kv_len, rows: *rows })
        .collect();
    let mut arena = Arena::new(stream, 1 << 14).unwrap();
    let batch = Ragged::new(&mut arena, &sequences, c.page_tokens, c.pages).unwrap();
    let (pool, qkv) = (normals(1, c.pages * 2 * page), normals(2, batch.rows() * 3 * inner));
    let (mut want, exact) = (rounded::<T>(&pool), rounded::<T>(&qkv));
    let (mut rows, mut queries) = (exact.chunks_exact(3 * inner), Vec::new());
    for s in &sequences {
        for position in s.kv_len - s.rows..s.kv_len {
            let row = rows.next().unwrap();
            let start = s.table[position / c.page_tokens] as usize * 2 * page + page;
            for (part, h) in (0..3).flat_map(|part| (0..c.heads).map(move |h| (part, h))) {
                let head = &row[part * inner + h * c.head_dim..][..c.head_dim];
                let cell = |i| if part < 2 { turned(c, head, i, position) } else { head[i] };
                let cells = (0..c.head_dim).map(cell);
                if part == 0 {
                    queries.extend(cells);
                    continue;
                }
                let token = position % c.page_tokens;
                let line = ((part - 1) * c.heads + h) * c.page_tokens + token;
                want[start + line * c.head_dim..].iter_mut().zip(cells).for_each(|(w, x)| *w = x);
            }
        }
    }
    let mut pool = tensor::<T>(stream, &pool, &[c.pages, 2 * page]);
    let mut qkv = tensor::<T>(stream, &qkv, &[batch.rows(), 3 * inner]);
    let layer = pool.view_mut().block(0..c.pages, page..2 * page).unwrap();
    let rotary = (c.rotary > 0).then_some((c.rotary, BASE));
    ops::kv_append(stream, layer, qkv.view_mut(), &batch, c.heads, c.head_dim, rotary).unwrap();
    let q = qkv.view().block(0..batch.rows(), 0..inner).unwrap();
    if rotary.is_some() {
        judge::<T>(c.why, pool.view(), &want, 2e-5);
        return judge::<T>(c.why, q, &queries, 2e-5);
    }
    for (got, want) in [(pool.view(), want), (q, queries)] {
        let got = got.to_f32().unwrap();
        assert!(got.iter().zip(&want).all(|(got, want)| *got as f64 == *want), "{}", c.why);
    }
}

#[test]
fn fills_its_slots_and_nothing_else() {
    for stream in streams() {
        for case in cases() {
            for_every_type!(check(&stream, &case));
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let mut arena = Arena::new(&stream, 1 << 12).unwrap();
    let one = Sequence { table: &[0], kv_len: 1, rows: 1 };
    let batch = Ragged::new(&mut arena, &[one], 4, 3).unwrap();
    let zeros = |dtype, shape: &[usize]| Tensor::zeros(&stream, dtype, shape).unwrap();
    let mut qkv = zeros(DType::F32, &[1, 24]);
    for (heads, head_dim) in [(0, 8), (1, 0), (usize::MAX, 2), (1 << 31, 1 << 31)] {
        let mut pages = zeros(DType::F32, &[3, 64]);
        let pages = pages.view_mut();
        let qkv = qkv.view_mut();
        let e = message(ops::kv_append(&stream, pages, qkv, &batch, heads, head_dim, None));
        assert!(e.starts_with("kv_append: heads: expected at least one, of width 1"), "{e}");
    }
    for (mut pages, expected) in [
        (zeros(DType::F32, &[2, 64]), "kv_append: pages: expected at least (3, 64)"),
        (zeros(DType::F32, &[3, 63]), "kv_append: pages: expected at least (3, 64)"),
        (zeros(DType::F16, &[3, 64]), "kv_append: qkv: expected f16, found f32"),
    ] {
        let (pages, qkv) = (pages.view_mut(), qkv.view_mut());
        let e = message(ops::kv_append(&stream, pages, qkv, &batch, 1, 8, None));
        assert!(e.starts_with(expected), "{e}");
    }
    for (rotary, expected) in [
        ((3, BASE), "kv_append: rotary: expected even, 2 to 8, found 3"),
        ((10, BASE), "kv_append: rotary: expected even, 2 to 8, found 10"),
        ((8, -1.0), "kv_append: base: expected a positive number"),
    ] {
        let mut pages = zeros(DType::F32, &[3, 64]);
        let (pages, qkv) = (pages.view_mut(), qkv.view_mut());
        let e = message(ops::kv_append(&stream, pages, qkv, &batch, 1, 8, Some(rotary)));
        assert!(e.starts_with(expected), "{e}");
    }
}
