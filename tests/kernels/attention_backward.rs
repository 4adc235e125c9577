use crate::judge::{for_every_type, judge, message, normals, rounded, scaled, streams, tensor};
use crate::oracle::{attend, attend_backward};
use medflamingo::DType;
use medflamingo::device::Stream;
use medflamingo::dtype::Real;
use medflamingo::ops;
use medflamingo::tensor::{Tensor, ViewMut};

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
        atol: 4e-6,
    };
    vec![
        plain("smallest", 1, 1, (1, None), 1, 1),
        plain("ragged", 2, 5, (7, None), 3, 5),
        plain("vision", 1, 257, (257, None), 2, 64),
        plain("resampler_in_two_segments", 2, 64, (100, Some(64)), 2, 64),
        plain("second_segment_only", 1, 3, (0, Some(9)), 2, 16),
        plain("second_segment_empty", 1, 3, (9, Some(0)), 2, 16),
        plain("more_keys_than_a_task", 1, 14, (400, Some(37)), 1, 32),
        plain("more_queries_than_a_task", 1, 401, (33, None), 1, 16),
        plain("head_of_80", 1, 40, (50, None), 2, 80),
        plain("head_of_128", 1, 29, (65, None), 2, 128),
        // Nearly one key a query; dk is as large as the queries.
        Case { spread: 30.0, atol: 4e-4, ..plain("huge_logits", 1, 13, (77, None), 2, 64) },
        Case { spread: 0.0, ..plain("equal_scores", 1, 5, (40, None), 1, 64) },
        plain("no_queries", 1, 0, (4, None), 1, 8),
    ]
}

/// Rows of [q | k | v] of each batch entry's own tokens, as a fused projection makes them, of which
/// q is used; [k | v] rows of each segment; and the gradient of the output.
pub struct Inputs {
    pub q: Vec<f32>,
    pub segments: Vec<Vec<f32>>,
    pub d_o: Vec<f32>,
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
        d_o: normals(9, c.batch * c.q_len * width),
    }
}

/// dq, and [dk | dv] of each segment.
fn oracle<T: Real>(c: &Case, i: &Inputs) -> (Vec<f64>, Vec<Vec<f64>>) {
    let (width, d) = (c.heads * c.head_dim, c.head_dim);
    let (q, d_o) = (rounded::<T>(&i.q), rounded::<T>(&i.d_o));
    let segments: Vec<Vec<f64>> = i.segments.iter().map(|s| rounded::<T>(s)).collect();
    let mut dq = vec![0.0; d_o.len()];
    let mut gradients: Vec<_> = segments.iter().map(|s| vec![0.0; s.len()]).collect();
    let add = |sums: &mut [f64], x: &[f64]| sums.iter_mut().zip(x).for_each(|(s, x)| *s += x);
    for b in 0..c.batch {
        for h in 0..c.heads {
            // Segment, and where in it the head's keys are; its values are `width` further on.
            let mut places = Vec::new();
            for (s, segment) in segments.iter().enumerate() {
                let entry = segment.len() / c.batch;
                let rows = (b * entry..(b + 1) * entry).step_by(2 * width);
                places.extend(rows.map(|row| (s, row + h * d)));
            }
            let cut = |(s, at): (usize, usize)| {
                (&segments[s][at..at + d], &segments[s][at + width..at + width + d], 0.0)
            };
            let keys: Vec<_> = places.iter().map(|place| cut(*place)).collect();
            for r in b * c.q_len..(b + 1) * c.q_len {
                let (start, own) = (r * 3 * width + h * d, r * width + h * d);
                let scale = 1.0 / (d as f64).sqrt();
                let of = attend_backward(&d_o[own..own + d], &q[start..start + d], &keys, scale);
                dq[own..own + d].copy_from_slice(&of.dq);
                for (&(s, at), (dk, dv)) in places.iter().zip(of.dk.iter().zip(&of.dv)) {
                    add(&mut gradients[s][at..at + d], dk);
                    add(&mut gradients[s][at + width..at + width + d], dv);
                }
            }
        }
    }
    (dq, gradients)
}

fn run<T: Real>(stream: &Stream, c: &Case, i: &Inputs) -> (Tensor, Vec<Tensor>) {
    let (width, rows) = (c.heads * c.head_dim, c.batch * c.q_len);
    let q = tensor::<T>(stream, &i.q, &[rows, 3 * width]);
    let d_o = tensor::<T>(stream, &i.d_o, &[rows, width]);
    let rows_of = |s: &Vec<f32>| [s.len() / (2 * width), 2 * width];
    let segments: Vec<Tensor> =
        i.segments.iter().map(|s| tensor::<T>(stream, s, &rows_of(s))).collect();
    // What was there is overwritten.
    let old = |len: usize, shape: &[usize]| tensor::<T>(stream, &vec![7.0; len], shape);
    let mut dq = old(i.q.len(), &[rows, 3 * width]);
    let mut gradients: Vec<Tensor> = i.segments.iter().map(|s| old(s.len(), &rows_of(s))).collect();
    let shape = ops::attention_statistics(rows, c.heads);
    let mut statistics = Tensor::zeros(stream, DType::F32, &shape).unwrap();
    let keys: Vec<_> = segments
        .iter()
        .map(|s| {
            let (v, rows) = (s.view(), s.shape().rows());
            (v.block(0..rows, 0..width).unwrap(), v.block(0..rows, width..2 * width).unwrap())
        })
        .collect();
    let mut halves: Vec<_> =
        gradients.iter_mut().map(|g| g.view_mut().split_columns(width).unwrap()).collect();
    let part = q.view().block(0..rows, 0..width).unwrap();
    let scale = 1.0 / (c.head_dim as f32).sqrt();
    ops::attention_backward(
        stream,
        dq.view_mut().block(0..rows, 0..width).unwrap(),
        &mut halves,
        statistics.view_mut(),
        d_o.view(),
        part,
        &keys,
        c.batch,
        c.heads,
        scale,
    )
    .unwrap();
    let beside = dq.view().block(0..rows, width..3 * width).unwrap().to_f32().unwrap();
    assert!(beside.iter().all(|x| *x == 7.0), "{}: beside dq", c.why);
    (dq, gradients)
}

fn check<T: Real>(streams: &[Stream], c: &Case) {
    let i = inputs(c);
    let (want, wanted) = oracle::<T>(c, &i);
    let (rows, width) = (c.batch * c.q_len, c.heads * c.head_dim);
    let every = |tensors: &[Tensor]| -> Vec<Vec<f32>> {
        tensors.iter().map(|t| t.view().to_f32().unwrap()).collect()
    };
    for pair in streams.chunks(2) {
        let (dq, gradients) = run::<T>(&pair[0], c, &i);
        let part = dq.view().block(0..rows, 0..width).unwrap();
        judge::<T>(&format!("{} dq", c.why), part, &want, c.atol);
        for (got, want) in gradients.iter().zip(&wanted) {
            judge::<T>(&format!("{} dk, dv", c.why), got.view(), want, c.atol);
        }
        let (several, others) = run::<T>(&pair[1], c, &i);
        let same = dq.view().to_f32().unwrap() == several.view().to_f32().unwrap()
            && every(&gradients) == every(&others);
        assert!(same, "{}: depends on the number of threads", c.why);
    }
}

#[test]
fn agrees_with_the_oracle() {
    for case in cases() {
        for_every_type!(check(&streams(), &case));
    }
}

/// Key, value, bias.
type Key<'a> = (&'a [f64], &'a [f64], f64);

/// The oracle itself, against differences of the forward pass.
#[test]
fn the_oracle_is_the_derivative() {
    const D: usize = 5;
    let wide = |seed, n| normals(seed, n).into_iter().map(f64::from).collect::<Vec<_>>();
    let (d_o, q, k, v) = (wide(1, D), wide(2, D), wide(3, 4 * D), wide(4, 4 * D));
    let keys = |k: &[f64], v: &[f64], f: &mut dyn FnMut(&[Key<'_>])| {
        let rows = k.chunks_exact(D).zip(v.chunks_exact(D)).zip(0..);
        let keys: Vec<_> = rows.map(|((k, v), j)| (k, v, -0.3 * f64::from(j))).collect();
        f(&keys);
    };
    let loss = |q: &[f64], k: &[f64], v: &[f64]| {
        let mut sum = 0.0;
        keys(k, v, &mut |keys| {
            sum = attend(q, keys, 0.7).iter().zip(&d_o).map(|(o, d)| o * d).sum()
        });
        sum
    };
    let slope = |x: &[f64], f: &dyn Fn(&[f64]) -> f64| -> Vec<f64> {
        let shifted = |i: usize, by: f64| {
            let mut x = x.to_vec();
            x[i] += by;
            f(&x)
        };
        (0..x.len()).map(|i| (shifted(i, 1e-5) - shifted(i, -1e-5)) / 2e-5).collect()
    };
    keys(&k, &v, &mut |keys| {
        let of = attend_backward(&d_o, &q, keys, 0.7);
        for (got, want) in [
            (of.dq, slope(&q, &|q| loss(q, &k, &v))),
            (of.dk.concat(), slope(&k, &|k| loss(&q, k, &v))),
            (of.dv.concat(), slope(&v, &|v| loss(&q, &k, v))),
        ] {
            assert_eq!(got.len(), want.len());
            assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-8), "{got:?} {want:?}");
        }
    });
}

/// The twin itself, against differences of the forward twin.
#[test]
fn it_is_the_derivative_of_the_forward_kernel() {
    let stream = Stream::host(1);
    let c = Case {
        why: "differences",
        batch: 1,
        q_len: 3,
        keys: (4, Some(2)),
        heads: 1,
        head_dim: 4,
        spread: 1.0,
        atol: 0.0,
    };
    let i = inputs(&c);
    let (dq, gradients) = run::<f32>(&stream, &c, &i);
    let forward = |i: &Inputs| -> f64 {
        let q = tensor::<f32>(&stream, &i.q, &[3, 12]);
        let all: Vec<_> =
            i.segments.iter().map(|s| tensor::<f32>(&stream, s, &[s.len() / 8, 8])).collect();
        let keys: Vec<_> = all
            .iter()
            .map(|s| [0..4, 4..8].map(|cols| s.view().block(0..s.shape().rows(), cols).unwrap()))
            .map(|[k, v]| (k, v))
            .collect();
        let mut o = Tensor::zeros(&stream, DType::F32, &[3, 4]).unwrap();
        let part = q.view().block(0..3, 0..4).unwrap();
        ops::attention(&stream, o.view_mut(), part, &keys, 1, 1, 0.5).unwrap();
        let o = o.view().to_f32().unwrap();
        o.iter().zip(&i.d_o).map(|(o, d)| f64::from(*o) * f64::from(*d)).sum()
    };
    let slope = |set: &dyn Fn(&mut Inputs, f32)| {
        let shifted = |by| {
            let mut i = inputs(&c);
            set(&mut i, by);
            forward(&i)
        };
        (shifted(4e-3) - shifted(-4e-3)) / 8e-3
    };
    let dq = dq.view().to_f32().unwrap();
    for at in (0..3).flat_map(|r| r * 12..r * 12 + 4) {
        let want = slope(&|i, by| i.q[at] += by);
        assert!((f64::from(dq[at]) - want).abs() < 3e-4, "dq {at}: {} {want}", dq[at]);
    }
    for (s, gradient) in gradients.iter().enumerate() {
        for (at, got) in gradient.view().to_f32().unwrap().iter().enumerate() {
            let want = slope(&|i, by| i.segments[s][at] += by);
            assert!((f64::from(*got) - want).abs() < 3e-4, "segment {s}, {at}: {got} {want}");
        }
    }
}

type Pair<'a> = (ViewMut<'a>, ViewMut<'a>);

#[test]
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let zeros = |shape: &[usize]| Tensor::zeros(&stream, DType::F32, shape).unwrap();
    let (mut dq, q, kv) = (zeros(&[6, 32]), zeros(&[6, 32]), zeros(&[8, 32]));
    let (mut d, mut e, mut narrow) = (zeros(&[8, 32]), zeros(&[8, 32]), zeros(&[8, 16]));
    let (mut wide, mut statistics) = (zeros(&[8, 64]), zeros(&[2, 24]));
    let (k, none) = (kv.view(), zeros(&[0, 32]));
    let mut check = |gradients: &mut [Pair<'_>], segments: &[_], heads, expected: &str| {
        let (dq, statistics) = (dq.view_mut(), statistics.view_mut());
        let (d_o, q) = (q.view(), q.view());
        let result = ops::attention_backward(
            &stream, dq, gradients, statistics, d_o, q, segments, 2, heads, 1.0,
        );
        let e = message(result);
        assert!(e.starts_with(&format!("attention_backward: {expected}")), "{e}");
    };
    let one = [(k, k)];
    check(&mut [], &[], 2, "keys: expected one or two segments, found 0");
    check(&mut [], &one, 2, "gradients: expected 1 segments, found 0");
    check(&mut [(d.view_mut(), e.view_mut())], &one, 5, "q: expected 5 heads of equal width");
    check(&mut [(d.view_mut(), e.view_mut())], &one, 4, "statistics: expected (4, 24), found (2");
    check(&mut [(d.view_mut(), narrow.view_mut())], &one, 2, "dv: expected (8, 32), found (8, 16)");
    let (strided, _) = wide.view_mut().split_columns(32).unwrap();
    check(&mut [(d.view_mut(), strided)], &one, 2, "dk and dv: expected one row stride, found 32");
    let (mut d, mut e) = (zeros(&[0, 32]), zeros(&[0, 32]));
    let none = [(none.view(), none.view())];
    check(&mut [(d.view_mut(), e.view_mut())], &none, 2, "keys: expected at least one");
}
