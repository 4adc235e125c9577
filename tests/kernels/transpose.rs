use crate::judge::{for_every_type, message, normals, rounded, streams, tensor};
use medflamingo::DType;
use medflamingo::device::Stream;
use medflamingo::dtype::Real;
use medflamingo::ops;
use medflamingo::tensor::Tensor;

pub struct Case {
    pub why: &'static str,
    pub rows: usize,
    pub cols: usize,
    /// Columns of y beyond the rows of x.
    pub more: usize,
    /// Elements between the rows of x and of y beyond their own.
    pub gaps: [usize; 2],
}

pub fn cases() -> Vec<Case> {
    let case = |why, rows, cols| Case { why, rows, cols, more: 0, gaps: [0, 0] };
    vec![
        case("smallest", 1, 1),
        case("ragged", 37, 77),
        case("whole_tiles", 128, 64),
        case("packs_beyond_a_tile", 72, 136),
        case("ragged_beyond_tiles", 131, 77),
        case("no_rows", 0, 8),
        Case { more: 3, ..case("padded_rows", 61, 64) },
        Case { more: 67, ..case("padded_beyond_a_tile", 5, 16) },
        Case { more: 3, ..case("tiles_and_padding", 126, 64) },
        Case { gaps: [8, 16], ..case("strided", 24, 80) },
        Case { gaps: [5, 3], ..case("strided_tiles", 128, 96) },
        Case { gaps: [3, 1], more: 2, ..case("strided_unaligned", 33, 31) },
    ]
}

fn check<T: Real>(stream: &Stream, c: &Case) {
    const MARK: f32 = -96.0;
    let (rows, cols, y_cols) = (c.rows, c.cols, c.rows + c.more);
    let x_stride = cols + c.gaps[0];
    let x = normals(1, rows * x_stride);
    let want = rounded::<T>(&x);
    let x = tensor::<T>(stream, &x, &[rows, x_stride]);
    let y_stride = y_cols + c.gaps[1];
    let mut y = tensor::<T>(stream, &vec![MARK; cols * y_stride], &[cols, y_stride]);
    let to = y.view_mut().block(0..cols, 0..y_cols).unwrap();
    ops::transpose(stream, to, x.view().block(0..rows, 0..cols).unwrap()).unwrap();
    for (at, got) in y.view().to_f32().unwrap().into_iter().enumerate() {
        let (i, j) = (at / y_stride, at % y_stride);
        let want = match j {
            _ if j < rows => want[j * x_stride + i],
            _ if j < y_cols => 0.0,
            _ => f64::from(MARK),
        };
        assert_eq!(f64::from(got), want, "{} {}: ({i}, {j})", c.why, T::DTYPE);
    }
}

#[test]
fn moves_every_element() {
    for stream in streams() {
        for case in cases() {
            for_every_type!(check(&stream, &case));
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let x = Tensor::zeros(&stream, DType::BF16, &[3, 4]).unwrap();
    let mut y = Tensor::zeros(&stream, DType::BF16, &[4, 2]).unwrap();
    let e = message(ops::transpose(&stream, y.view_mut(), x.view()));
    assert_eq!(e, "transpose: y: expected (4, 3 or more), found (4, 2)");
    let mut y = Tensor::zeros(&stream, DType::F32, &[4, 3]).unwrap();
    let e = message(ops::transpose(&stream, y.view_mut(), x.view()));
    assert_eq!(e, "transpose: y: expected bf16, found f32");
}
