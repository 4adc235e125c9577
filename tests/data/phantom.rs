//! Pages of phantom studies as a source of a run.

use medflamingo::image::Preprocess;
use medflamingo::phantom::{SIDE, prepared};
use medflamingo::train::data::{LabelRules, Rules, Source, Stream, StreamOptions};
use medflamingo::train::{NO_LABEL, Sample};

fn open(pages: &str, options: StreamOptions) -> Stream {
    let source = Source::Phantom { pages: pages.into() };
    let tokenizer = prepared().unwrap().tokenizer;
    let rules = Rules::pages(LabelRules::V2);
    Stream::open(source, rules, tokenizer, Preprocess::clip(SIDE), options).unwrap()
}

fn take(stream: &mut Stream, count: usize) -> Vec<Sample> {
    (0..count).map(|_| stream.next().unwrap().unwrap()).collect()
}

fn options() -> StreamOptions {
    StreamOptions { threads: 1, ..StreamOptions::default() }
}

fn same(a: &[Sample], b: &[Sample]) -> bool {
    let alike = |(a, b): (&Sample, &Sample)| a.ids == b.ids && a.images == b.images;
    a.len() == b.len() && a.iter().zip(b).all(alike)
}

#[test]
fn a_restored_stream_goes_on_and_threads_change_nothing() {
    let mut stream = open("caption, words", options());
    take(&mut stream, 5);
    let state = stream.state();
    let next = take(&mut stream, 4);
    let mut other = open("caption, words", StreamOptions { threads: 3, ..options() });
    other.restore(&state).unwrap();
    assert!(same(&take(&mut other, 4), &next));
    for other in [
        ("caption", options()),
        ("caption, words", StreamOptions { seed: 1, ..options() }),
        ("caption, words", StreamOptions { shuffle: false, ..options() }),
    ] {
        assert!(open(other.0, other.1).restore(&state).is_err());
    }
}

#[test]
fn ranks_share_the_pages_and_validation_has_its_own() {
    let whole = take(&mut open("shots", options()), 4);
    let rank = |rank| take(&mut open("shots", StreamOptions { rank, world: 2, ..options() }), 2);
    let [first, second] = [rank(0), rank(1)];
    let together = [&first[0], &second[0], &first[1], &second[1]].map(Clone::clone);
    assert!(same(&together, &whole));
    let held_out = take(&mut open("shots", StreamOptions { shuffle: false, ..options() }), 4);
    assert!(held_out.iter().all(|h| whole.iter().all(|w| w.ids != h.ids || w.images != h.images)));
}

#[test]
fn chunks_of_pictures_are_predicted_and_all_of_a_report() {
    let specials = prepared().unwrap().tokenizer.specials();
    for sample in take(&mut open("questions", options()), 8) {
        assert_eq!(sample.images.len(), 1);
        let image = sample.ids.iter().position(|&id| id == specials.image).unwrap();
        assert!(sample.labels[..=image].iter().all(|&l| l == NO_LABEL));
        let end = sample.ids.iter().rposition(|&id| id == specials.end_of_chunk).unwrap();
        assert!(sample.labels[image + 1..=end].iter().all(|&l| l != NO_LABEL));
    }
    for sample in take(&mut open("reports", options()), 8) {
        assert!(sample.images.is_empty());
        assert!(sample.labels.iter().zip(&sample.ids).all(|(&l, &id)| l == id as i32));
    }
}
