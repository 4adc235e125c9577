use crate::judge::{for_every_type, judge, message, normals, rounded, streams, tensor};
use medflamingo::DType;
use medflamingo::device::Stream;
use medflamingo::dtype::Real;
use medflamingo::ops::{self, Out};
use medflamingo::tensor::Tensor;

pub struct Case {
    pub why: &'static str,
    pub images: usize,
    pub side: usize,
    pub patch: usize,
    pub cols: usize,
}

pub fn cases() -> Vec<Case> {
    vec![
        Case { why: "smallest", images: 1, side: 1, patch: 1, cols: 1 },
        Case { why: "one_patch", images: 2, side: 7, patch: 7, cols: 5 },
        Case { why: "several_images", images: 3, side: 28, patch: 7, cols: 24 },
        Case { why: "clip", images: 2, side: 224, patch: 14, cols: 1024 },
        Case { why: "no_images", images: 0, side: 28, patch: 7, cols: 8 },
    ]
}

/// y[i, py, px, c, dy, dx] = levels[c, pixels[i, c, py*patch + dy, px*patch + dx]]
fn patches(c: &Case, pixels: &[u8], levels: &[f64]) -> Vec<f64> {
    let across = c.side / c.patch;
    let mut y = Vec::new();
    for i in 0..c.images {
        for p in 0..across * across {
            let (py, px) = (p / across, p % across);
            for channel in 0..3 {
                for dy in 0..c.patch {
                    for dx in 0..c.patch {
                        let row = (i * 3 + channel) * c.side + py * c.patch + dy;
                        let byte = pixels[row * c.side + px * c.patch + dx];
                        y.push(levels[channel * 256 + usize::from(byte)]);
                    }
                }
            }
        }
    }
    y
}

fn check<T: Real>(stream: &Stream, c: &Case) {
    let count = c.images * 3 * c.side * c.side;
    let pixels: Vec<u8> = (0..count).map(|i| (i * 61 + i / 7) as u8).collect();
    let x = Tensor::upload(stream, &pixels, &[c.images, 3, c.side, c.side]).unwrap();
    let levels = normals(1, 3 * 256);
    let table = tensor::<f32>(stream, &levels, &[3, 256]);
    let per_image = (c.side / c.patch).pow(2);
    let (rows, own) = (c.images * per_image, 3 * c.patch * c.patch);
    let want = patches(c, &pixels, &rounded::<T>(&levels));
    for cols in [own, own + 5] {
        let mut y = tensor::<T>(stream, &vec![7.0; rows * cols], &[rows, cols]);
        ops::patchify(stream, y.view_mut(), x.view(), table.view(), c.patch).unwrap();
        let padded = want.chunks(own).flat_map(|row| [row, &[0.0; 5][..cols - own]].concat());
        judge::<T>(c.why, y.view(), &padded.collect::<Vec<_>>(), 0.0);
    }

    let (x, cls) = (normals(2, c.images * per_image * c.cols), normals(3, c.cols));
    let pos = normals(4, (per_image + 1) * c.cols);
    let (xs, clss, poss) = (rounded::<T>(&x), rounded::<T>(&cls), rounded::<T>(&pos));
    let mut want = Vec::new();
    for i in 0..c.images {
        want.extend(clss.iter().zip(&poss).map(|(a, b)| a + b));
        let from = i * per_image * c.cols;
        want.extend((0..per_image * c.cols).map(|j| xs[from + j] + poss[c.cols + j]));
    }
    let x = tensor::<T>(stream, &x, &[c.images, per_image, c.cols]);
    let cls = tensor::<T>(stream, &cls, &[c.cols]);
    let pos = tensor::<T>(stream, &pos, &[per_image + 1, c.cols]);
    let shape = [c.images, per_image + 1, c.cols];
    let mut y = Tensor::zeros(stream, T::DTYPE, &shape).unwrap();
    ops::vision_tokens(stream, y.view_mut(), x.view(), cls.view(), pos.view()).unwrap();
    judge::<T>(c.why, y.view(), &want, 0.0);
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
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let zeros = |dtype, shape: &[usize]| Tensor::zeros(&stream, dtype, shape).unwrap();
    let mut y = zeros(DType::F32, &[4, 147]);
    let levels = zeros(DType::F32, &[3, 256]);
    let mut run = |pixels: &Tensor, levels: &Tensor, patch| {
        message(ops::patchify(&stream, y.view_mut(), pixels.view(), levels.view(), patch))
    };
    let good = zeros(DType::U8, &[1, 3, 14, 14]);
    for (levels, begin) in [
        (zeros(DType::F32, &[3, 255]), "patchify: levels: expected (3, 256)"),
        (zeros(DType::F16, &[3, 256]), "patchify: levels: expected f32"),
    ] {
        let e = run(&good, &levels, 7);
        assert!(e.starts_with(begin), "{e}");
    }
    let square = "patchify: pixels: expected (images, 3, side, side)";
    for (pixels, patch, begin) in [
        (zeros(DType::U8, &[1, 4, 14, 14]), 7, square),
        (zeros(DType::U8, &[3, 14, 14]), 7, square),
        (zeros(DType::U8, &[1, 3, 14, 7]), 7, square),
        (zeros(DType::U8, &[1, 3, 14, 14]), 5, square),
        (zeros(DType::U8, &[1, 3, 14, 14]), 0, square),
        (zeros(DType::F32, &[1, 3, 14, 14]), 7, "patchify: pixels: expected u8"),
        (good, 14, "patchify: y: expected (1, 588)"),
    ] {
        let e = run(&pixels, &levels, patch);
        assert!(e.starts_with(begin), "{e}");
    }
    let (mut y, x) = (zeros(DType::F32, &[5, 8]), zeros(DType::F32, &[4, 8]));
    let cls = zeros(DType::F32, &[8]);
    for (pos, begin) in [
        (zeros(DType::F32, &[1, 8]), "vision_tokens: x: expected"),
        (zeros(DType::F32, &[4, 8]), "vision_tokens: x: expected"),
        (zeros(DType::F32, &[5, 9]), "vision_tokens: y: expected (5, 9)"),
        (zeros(DType::F16, &[5, 8]), "vision_tokens: pos: expected f32"),
    ] {
        let e =
            message(ops::vision_tokens(&stream, y.view_mut(), x.view(), cls.view(), pos.view()));
        assert!(e.starts_with(begin), "{e}");
    }
}

fn check_backward<T: Real>(stream: &Stream, c: &Case, out: Out) {
    let (patches, cols) = ((c.side / c.patch) * (c.side / c.patch), c.cols);
    let tokens = patches + 1;
    let (dy, old) = (normals(1, c.images * tokens * cols), normals(2, tokens * cols));
    let is_added = out == Out::Accumulate;
    let start = |of: &[f32]| of.iter().map(|x| f64::from(*x) * f64::from(is_added)).collect();
    let (mut dpos, mut dcls): (Vec<f64>, Vec<f64>) = (start(&old), start(&old[..cols]));
    let mut dx = Vec::new();
    for (at, d) in rounded::<T>(&dy).into_iter().enumerate() {
        let (token, col) = (at / cols % tokens, at % cols);
        dpos[token * cols + col] += d;
        if token == 0 {
            dcls[col] += d;
        } else {
            dx.push(d);
        }
    }
    let dy = tensor::<T>(stream, &dy, &[c.images, tokens, cols]);
    let mut got_dpos = Tensor::upload(stream, &old, &[tokens, cols]).unwrap();
    let mut got_dcls = Tensor::upload(stream, &old[..cols], &[cols]).unwrap();
    let mut got_dx = Tensor::zeros(stream, T::DTYPE, &[c.images, patches, cols]).unwrap();
    let wanted = (out == Out::Overwrite).then(|| got_dx.view_mut());
    let (cls, pos) = (got_dcls.view_mut(), got_dpos.view_mut());
    ops::vision_tokens_backward(stream, wanted, cls, pos, out, dy.view()).unwrap();
    judge::<f32>(c.why, got_dpos.view(), &dpos, 1e-6);
    judge::<f32>(c.why, got_dcls.view(), &dcls, 1e-6);
    if !is_added {
        judge::<T>(c.why, got_dx.view(), &dx, 0.0);
    }
}

#[test]
fn token_gradients_agree_with_the_oracle() {
    for stream in streams() {
        for case in cases() {
            for out in [Out::Overwrite, Out::Accumulate] {
                for_every_type!(check_backward(&stream, &case, out));
            }
        }
    }
}
