use crate::judge::{for_every_type, judge, message, normals, rounded, scaled, streams, tensor};
use crate::oracle::attend;
use medflamingo::DType;
use medflamingo::device::{Chip, Stream};
use medflamingo::dtype::Real;
use medflamingo::ops::{self, Ragged, Sequence};
use medflamingo::tensor::{Arena, Tensor};

pub struct Case {
    pub why: &'static str,
    /// (tokens, new rows) of each sequence.
    pub sequences: Vec<(usize, usize)>,
    /// Leading pages that all sequences share.
    pub shared: usize,
    pub page_tokens: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub is_alibi: bool,
    pub spread: f32,
    pub atol: f64,
}

pub fn cases() -> Vec<Case> {
    let plain = |why, sequences, page_tokens, heads, head_dim| Case {
        why,
        sequences,
        shared: 0,
        page_tokens,
        heads,
        head_dim,
        is_alibi: false,
        spread: 1.0,
        atol: 3e-6,
    };
    vec![
        plain("smallest", vec![(1, 1)], 1, 1, 1),
        plain("ragged", vec![(5, 5), (3, 1), (9, 4)], 4, 3, 5),
        plain("page_border", vec![(16, 16), (17, 17), (32, 1), (33, 1)], 16, 2, 16),
        plain("llama_prefill", vec![(70, 70)], 16, 4, 128),
        plain("llama_decode", vec![(70, 1)], 16, 4, 128),
        plain("neox_head_of_80", vec![(45, 45), (45, 1)], 16, 2, 80),
        plain("prefix_in_pages", vec![(150, 31)], 16, 2, 64),
        plain("more_keys_than_a_block", vec![(900, 900)], 64, 1, 32),
        plain("long_decode", vec![(1500, 1), (2, 1)], 64, 2, 64),
        plain("ragged_tiles_of_rows", vec![(150, 130), (3, 3), (80, 66)], 16, 1, 64),
        plain("few_rows", vec![(40, 2), (41, 3), (390, 7)], 16, 2, 64),
        plain("suffix_of_a_prompt", vec![(300, 35)], 16, 2, 128),
        plain("long_and_short", vec![(200, 150), (5, 5), (290, 20)], 16, 1, 128),
        plain("borders_of_parts", vec![(64, 3), (65, 3), (128, 30), (129, 30), (1, 1)], 16, 2, 64),
        Case { is_alibi: true, ..plain("alibi_prefill", vec![(50, 50)], 16, 4, 32) },
        Case { is_alibi: true, ..plain("alibi_decode", vec![(500, 1), (7, 1)], 16, 4, 32) },
        Case { is_alibi: true, ..plain("alibi_suffix", vec![(210, 35), (66, 18)], 16, 4, 128) },
        Case { shared: 2, ..plain("shared_prefix", vec![(40, 8), (35, 1)], 16, 2, 16) },
        Case { spread: 1000.0, atol: 4e-3, ..plain("huge_logits", vec![(60, 60)], 16, 2, 64) },
    ]
}

/// Two layers of pages, a page's layers side by side; the second one is read. What no sequence
/// owns is NaN, so that touching it shows.
struct Inputs {
    qkv: Vec<f32>,
    pool: Vec<f32>,
    tables: Vec<Vec<i32>>,
    pages: usize,
    slopes: Vec<f32>,
}

fn page_of(c: &Case) -> usize {
    2 * c.heads * c.page_tokens * c.head_dim
}

fn inputs(c: &Case) -> Inputs {
    let mut tables: Vec<Vec<i32>> = Vec::new();
    let mut next = 0;
    for (s, &(len, _)) in c.sequences.iter().enumerate() {
        let mut table = if s == 0 { vec![] } else { tables[0][..c.shared].to_vec() };
        while table.len() < len.div_ceil(c.page_tokens) {
            table.push(next);
            next += 1;
        }
        tables.push(table);
    }
    let pages = next as usize + 1;
    // Neighbours in a sequence are not neighbours in the pool.
    let scatter = |page: &mut i32| *page = pages as i32 - 1 - *page;
    tables.iter_mut().flatten().for_each(scatter);
    let mut pool = vec![f32::NAN; pages * 2 * page_of(c)];
    let mut fresh = normals(7, pages * page_of(c)).into_iter();
    for (&(len, _), table) in c.sequences.iter().zip(&tables) {
        for j in 0..len {
            for line in lines(c, table, j) {
                pool[line..line + c.head_dim].fill_with(|| fresh.next().unwrap_or(0.25));
            }
        }
    }
    let rows: usize = c.sequences.iter().map(|s| s.1).sum();
    Inputs {
        qkv: scaled(normals(1, rows * 3 * c.heads * c.head_dim), c.spread),
        pool,
        tables,
        pages,
        slopes: (1..=c.heads).map(|h| 2f32.powf(-8.0 * h as f32 / c.heads as f32)).collect(),
    }
}

/// Where token `j`'s keys, then values, begin, head by head.
fn lines(c: &Case, table: &[i32], j: usize) -> Vec<usize> {
    let start = table[j / c.page_tokens] as usize * 2 * page_of(c) + page_of(c);
    (0..2 * c.heads)
        .map(|part| start + (part * c.page_tokens + j % c.page_tokens) * c.head_dim)
        .collect()
}

fn oracle<T: Real>(c: &Case, i: &Inputs) -> Vec<f64> {
    let width = c.heads * c.head_dim;
    let (qkv, pool) = (rounded::<T>(&i.qkv), rounded::<T>(&i.pool));
    let (mut o, mut rows) = (Vec::new(), qkv.chunks_exact(3 * width));
    for (&(len, new), table) in c.sequences.iter().zip(&i.tables) {
        for position in len - new..len {
            let q = rows.next().unwrap();
            for h in 0..c.heads {
                let slope = if c.is_alibi { i.slopes[h] as f64 } else { 0.0 };
                let keys: Vec<_> = (0..=position)
                    .map(|j| {
                        let lines = lines(c, table, j);
                        let cut = |line: usize| &pool[line..line + c.head_dim];
                        let distance = j as f64 - position as f64;
                        (cut(lines[h]), cut(lines[c.heads + h]), slope * distance)
                    })
                    .collect();
                let q = &q[h * c.head_dim..(h + 1) * c.head_dim];
                o.extend(attend(q, &keys, 1.0 / (c.head_dim as f64).sqrt()));
            }
        }
    }
    o
}

fn run<T: Real>(stream: &Stream, c: &Case, i: &Inputs) -> Tensor {
    let width = c.heads * c.head_dim;
    let sequences: Vec<_> = c
        .sequences
        .iter()
        .zip(&i.tables)
        .map(|(&(kv_len, rows), table)| Sequence { table, kv_len, rows })
        .collect();
    let mut arena = Arena::new(stream, 1 << 16).unwrap();
    let batch = Ragged::new(&mut arena, &sequences, c.page_tokens, i.pages).unwrap();
    let rows = batch.rows();
    let qkv = tensor::<T>(stream, &i.qkv, &[rows, 3 * width]);
    let pool = tensor::<T>(stream, &i.pool, &[i.pages, 2 * page_of(c)]);
    let layer = pool.view().block(0..i.pages, page_of(c)..2 * page_of(c)).unwrap();
    let slopes = Tensor::upload(stream, &i.slopes, &[c.heads]).unwrap();
    let mut o = Tensor::zeros(stream, T::DTYPE, &[rows, width]).unwrap();
    ops::self_attention(
        stream,
        o.view_mut(),
        qkv.view().block(0..rows, 0..width).unwrap(),
        layer,
        &batch,
        c.is_alibi.then(|| slopes.view()),
        c.heads,
        c.head_dim,
        1.0 / (c.head_dim as f32).sqrt(),
    )
    .unwrap();
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

/// By blocks that share its keys, one part or more each, or one that walks through them, with its
/// prefix in the pages or in the batch, and beside another sequence; with a bias, and without,
/// where tiles that all rows see are computed without masks.
#[test]
fn a_row_is_the_same_bits_however_it_is_computed() {
    let (width, rows, all) = (160, 35, 250);
    let first = all - rows;
    for is_alibi in [true, false] {
        let case = |sequences| {
            let (page_tokens, heads, head_dim) = (16, 2, 80);
            Case { sequences, page_tokens, heads, head_dim, is_alibi, ..cases().remove(0) }
        };
        let last = inputs(&case(vec![(all, all)])).qkv.split_off(first * 3 * width);
        let (mut found, mut grids) = (Vec::new(), Vec::new());
        for multiprocessors in [132, 3, 1] {
            let stream = Stream::emulated(Chip { multiprocessors, ..Chip::H200 }).unwrap();
            stream.record();
            for sequences in [vec![(all, all)], vec![(all, rows)], vec![(all, rows), (90, 70)]] {
                let c = case(sequences);
                let mut i = inputs(&c);
                let skip = if c.sequences[0].1 == rows { 0 } else { first };
                i.qkv[skip * 3 * width..][..last.len()].copy_from_slice(&last);
                let o = run::<half::bf16>(&stream, &c, &i);
                let own = o.view().block(skip..skip + rows, 0..width).unwrap().to_f32().unwrap();
                found.push(own.into_iter().map(f32::to_bits).collect::<Vec<_>>());
            }
            let launches = stream.recording().unwrap().launches;
            grids.extend(launches.iter().map(|launch| launch.grid[2]));
        }
        assert!(found.iter().all(|bits| *bits == found[0]), "{is_alibi}");
        // Four parts in four blocks, in two, and in none.
        assert_eq!(grids, [4, 4, 4, 1, 2, 1, 1, 1, 1], "{is_alibi}");
    }
}

/// The workspace holds the parts of 30 heads.
#[test]
fn heads_whose_parts_have_no_room_are_launched_apart() {
    let c = Case { sequences: vec![(1030, 2)], heads: 32, head_dim: 8, ..cases().remove(10) };
    let (i, stream) = (inputs(&c), Stream::emulated(Chip::H200).unwrap());
    stream.record();
    judge::<half::f16>(
        c.why,
        run::<half::f16>(&stream, &c, &i).view(),
        &oracle::<half::f16>(&c, &i),
        c.atol,
    );
    let launches = stream.recording().unwrap().launches;
    // Two parts a block.
    assert!(launches.iter().map(|l| l.grid).eq([[1, 16, 16]; 2]));
}

#[test]
fn nan_reaches_later_rows_only() {
    let mut c = cases().remove(7);
    c.sequences = vec![(40, 40)];
    for stream in streams() {
        let mut i = inputs(&c);
        let line = lines(&c, &i.tables[0], 13)[0];
        i.pool[line] = f32::NAN;
        let o = run::<f32>(&stream, &c, &i).view().to_f32().unwrap();
        for (r, row) in o.chunks_exact(c.heads * c.head_dim).enumerate() {
            assert!(row.iter().all(|o| o.is_nan() == (r >= 13)), "row {r}");
        }
    }
}

#[test]
fn cost_counts_what_is_not_masked() {
    let (stream, c) = (Stream::planning(Chip::H200), cases().remove(1));
    assert_eq!(c.sequences, [(5, 5), (3, 1), (9, 4)]);
    run::<f32>(&stream, &c, &inputs(&c));
    let cost = stream.recording().unwrap().launches.pop().unwrap().cost;
    let (pairs, width) = (15.0 + 3.0 + (6.0 + 7.0 + 8.0 + 9.0), 15.0);
    assert_eq!((cost.bytes, cost.flops), (2.0 * (10.0 + 17.0) * width * 4.0, 4.0 * pairs * width));
}

#[test]
fn wrong_arguments_are_named() {
    let stream = Stream::host(1);
    let mut arena = Arena::new(&stream, 1 << 12).unwrap();
    let one = Sequence { table: &[0], kv_len: 1, rows: 1 };
    let batch = Ragged::new(&mut arena, &[one], 4, 3).unwrap();
    let zeros = |dtype, shape: &[usize]| Tensor::zeros(&stream, dtype, shape).unwrap();
    let f32s = |shape: &[usize]| zeros(DType::F32, shape);
    let say = |q: &Tensor, pages: &Tensor, slopes: &Tensor, scale| {
        let (mut o, slopes) = (f32s(&[1, 16]), Some(slopes.view()));
        let (o, q, pages) = (o.view_mut(), q.view(), pages.view());
        message(ops::self_attention(&stream, o, q, pages, &batch, slopes, 2, 8, scale))
    };
    let (pages, slopes) = (f32s(&[3, 128]), f32s(&[2]));
    for (q, pages, slopes, expected) in [
        (f32s(&[2, 16]), &pages, &slopes, "self_attention: q: expected (1, 16), found (2, 16)"),
        (f32s(&[1, 16]), &f32s(&[2, 128]), &slopes, "self_attention: pages: expected at least"),
        (f32s(&[1, 16]), &f32s(&[3, 127]), &slopes, "self_attention: pages: expected at least"),
        (f32s(&[1, 16]), &pages, &f32s(&[3]), "self_attention: slopes: expected (2), found (3)"),
        (
            f32s(&[1, 16]),
            &pages,
            &zeros(DType::F16, &[2]),
            "self_attention: slopes: expected f32, found f16",
        ),
        (
            f32s(&[1, 16]),
            &zeros(DType::BF16, &[3, 128]),
            &slopes,
            "self_attention: pages: expected f32, found bf16",
        ),
    ] {
        let e = say(&q, pages, slopes, 1.0);
        assert!(e.starts_with(expected), "{e}");
    }
    let e = say(&f32s(&[1, 16]), &pages, &slopes, 0.0);
    assert_eq!(e, "self_attention: scale: expected a number above 0, found 0");
}
