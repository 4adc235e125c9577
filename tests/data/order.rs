//! One order for all threads and ranks, and resuming in the middle of it.

use super::*;
use medflamingo::train::data::Reason;
use std::collections::BTreeSet;

const COUNTS: [usize; 6] = [7, 1, 12, 5, 9, 3];
const TOTAL: usize = 37;

fn options() -> StreamOptions {
    StreamOptions { buffer: 8, epochs: Some(2), ahead: 5, ..Default::default() }
}

fn texts(samples: &[Sample]) -> Vec<String> {
    samples.iter().map(text).collect()
}

fn same(a: &[Sample], b: &[Sample]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert_eq!((&a.ids, &a.labels, &a.images), (&b.ids, &b.labels, &b.images));
    }
}

#[test]
fn an_epoch_has_every_sample_once_in_another_order() {
    let folder = tempfile::tempdir().unwrap();
    let source = pairs(folder.path(), &COUNTS);
    let found = texts(&all(&mut open(&source, options())));
    let (first, second) = found.split_at(TOTAL);
    let unique: BTreeSet<_> = first.iter().collect();
    assert_eq!(unique.len(), TOTAL);
    assert_eq!(unique, second.iter().collect());
    assert_ne!(first, second);
    let other = StreamOptions { seed: 43, ..options() };
    assert_ne!(found, texts(&all(&mut open(&source, other))));
    let plain = StreamOptions { shuffle: false, epochs: Some(1), ..options() };
    let found = texts(&all(&mut open(&source, plain)));
    let in_order = COUNTS.iter().enumerate();
    let expected = in_order.flat_map(|(s, n)| (0..*n).map(move |i| format!("pair {s} {i}")));
    assert_eq!(found, expected.collect::<Vec<_>>());
}

#[test]
fn the_order_does_not_depend_on_the_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let source = pairs(folder.path(), &COUNTS);
    let run =
        |threads, ahead| all(&mut open(&source, StreamOptions { threads, ahead, ..options() }));
    let one = run(1, 1);
    assert_eq!(one.len(), 2 * TOTAL);
    same(&one, &run(2, 3));
    same(&one, &run(5, 64));
}

#[test]
fn ranks_are_disjoint_and_complete_and_share_one_global_order() {
    let folder = tempfile::tempdir().unwrap();
    let source = pairs(folder.path(), &COUNTS);
    let whole = texts(&all(&mut open(&source, options())));
    for world in [2, 3, 8] {
        let rank = |rank| {
            let options = StreamOptions { rank, world, ..options() };
            texts(&all(&mut open(&source, options)))
        };
        let ranks: Vec<_> = (0..world).map(rank).collect();
        for (i, expected) in whole.iter().enumerate() {
            assert_eq!(&ranks[i % world][i / world], expected);
        }
        assert_eq!(ranks.iter().map(Vec::len).sum::<usize>(), whole.len());
    }
}

/// Stops after every number of samples, and goes on in a new stream with other threads.
#[test]
fn a_resumed_stream_gives_what_the_uninterrupted_one_does() {
    let folder = tempfile::tempdir().unwrap();
    let source = pairs(folder.path(), &COUNTS);
    let options = StreamOptions { rank: 1, world: 2, ..options() };
    let whole = all(&mut open(&source, options.clone()));
    for stop in 0..=whole.len() {
        let mut first = open(&source, options.clone());
        for expected in &whole[..stop] {
            assert_eq!(first.next().unwrap().unwrap().ids, expected.ids);
        }
        let state = first.state().to_string();
        drop(first);
        let mut second = open(&source, StreamOptions { threads: 3, ahead: 9, ..options.clone() });
        second.restore(&serde_json::from_str(&state).unwrap()).unwrap();
        assert_eq!(second.state().to_string(), state);
        same(&all(&mut second), &whole[stop..]);
    }
}

/// More samples than lie between two snapshots, so that the buffer of the state is not empty.
#[test]
fn a_state_in_the_middle_of_a_shard_holds_the_places_of_the_buffer() {
    let folder = tempfile::tempdir().unwrap();
    let source = pairs(folder.path(), &[150, 150]);
    let options = StreamOptions { buffer: 20, epochs: Some(1), ..Default::default() };
    let mut first = open(&source, options.clone());
    (0..200).for_each(|_| drop(first.next().unwrap().unwrap()));
    let state = first.state();
    assert_eq!(state["order"]["buffer"].as_array().unwrap().len(), 19);
    assert_eq!(state["order"]["epoch"], 0);
    assert!(state["order"]["offset"].as_u64().unwrap() > 0, "{state}");
    assert_eq!(state["tally"]["kept"], 200);
    let mut second = open(&source, options);
    second.restore(&state).unwrap();
    assert_eq!(texts(&all(&mut second)), texts(&all(&mut first)));
    assert_eq!(second.tally().kept(), 300);
}

#[test]
fn damage_is_met_again_at_the_same_place_after_a_resume() {
    let folder = tempfile::tempdir().unwrap();
    let source = pairs(folder.path(), &COUNTS);
    let path = folder.path().join("002.tar");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let options = StreamOptions { max_bad_share: 1.0, ..options() };
    let mut stream = open(&source, options.clone());
    let whole = all(&mut stream);
    assert!(whole.len() < 2 * TOTAL);
    assert_eq!(stream.tally().count(Reason::Shard), 2);
    for stop in 0..whole.len() {
        let mut first = open(&source, options.clone());
        (0..stop).for_each(|_| drop(first.next().unwrap().unwrap()));
        let mut second = open(&source, options.clone());
        second.restore(&first.state()).unwrap();
        same(&all(&mut second), &whole[stop..]);
        assert_eq!(second.tally().to_json(), stream.tally().to_json());
    }
}

#[test]
fn a_state_of_other_data_or_options_is_refused_by_name() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = pairs(folder.path(), &COUNTS);
    let state = open(&source, options()).state();
    let refused = |source: &Source, options: StreamOptions, state: &serde_json::Value| {
        open(source, options).restore(state).unwrap_err().to_string()
    };
    let more = pairs(other.path(), &[3, 4]);
    assert!(refused(&more, options(), &state).contains("shards"));
    let two = StreamOptions { world: 2, ..options() };
    let text = refused(&source, two, &state);
    assert!(text.contains("world: expected 2, found 1"), "{text}");
    assert!(refused(&source, StreamOptions { seed: 1, ..options() }, &state).contains("seed"));
    for (key, value) in [("order", 7.into()), ("since", "x".into()), ("tally", 1.into())] {
        let mut damaged = state.clone();
        damaged[key] = value;
        assert!(refused(&source, options(), &damaged).contains(key));
    }
    let mut damaged = state.clone();
    damaged["order"]["buffer"] = serde_json::json!([[0, 77]]);
    assert!(refused(&source, options(), &damaged).contains("the data has changed"));
    damaged["order"]["buffer"] = serde_json::json!([[99, 0]]);
    assert!(refused(&source, options(), &damaged).contains("the data has changed"));
    damaged["order"]["begun"] = serde_json::json!(100);
    assert!(refused(&source, options(), &damaged).contains("shard 100"));
}

#[test]
fn a_batch_holds_what_is_left_and_waiting_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let source = pairs(folder.path(), &[5]);
    let mut stream = open(&source, StreamOptions { epochs: Some(1), ..options() });
    assert_eq!(stream.batch(3).unwrap().unwrap().sequences.len(), 3);
    assert_eq!(stream.batch(3).unwrap().unwrap().sequences.len(), 2);
    assert!(stream.batch(3).unwrap().is_none());
    let (time, count) = stream.waited();
    assert!(count >= 1 && time.as_nanos() > 0);
}

/// A device that gives the workers time finds every sample ready.
#[test]
fn what_was_read_ahead_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let source = pairs(folder.path(), &[40]);
    let options = StreamOptions { epochs: Some(1), ahead: 10, ..Default::default() };
    let mut stream = open(&source, options);
    stream.next().unwrap().unwrap();
    while stream.ready() < 10 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let before = stream.waited();
    (0..10).for_each(|_| drop(stream.next().unwrap().unwrap()));
    assert_eq!(stream.waited(), before);
}
