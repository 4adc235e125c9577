use crate::judge::{for_every_type, judge, message, normals, rounded, scaled, streams, tensor};
use crate::oracle::attend;
use medflamingo::DType;
use medflamingo::device::{Chip, Stream};
use medflamingo::dtype::Real;
use medflamingo::ops::{self, Media, MediaSpan, MediaSpans};
use medflamingo::tensor::{Arena, Tensor};

pub struct Case {
    pub why: &'static str,
    pub images: usize,
    pub latents: usize,
    pub heads: usize,
    pub head_dim: usize,
    /// Per row: begin, end, uniform.
    pub spans: Vec<(i32, i32, i32)>,
    pub spread: f32,
    pub atol: f64,
}

pub fn cases() -> Vec<Case> {
    let plain = |why, images, spans| Case {
        why,
        images,
        latents: 64,
        heads: 8,
        head_dim: 64,
        spans,
        spread: 1.0,
        atol: 2e-6,
    };
    // No image, one, the next in the middle of a tile, all so far, none again, one beyond the next.
    let mut long = vec![(0, 0, 0); 10];
    for (rows, span) in [(110, (0, 1)), (30, (1, 2)), (60, (0, 3)), (20, (0, 0)), (70, (3, 4))] {
        long.extend(vec![(span.0, span.1, 0); rows]);
    }
    let mut prompt = vec![(0, 0, 0); 3];
    prompt.extend((0..40).map(|r| (r / 20, r / 20 + 1, 0)));
    vec![
        Case { latents: 1, heads: 1, head_dim: 1, ..plain("smallest", 1, vec![(0, 1, 0)]) },
        Case {
            latents: 5,
            heads: 3,
            head_dim: 7,
            ..plain("ragged", 2, vec![(0, 1, 0), (1, 2, 0), (1, 2, 0)])
        },
        plain("prompt_with_text_before_the_first_image", 2, prompt),
        Case { heads: 2, ..plain("several_tiles_of_rows", 4, long.clone()) },
        Case { heads: 1, head_dim: 80, latents: 100, ..plain("two_tiles_of_latents", 4, long) },
        plain("batch_of_decode", 5, (0..5).map(|j| (j, j + 1, 0)).collect()),
        plain("one_row_of_decode", 3, vec![(2, 3, 0)]),
        plain("no_image", 0, vec![(0, 0, 0); 4]),
        plain("unseen_images", 3, vec![(1, 1, 0), (3, 3, 0), (0, 0, 1)]),
        plain("surplus_marker_is_uniform", 3, vec![(2, 3, 0), (0, 3, 1), (0, 3, 1)]),
        plain("span_of_several_images", 8, vec![(0, 8, 0), (2, 7, 0), (0, 8, 0), (0, 3, 0)]),
        Case { spread: 1000.0, atol: 2e-3, ..plain("huge_logits", 2, vec![(0, 2, 0); 14]) },
    ]
}

struct Inputs {
    q: Vec<f32>,
    images: Vec<Vec<f32>>,
}

fn inputs(c: &Case) -> Inputs {
    let width = c.heads * c.head_dim;
    let image = |j| normals(10 + j as u64, c.latents * 2 * width);
    Inputs {
        q: scaled(normals(1, c.spans.len() * width), c.spread),
        images: (0..c.images).map(image).collect(),
    }
}

fn oracle<T: Real>(c: &Case, i: &Inputs) -> Vec<f64> {
    let width = c.heads * c.head_dim;
    let q = rounded::<T>(&i.q);
    let images: Vec<_> = i.images.iter().map(|image| rounded::<T>(image)).collect();
    let mut o = Vec::new();
    for (q, &(begin, end, uniform)) in q.chunks_exact(width).zip(&c.spans) {
        for (h, q) in q.chunks_exact(c.head_dim).enumerate() {
            let mut keys = Vec::new();
            for row in images[begin as usize..end as usize]
                .iter()
                .flat_map(|image| image.chunks_exact(2 * width))
            {
                let (k, v) = row.split_at(width);
                let head = h * c.head_dim..(h + 1) * c.head_dim;
                keys.push((&k[head.clone()], &v[head], 0.0));
            }
            let scale = if uniform == 1 { 0.0 } else { 1.0 / (c.head_dim as f64).sqrt() };
            o.extend(attend(q, &keys, scale));
        }
    }
    o
}

fn spans(c: &Case) -> Vec<MediaSpan> {
    c.spans.iter().map(|&(begin, end, uniform)| MediaSpan { begin, end, uniform }).collect()
}

fn run<T: Real>(stream: &Stream, c: &Case, i: &Inputs) -> Tensor {
    let (rows, width) = (c.spans.len(), c.heads * c.head_dim);
    let q = tensor::<T>(stream, &i.q, &[rows, width]);
    let images: Vec<_> =
        i.images.iter().map(|kv| tensor::<T>(stream, kv, &[c.latents, 2 * width])).collect();
    let views: Vec<_> = images.iter().map(Tensor::view).collect();
    let mut arena = Arena::new(stream, 1 << 16).unwrap();
    let spans = MediaSpans::new(&mut arena, &spans(c), c.images).unwrap();
    let media = Media::new(&mut arena, &views).unwrap();
    // Rows without an image must be written too.
    let mut o = tensor::<T>(stream, &vec![7.0; rows * width], &[rows, width]);
    let scale = 1.0 / (c.head_dim as f32).sqrt();
    ops::cross_attention(stream, o.view_mut(), q.view(), &media, &spans, c.heads, scale).unwrap();
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

/// On a card of few multiprocessors a block takes many tiles of rows.
#[test]
fn images_stay_for_as_many_tiles_of_rows_as_see_them() {
    let cases = cases();
    for case in cases.iter().filter(|c| c.spans.len() == 300) {
        for chip in [Chip::A100, Chip::H200] {
            for multiprocessors in [1, 2] {
                let stream = Stream::emulated(Chip { multiprocessors, ..chip }).unwrap();
                agrees::<half::bf16>(&stream, case);
            }
        }
    }
}

/// More tiles than a block has queries of at once, and more images than a warp has lanes; markers
/// within tiles and at their ends, rows before the first image and after the last, whole rounds of
/// four tiles without an image, and a last tile of one row.
#[test]
fn many_rows_on_hopper() {
    let spans = |parts: &[(usize, (i32, i32, i32))]| {
        parts.iter().flat_map(|&(rows, span)| vec![span; rows]).collect::<Vec<_>>()
    };
    let one = (0, 1, 0);
    let cases = [
        ("one_image", 1, spans(&[(833, one)])),
        ("marker_within_a_tile", 2, spans(&[(7, (0, 0, 0)), (83, one), (75, (1, 2, 0))])),
        ("marker_at_the_end_of_a_tile", 2, spans(&[(64, one), (64, (1, 2, 0)), (1, one)])),
        ("nothing_seen_for_long", 3, spans(&[(280, (1, 1, 0)), (100, (2, 3, 0)), (9, (0, 0, 1))])),
        ("all_previous", 5, (0..321).map(|r| (0, r / 64 % 6, 0)).collect()),
        ("averages", 3, spans(&[(30, (1, 3, 0)), (50, (0, 3, 1)), (48, (2, 3, 1)), (64, one)])),
        ("an_image_for_a_few_rows", 40, (0..280).map(|r| (r / 7, r / 7 + 1, 0)).collect()),
    ];
    for (why, images, spans) in cases {
        let none = self::cases().into_iter().find(|c| c.why == "no_image").unwrap();
        let case = Case { why, images, spans, heads: 2, ..none };
        for multiprocessors in [1, 3, 4] {
            let chip = Chip { multiprocessors, ..Chip::H200 };
            let stream = Stream::emulated(chip).unwrap();
            agrees::<half::bf16>(&stream, &case);
            agrees::<half::f16>(&stream, &case);
        }
    }
}

/// Rows that do not see an image take nothing of it, even if sixteen others of their tile do.
#[test]
fn rows_keep_their_sums_beside_an_image_of_no_numbers() {
    let spans = (0..64).map(|row| if row < 48 { (0, 1, 0) } else { (0, 2, 0) }).collect();
    let none = cases().into_iter().find(|c| c.why == "no_image").unwrap();
    let c = Case { images: 2, heads: 2, spans, ..none };
    let stream = Stream::emulated(Chip { multiprocessors: 1, ..Chip::H200 }).unwrap();
    let mut i = inputs(&c);
    let good = run::<half::bf16>(&stream, &c, &i).view().to_f32().unwrap();
    i.images[1].fill(f32::NAN);
    let o = run::<half::bf16>(&stream, &c, &i).view().to_f32().unwrap();
    assert!(o[..48 * 128] == good[..48 * 128] && o[48 * 128..].iter().all(|o| o.is_nan()));
}

/// With the oracle, and with the twin on the host.
fn agrees<T: Real>(stream: &Stream, case: &Case) {
    let i = inputs(case);
    let o = run::<T>(stream, case, &i);
    judge::<T>(case.why, o.view(), &oracle::<T>(case, &i), case.atol);
    let twin = run::<T>(&Stream::host(1), case, &i).view().to_f32().unwrap();
    let twin: Vec<f64> = twin.into_iter().map(f64::from).collect();
    judge::<T>(case.why, o.view(), &twin, case.atol);
}

/// Sixteen rows that see all of an image are computed without masks; with one among them that does
/// not see it, with masks: the same bits.
#[test]
fn rows_do_not_depend_on_who_else_sees_the_image() {
    let seen = |last| {
        let spans = (0..16).map(|row| if row == 15 { last } else { (0, 1, 0) }).collect();
        let c = Case { spans, ..cases().into_iter().find(|c| c.why == "no_image").unwrap() };
        Case { images: 1, ..c }
    };
    let cases = [(0, 1, 0), (0, 0, 0), (0, 1, 1)].map(seen);
    // On one multiprocessor all rows are one block's.
    let stream = Stream::emulated(Chip { multiprocessors: 1, ..Chip::H200 }).unwrap();
    let [plain, none, uniform] = cases.each_ref().map(|c| {
        let o = run::<half::bf16>(&stream, c, &inputs(c)).view().to_f32().unwrap();
        o[..15 * c.heads * c.head_dim].to_vec()
    });
    assert!(plain == none && plain == uniform);
}

#[test]
fn unseen_images_are_never_touched() {
    let mut c = cases().into_iter().find(|c| c.why == "no_image").unwrap();
    (c.why, c.images) = ("poisoned", 3);
    c.spans = vec![(0, 1, 0), (2, 3, 0), (2, 3, 1), (0, 0, 0)];
    for stream in streams() {
        let mut i = inputs(&c);
        i.images[1].fill(f32::NAN);
        let o = run::<f32>(&stream, &c, &i).view().to_f32().unwrap();
        assert!(o.iter().all(|o| o.is_finite()));
        i.images[2].fill(f32::NAN);
        let o = run::<f32>(&stream, &c, &i).view().to_f32().unwrap();
        for (r, row) in o.chunks_exact(512).enumerate() {
            assert!(row.iter().all(|o| o.is_nan() == (r == 1 || r == 2)), "row {r}");
        }
    }
}

#[test]
fn cost_counts_what_is_not_masked() {
    let stream = Stream::planning(Chip::H200);
    let c = cases().into_iter().find(|c| c.spans.iter().any(|s| s.1 - s.0 > 1)).unwrap();
    run::<f32>(&stream, &c, &inputs(&c));
    let seen: i32 = c.spans.iter().map(|s| s.1 - s.0).sum();
    let cells = seen as usize * c.latents * c.heads * c.head_dim;
    assert_eq!(stream.recording().unwrap().launches.pop().unwrap().cost.flops, 4.0 * cells as f64);
}

#[test]
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let mut arena = Arena::new(&stream, 1 << 12).unwrap();
    let zeros = |shape: &[usize]| Tensor::zeros(&stream, DType::F32, shape).unwrap();
    let span = |begin, end, uniform| MediaSpan { begin, end, uniform };
    for bad in [span(-1, 1, 0), span(0, 3, 0), span(2, 1, 0), span(0, 1, 2), span(0, 1, -1)] {
        let e = message(MediaSpans::new(&mut arena, &[span(0, 2, 0), bad], 2));
        assert!(e.starts_with("media span 1: expected images inside 0..2"), "{e}");
    }
    let (a, b, half) = (zeros(&[4, 16]), zeros(&[5, 16]), [DType::F16; 1]);
    let half = Tensor::zeros(&stream, half[0], &[4, 16]).unwrap();
    let e = message(Media::new(&mut arena, &[a.view(), b.view()]));
    assert_eq!(e, "media: image 1: expected (4, 16), found (5, 16)");
    let e = message(Media::new(&mut arena, &[a.view(), half.view()]));
    assert!(e.starts_with("media: image 1: expected (latents, 2*width) of one dtype"), "{e}");
    let e = message(Media::new(&mut arena, &[a.view().block(0..4, 0..8).unwrap()]));
    assert!(e.starts_with("media: image 0: expected dense rows of 8"), "{e}");

    let (mut o, q) = (zeros(&[2, 8]), zeros(&[2, 8]));
    let one = Media::new(&mut arena, &[a.view()]).unwrap();
    let wide = zeros(&[4, 32]);
    let wide = Media::new(&mut arena, &[wide.view()]).unwrap();
    let half = Media::new(&mut arena, &[half.view()]).unwrap();
    let two = MediaSpans::new(&mut arena, &[span(0, 2, 0); 2], 2).unwrap();
    let three_rows = MediaSpans::new(&mut arena, &[span(0, 1, 0); 3], 1).unwrap();
    let good = MediaSpans::new(&mut arena, &[span(0, 1, 0); 2], 1).unwrap();
    for (media, spans, heads, expected) in [
        (&one, &two, 2, "cross_attention: media: expected 2 images, found 1"),
        (&one, &three_rows, 2, "cross_attention: q: expected (3, 8), found (2, 8)"),
        (&wide, &good, 2, "cross_attention: media: expected (latents, 2*8) f32"),
        (&half, &good, 2, "cross_attention: media: expected (latents, 2*8) f32"),
        (&one, &good, 3, "cross_attention: q: expected 3 heads of equal width"),
    ] {
        let result =
            ops::cross_attention(&stream, o.view_mut(), q.view(), media, spans, heads, 1.0);
        let e = message(result);
        assert!(e.starts_with(expected), "{e}");
    }
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let result = ops::cross_attention(&stream, o.view_mut(), q.view(), &one, &good, 2, bad);
        let e = message(result);
        assert!(e.starts_with("cross_attention: scale: expected a number above 0"), "{e}");
    }
}
