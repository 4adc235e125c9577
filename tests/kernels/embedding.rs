use crate::judge::{for_every_type, judge, message, normals, rounded, streams, tensor};
use medflamingo::DType;
use medflamingo::device::Stream;
use medflamingo::dtype::Real;
use medflamingo::ops::{self, TokenGroups, TokenIds};
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

fn check_backward<T: Real>(stream: &Stream, c: &Case, first: usize) {
    let (rows, tokens) = (c.vocabulary - first.min(c.vocabulary), c.ids.len());
    let (dx, old) = (normals(1, tokens * c.cols), normals(2, rows * c.cols));
    let row_of = |id: i32| (id as usize).checked_sub(first);
    let (mut want, exact) = (rounded::<f32>(&old), rounded::<T>(&dx));
    for (token, id) in c.ids.iter().enumerate() {
        let Some(row) = row_of(*id) else { continue };
        for j in 0..c.cols {
            want[row * c.cols + j] += exact[token * c.cols + j];
        }
    }
    let dx = tensor::<T>(stream, &dx, &[tokens, c.cols]);
    let mut dw = Tensor::upload(stream, &old, &[rows, c.cols]).unwrap();
    let mut arena = Arena::new(stream, TokenGroups::footprint(tokens)).unwrap();
    let groups = TokenGroups::new(&mut arena, &c.ids, row_of).unwrap();
    ops::embedding_backward(stream, dw.view_mut(), &groups, dx.view()).unwrap();
    judge::<f32>(c.why, dw.view(), &want, 1e-5);
}

#[test]
fn gradients_agree_with_the_oracle() {
    let often: Vec<i32> = (0..90).map(|i| if i % 3 == 0 { 2 } else { i % 7 }).collect();
    let often = Case { why: "one_id_often", ids: often, vocabulary: 9, cols: 264 };
    for stream in streams() {
        for case in cases().iter().chain([&often]) {
            // All rows, and the last ones only.
            for first in [0, 2] {
                for_every_type!(check_backward(&stream, case, first));
            }
        }
    }
}

#[test]
fn groups_know_their_bounds() {
    let stream = Stream::host(1);
    let mut arena = Arena::new(&stream, 4096).unwrap();
    let groups = TokenGroups::new(&mut arena, &[7, 1, 7], |id| Some(id as usize)).unwrap();
    assert_eq!((groups.groups(), groups.tokens()), (2, 3));
    let mut dw = Tensor::zeros(&stream, DType::F32, &[7, 4]).unwrap();
    let dx = Tensor::zeros(&stream, DType::BF16, &[3, 4]).unwrap();
    let e = message(ops::embedding_backward(&stream, dw.view_mut(), &groups, dx.view()));
    let expected = "embedding_backward: groups: expected at least 8 rows of dw and 3 of dx, \
                    found 7 and 3";
    assert_eq!(e, expected);
}
