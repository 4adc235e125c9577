use crate::judge::{for_every_type, message, normals, rounded, streams, tensor};
use medflamingo::DType;
use medflamingo::device::Stream;
use medflamingo::dtype::Real;
use medflamingo::ops::{self, TokenIds};
use medflamingo::tensor::{Arena, Tensor};

pub struct Case {
    pub why: &'static str,
    pub ids: Vec<i32>,
    pub vocabulary: usize,
    pub cols: usize,
}

pub fn cases() -> Vec<Case> {
    vec![
        Case { why: "smallest", ids: vec![0], vocabulary: 1, cols: 1 },
        Case { why: "repeats_and_ends", ids: vec![4, 0, 4, 2], vocabulary: 5, cols: 33 },
        Case { why: "model_width", ids: (0..40).rev().collect(), vocabulary: 40, cols: 2048 },
        Case { why: "no_ids", ids: vec![], vocabulary: 3, cols: 4 },
    ]
}

fn check<T: Real>(stream: &Stream, c: &Case) {
    let w = normals(1, c.vocabulary * c.cols);
    let exact = rounded::<T>(&w);
    let w = tensor::<T>(stream, &w, &[c.vocabulary, c.cols]);
    let mut arena = Arena::new(stream, 4096).unwrap();
    let ids = TokenIds::new(&mut arena, &c.ids, c.vocabulary).unwrap();
    let mut y = Tensor::zeros(stream, T::DTYPE, &[c.ids.len(), c.cols]).unwrap();
    ops::embedding(stream, y.view_mut(), &ids, w.view()).unwrap();
    let y = y.view().to_f32().unwrap();
    for (r, id) in c.ids.iter().enumerate() {
        for j in 0..c.cols {
            let (got, want) = (y[r * c.cols + j], exact[*id as usize * c.cols + j]);
            assert_eq!(got as f64, want, "{}", c.why);
        }
    }
}

#[test]
fn copies_the_rows_exactly() {
    for stream in streams() {
        for case in cases() {
            for_every_type!(check(&stream, &case));
        }
    }
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    let stream = Stream::host(1);
    let mut arena = Arena::new(&stream, 4096).unwrap();
    for bad in [-1, 5, i32::MAX, i32::MIN] {
        let e = message(TokenIds::new(&mut arena, &[0, bad], 5));
        assert_eq!(e, format!("token id: expected 0 to 5 - 1, found {bad}"));
    }
    let ids = TokenIds::new(&mut arena, &[4], 5).unwrap();
    let mut y = Tensor::zeros(&stream, DType::F32, &[1, 2]).unwrap();
    let w = Tensor::zeros(&stream, DType::F32, &[4, 2]).unwrap();
    let e = message(ops::embedding(&stream, y.view_mut(), &ids, w.view()));
    assert_eq!(e, "embedding: w: expected at least 5 rows, found (4, 2)");
    let w = Tensor::zeros(&stream, DType::F32, &[5, 3]).unwrap();
    let e = message(ops::embedding(&stream, y.view_mut(), &ids, w.view()));
    assert_eq!(e, "embedding: y: expected (1, 3), found (1, 2)");
}
