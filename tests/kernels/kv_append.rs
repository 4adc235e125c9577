use crate::judge::{for_every_type, message, normals, rounded, streams, tensor};
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
}

pub fn cases() -> Vec<Case> {
    let case = |why, sequences, pages, page_tokens, heads, head_dim| Case {
        why,
        sequences,
        pages,
        page_tokens,
        heads,
        head_dim,
    };
    vec![
        case("smallest", vec![(vec![0], 1, 1)], 1, 1, 1, 1),
        case("page_border", vec![(vec![4, 1, 2], 9, 6)], 5, 4, 2, 3),
        case("two_sequences", vec![(vec![3], 2, 2), (vec![1, 0], 5, 1)], 4, 4, 2, 8),
        case("model_width", vec![(vec![1, 0], 20, 20)], 2, 16, 32, 128),
    ]
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
    let mut rows = exact.chunks_exact(3 * inner);
    for s in &sequences {
        for position in s.kv_len - s.rows..s.kv_len {
            let row = rows.next().unwrap();
            let start = s.table[position / c.page_tokens] as usize * 2 * page + page;
            for part in 0..2 {
                for h in 0..c.heads {
                    for i in 0..c.head_dim {
                        let token = position % c.page_tokens;
                        let line = (part * c.heads + h) * c.page_tokens + token;
                        want[start + line * c.head_dim + i] =
                            row[(1 + part) * inner + h * c.head_dim + i];
                    }
                }
            }
        }
    }
    let mut pool = tensor::<T>(stream, &pool, &[c.pages, 2 * page]);
    let qkv = tensor::<T>(stream, &qkv, &[batch.rows(), 3 * inner]);
    let layer = pool.view_mut().block(0..c.pages, page..2 * page).unwrap();
    ops::kv_append(stream, layer, qkv.view(), &batch, c.heads, c.head_dim).unwrap();
    let got = pool.view().to_f32().unwrap();
    assert!(got.iter().zip(&want).all(|(got, want)| *got as f64 == *want), "{}", c.why);
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
    let qkv = zeros(DType::F32, &[1, 24]);
    for (heads, head_dim) in [(0, 8), (1, 0), (usize::MAX, 2), (1 << 31, 1 << 31)] {
        let mut pages = zeros(DType::F32, &[3, 64]);
        let pages = pages.view_mut();
        let e = message(ops::kv_append(&stream, pages, qkv.view(), &batch, heads, head_dim));
        assert!(e.starts_with("kv_append: heads: expected at least one, of width 1"), "{e}");
    }
    for (mut pages, expected) in [
        (zeros(DType::F32, &[2, 64]), "kv_append: pages: expected at least (3, 64)"),
        (zeros(DType::F32, &[3, 63]), "kv_append: pages: expected at least (3, 64)"),
        (zeros(DType::F16, &[3, 64]), "kv_append: qkv: expected f16, found f32"),
    ] {
        let result = ops::kv_append(&stream, pages.view_mut(), qkv.view(), &batch, 1, 8);
        let e = message(result);
        assert!(e.starts_with(expected), "{e}");
    }
}
