use crate::judge::{for_every_type, judge, message, normals, rounded, streams, tensor};
use medflamingo::DType;
use medflamingo::device::Stream;
use medflamingo::dtype::Real;
use medflamingo::ops::{self, Ragged, Sequence};
use medflamingo::tensor::{Arena, Tensor};

pub struct Case {
    pub why: &'static str,
    /// (tokens, new rows) of each sequence.
    pub sequences: Vec<(usize, usize)>,
    pub heads: usize,
    pub head_dim: usize,
    pub rotary: usize,
    /// Angles are f32: their error grows with the position.
    pub atol: f64,
}

pub fn cases() -> Vec<Case> {
    let case = |why, sequences, heads, head_dim, rotary, atol| Case {
        why,
        sequences,
        heads,
        head_dim,
        rotary,
        atol,
    };
    vec![
        case("smallest", vec![(1, 1)], 1, 2, 2, 0.0),
        case("llama", vec![(9, 9)], 32, 128, 128, 1e-5),
        case("neox_head_of_80", vec![(11, 4)], 4, 80, 80, 1e-5),
        case("partial_rotary", vec![(5, 5), (17, 1)], 3, 64, 16, 2e-5),
        case("far_position", vec![(2048, 2)], 2, 128, 128, 1.5e-3),
    ]
}

const BASE: f32 = 10000.0;

fn oracle<T: Real>(c: &Case, qkv: &[f32], direction: f64) -> Vec<f64> {
    let mut out = rounded::<T>(qkv);
    let positions = c.sequences.iter().flat_map(|&(len, rows)| len - rows..len);
    for (row, position) in out.chunks_exact_mut(3 * c.heads * c.head_dim).zip(positions) {
        for head in row.chunks_exact_mut(c.head_dim).take(2 * c.heads) {
            for i in 0..c.rotary / 2 {
                let exponent = -2.0 * i as f64 / c.rotary as f64;
                let angle = direction * position as f64 * (BASE as f64).powf(exponent);
                let (a, b) = (head[i], head[i + c.rotary / 2]);
                head[i] = a * angle.cos() - b * angle.sin();
                head[i + c.rotary / 2] = b * angle.cos() + a * angle.sin();
            }
        }
    }
    out
}

fn batch(stream: &Stream, c: &Case) -> (Ragged, Arena) {
    let tables: Vec<[i32; 1]> = (0..c.sequences.len() as i32).map(|s| [s]).collect();
    let sequences: Vec<_> = c
        .sequences
        .iter()
        .zip(&tables)
        .map(|(&(kv_len, rows), table)| Sequence { table, kv_len, rows })
        .collect();
    let mut arena = Arena::new(stream, 1 << 14).unwrap();
    (Ragged::new(&mut arena, &sequences, 2048, tables.len()).unwrap(), arena)
}

fn check<T: Real>(stream: &Stream, c: &Case) {
    let (batch, _arena) = batch(stream, c);
    let width = 3 * c.heads * c.head_dim;
    let qkv = normals(1, batch.rows() * width);
    let want = oracle::<T>(c, &qkv, 1.0);
    let mut x = tensor::<T>(stream, &qkv, &[batch.rows(), width]);
    ops::rope(stream, x.view_mut(), &batch, c.heads, c.head_dim, c.rotary, BASE).unwrap();
    judge::<T>(c.why, x.view(), &want, c.atol + 1e-6);
    // The gradient turns by the opposite angle.
    let turned = x.view().to_f32().unwrap();
    ops::rope_backward(stream, x.view_mut(), &batch, c.heads, c.head_dim, c.rotary, BASE).unwrap();
    let back = oracle::<T>(c, &turned, -1.0);
    judge::<T>(c.why, x.view(), &back, c.atol + 1e-6);
}

#[test]
fn agrees_with_the_oracle() {
    for stream in streams() {
        for case in cases() {
            for_every_type!(check(&stream, &case));
        }
    }
}

#[test]
fn the_gradient_undoes_the_rotation() {
    let c = &cases()[2];
    for stream in streams() {
        let (batch, _arena) = batch(&stream, c);
        let width = 3 * c.heads * c.head_dim;
        let qkv = normals(1, batch.rows() * width);
        let mut x = tensor::<f32>(&stream, &qkv, &[batch.rows(), width]);
        for turn in [ops::rope, ops::rope_backward] {
            turn(&stream, x.view_mut(), &batch, c.heads, c.head_dim, c.rotary, BASE).unwrap();
        }
        judge::<f32>(c.why, x.view(), &rounded::<f32>(&qkv), 1e-6);
    }
}

#[test]
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let mut arena = Arena::new(&stream, 1 << 12).unwrap();
    let one = Sequence { table: &[0], kv_len: 1, rows: 1 };
    let batch = Ragged::new(&mut arena, &[one], 4, 1).unwrap();
    let mut qkv = Tensor::zeros(&stream, DType::F32, &[1, 24]).unwrap();
    for (head_dim, rotary, base, expected) in [
        (4, 4, 1e4, "rope: qkv: expected (1, 12), found (1, 24)"),
        (8, 0, 1e4, "rope: rotary: expected even, 2 to 8, found 0"),
        (8, 5, 1e4, "rope: rotary: expected even, 2 to 8, found 5"),
        (8, 10, 1e4, "rope: rotary: expected even, 2 to 8, found 10"),
        (8, 8, 0.0, "rope: base: expected a positive number"),
        (8, 8, f32::NAN, "rope: base: expected a positive number"),
    ] {
        let e = message(ops::rope(&stream, qkv.view_mut(), &batch, 1, head_dim, rotary, base));
        assert!(e.starts_with(expected), "{e}");
    }
}
