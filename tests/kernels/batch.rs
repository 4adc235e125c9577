//! What [`Ragged`] refuses: everything a kernel would otherwise read or write out of bounds.

use crate::judge::message;
use medflamingo::device::Stream;
use medflamingo::ops::{Ragged, Sequence};
use medflamingo::tensor::Arena;

#[test]
fn impossible_steps_are_refused() {
    let stream = Stream::host(1);
    let mut arena = Arena::new(&stream, 1 << 14).unwrap();
    let sequence = |table, kv_len, rows| Sequence { table, kv_len, rows };
    for (sequences, expected) in [
        (vec![], "batch: expected sequences"),
        (vec![sequence(&[0], 4, 0)], "sequence 0: rows: expected 1 to 4, found 0"),
        (vec![sequence(&[0], 4, 5)], "sequence 0: rows: expected 1 to 4, found 5"),
        (
            vec![sequence(&[0], 4, 4), sequence(&[1], 5, 1)],
            "sequence 1: table: expected 2 pages for 5 tokens, found 1",
        ),
        (vec![sequence(&[0, 9], 5, 1)], "sequence 0: table: expected pages below 9, found 9"),
        (vec![sequence(&[-1], 4, 1)], "sequence 0: table: expected pages below 9, found -1"),
        (vec![sequence(&[], usize::MAX, 1)], "sequence 0: rows"),
        (vec![sequence(&[3], 4, 2), sequence(&[3], 4, 1)], "batch: expected one row per slot"),
        (vec![sequence(&[3, 3], 8, 8)], "batch: expected one row per slot"),
    ] {
        let e = message(Ragged::new(&mut arena, &sequences, 4, 9));
        assert!(e.starts_with(expected), "{e}");
    }
    assert!(Ragged::new(&mut arena, &[sequence(&[0], 1, 1)], 0, 9).is_err());
    assert!(Ragged::new(&mut arena, &[sequence(&[0], 1, 1)], 4, 0).is_err());
}

#[test]
fn shared_prefixes_and_spare_pages_are_fine() {
    let stream = Stream::host(1);
    let sequences = [
        Sequence { table: &[5, 2, 700], kv_len: 6, rows: 2 },
        Sequence { table: &[5, 3], kv_len: 8, rows: 3 },
    ];
    let mut arena = Arena::new(&stream, Ragged::footprint(5, 2, 8, 4)).unwrap();
    let batch = Ragged::new(&mut arena, &sequences, 4, 9).unwrap();
    assert_eq!((batch.rows(), batch.sequences(), batch.pages()), (5, 2, 9));
    assert_eq!(batch.pairs(), 5 + 6 + 6 + 7 + 8);
    assert_eq!(batch.keys(), 6 + 8);
}
