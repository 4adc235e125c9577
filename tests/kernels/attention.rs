use crate::judge::{for_every_type, judge, message, normals, rounded, scaled, streams, tensor};
use crate::oracle::attend;
use medflamingo::DType;
use medflamingo::device::{Chip, Stream};
use medflamingo::dtype::Real;
use medflamingo::ops;
use medflamingo::tensor::Tensor;

pub struct Case {
    pub why: &'static str,
    pub batch: usize,
    pub q_len: usize,
    /// Keys of the first and second segment; the second is absent if `None`.
    pub keys: (usize, Option<usize>),
    pub heads: usize,
    pub head_dim: usize,
    /// Deviation of the queries.
    pub spread: f32,
    pub atol: f64,
}

pub fn cases() -> Vec<Case> {
    let plain = |why, batch, q_len, keys, heads, head_dim| Case {
        why,
        batch,
        q_len,
        keys,
        heads,
        head_dim,
        spread: 1.0,
        atol: 2e-6,
    };
    vec![
        plain("smallest", 1, 1, (1, None), 1, 1),
        plain("ragged", 2, 5, (7, None), 3, 5),
        plain("vision", 1, 257, (257, None), 16, 64),
        plain("resampler_in_two_segments", 2, 64, (256, Some(64)), 8, 64),
        plain("second_segment_only", 1, 3, (0, Some(9)), 2, 16),
        plain("second_segment_empty", 1, 3, (9, Some(0)), 2, 16),
        plain("more_keys_than_a_block", 1, 14, (1000, Some(37)), 2, 32),
        plain("more_queries_than_a_block", 1, 801, (33, None), 1, 16),
        plain("head_of_80", 1, 40, (50, None), 2, 80),
        plain("head_of_128", 1, 29, (65, None), 2, 128),
        Case { spread: 1000.0, atol: 2e-3, ..plain("huge_logits", 1, 13, (77, None), 2, 64) },
        Case { spread: 0.0, ..plain("equal_scores", 1, 5, (40, None), 1, 64) },
        plain("no_queries", 1, 0, (4, None), 1, 8),
    ]
}

/// Rows of [q | k | v], as a fused projection makes them, of each batch entry's own tokens, and
/// [k | v] rows of each segment.
struct Inputs {
    q: Vec<f32>,
    segments: Vec<Vec<f32>>,
}

fn inputs(c: &Case) -> Inputs {
    let width = c.heads * c.head_dim;
    let lengths = [Some(c.keys.0), c.keys.1];
    Inputs {
        q: scaled(normals(1, c.batch * c.q_len * 3 * width), c.spread),
        segments: lengths
            .into_iter()
            .flatten()
            .zip(2..)
            .map(|(len, seed)| normals(seed, c.batch * len * 2 * width))
            .collect(),
    }
}

fn oracle<T: Real>(c: &Case, i: &Inputs) -> Vec<f64> {
    let width = c.heads * c.head_dim;
    let q = rounded::<T>(&i.q);
    let segments: Vec<Vec<f64>> = i.segments.iter().map(|s| rounded::<T>(s)).collect();
    let mut o = vec![0.0; c.batch * c.q_len * width];
    for b in 0..c.batch {
        for h in 0..c.heads {
            let mut keys = Vec::new();
            for segment in &segments {
                let entry = segment.len() / c.batch;
                for row in segment[b * entry..(b + 1) * entry].chunks_exact(2 * width) {
                    let (k, v) = row.split_at(width);
                    let head = h * c.head_dim..(h + 1) * c.head_dim;
                    keys.push((&k[head.clone()], &v[head], 0.0));
                }
            }
            for r in b * c.q_len..(b + 1) * c.q_len {
                let start = r * 3 * width + h * c.head_dim;
                let scale = 1.0 / (c.head_dim as f64).sqrt();
                let sums = attend(&q[start..start + c.head_dim], &keys, scale);
                o[r * width + h * c.head_dim..][..c.head_dim].copy_from_slice(&sums);
            }
        }
    }
    o
}

fn run<T: Real>(stream: &Stream, c: &Case, i: &Inputs) -> Tensor {
    let width = c.heads * c.head_dim;
    let q = tensor::<T>(stream, &i.q, &[c.batch * c.q_len, 3 * width]);
    let mut o = Tensor::zeros(stream, T::DTYPE, &[c.batch * c.q_len, width]).unwrap();
    let segments: Vec<Tensor> = i
        .segments
        .iter()
        .map(|s| tensor::<T>(stream, s, &[s.len() / (2 * width), 2 * width]))
        .collect();
    let views: Vec<_> = segments
        .iter()
        .map(|s| {
            let (v, rows) = (s.view(), s.shape().rows());
            (v.block(0..rows, 0..width).unwrap(), v.block(0..rows, width..2 * width).unwrap())
        })
        .collect();
    let part = q.view().block(0..c.batch * c.q_len, 0..width).unwrap();
    let scale = 1.0 / (c.head_dim as f32).sqrt();
    ops::attention(stream, o.view_mut(), part, &views, c.batch, c.heads, scale).unwrap();
    o
}

fn check<T: Real>(streams: &[Stream], c: &Case) {
    let i = inputs(c);
    let want = oracle::<T>(c, &i);
    for pair in streams.chunks(2) {
        let one = run::<T>(&pair[0], c, &i);
        judge::<T>(c.why, one.view(), &want, c.atol);
        let several = run::<T>(&pair[1], c, &i);
        let same = one.view().to_f32().unwrap() == several.view().to_f32().unwrap();
        assert!(same, "{}: depends on the number of threads", c.why);
    }
}

#[test]
fn agrees_with_the_oracle() {
    for case in cases() {
        for_every_type!(check(&streams(), &case));
    }
}

#[test]
fn nan_reaches_exactly_the_rows_that_see_it() {
    let c = Case {
        why: "nan",
        batch: 2,
        q_len: 14,
        keys: (20, None),
        heads: 1,
        head_dim: 16,
        spread: 1.0,
        atol: 0.0,
    };
    for stream in streams() {
        let mut i = inputs(&c);
        i.segments[0][7 * 32] = f32::NAN;
        let o = run::<f32>(&stream, &c, &i).view().to_f32().unwrap();
        assert!(o[..14 * 16].iter().all(|o| o.is_nan()), "a key");
        assert!(o[14 * 16..].iter().all(|o| o.is_finite()), "a key of the other entry");
        let mut i = inputs(&c);
        i.q[3 * 48] = f32::NAN;
        let o = run::<f32>(&stream, &c, &i).view().to_f32().unwrap();
        for (r, row) in o.chunks_exact(16).enumerate() {
            assert!(row.iter().all(|o| o.is_nan() == (r == 3)), "query {r}");
        }
    }
}

/// Seven images of 257 tokens: the blocks with one row are the last of 560.
#[test]
fn tiles_of_few_rows_begin_last() {
    let stream = Stream::planning(Chip::H200);
    let zeros = || Tensor::zeros(&stream, DType::BF16, &[7 * 257, 1024]).unwrap();
    let (mut o, q) = (zeros(), zeros());
    ops::attention(&stream, o.view_mut(), q.view(), &[(q.view(), q.view())], 7, 16, 0.125).unwrap();
    let launch = stream.recording().unwrap().launches.pop().unwrap();
    assert_eq!(launch.grid, [16, 7, 5]);
}

#[test]
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let zeros = |shape: &[usize]| Tensor::zeros(&stream, DType::F32, shape).unwrap();
    let (mut o, q, kv) = (zeros(&[6, 32]), zeros(&[6, 32]), zeros(&[8, 32]));
    let (k, other) = (kv.view(), zeros(&[8, 64]));
    let strided = other.view().block(0..8, 0..32).unwrap();
    let (narrow, none) = (zeros(&[8, 16]), zeros(&[0, 32]));
    let half = Tensor::zeros(&stream, DType::F16, &[8, 32]).unwrap();
    for (segments, batch, heads, expected) in [
        (vec![(k, k)], 2, 5, "attention: q: expected 5 heads of equal width, found 32 columns"),
        (vec![(k, k)], 2, 0, "attention: q: expected 0 heads"),
        (vec![(k, k)], 0, 2, "attention: rows: expected the same number for each of 0"),
        (vec![(k, k)], 3, 2, "attention: rows: expected the same number for each of 3"),
        (vec![], 2, 2, "attention: keys: expected one or two segments, found 0"),
        (vec![(k, k); 3], 2, 2, "attention: keys: expected one or two segments, found 3"),
        (vec![(none.view(), none.view())], 2, 2, "attention: keys: expected at least one"),
        (vec![(narrow.view(), k)], 2, 2, "attention: k: expected (8, 32), found (8, 16)"),
        (vec![(k, narrow.view())], 2, 2, "attention: v: expected (8, 32), found (8, 16)"),
        (vec![(k, half.view())], 2, 2, "attention: v: expected f32, found f16"),
        (vec![(k, strided)], 2, 2, "attention: k and v: expected one row stride, found 32 and 64"),
    ] {
        let result = ops::attention(&stream, o.view_mut(), q.view(), &segments, batch, heads, 1.0);
        let e = message(result);
        assert!(e.starts_with(expected), "{e}");
    }
    let e = message(ops::attention(&stream, o.view_mut(), q.view(), &[(k, k)], 2, 2, -1.0));
    assert_eq!(e, "attention: scale: expected a number above 0, found -1");
}
