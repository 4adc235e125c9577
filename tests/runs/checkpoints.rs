//! Every operation that can fail, failing: what is found afterwards is the old checkpoint or the
//! new one, and either holds.

use super::*;
use medflamingo::Result;
use medflamingo::run::checkpoint::TRAINABLE;
use medflamingo::run::{Content, Saved};
use medflamingo::tensor::Tensor;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

fn values(step: u64) -> Vec<f32> {
    (0..1000).map(|i| (i as u64 * (step + 1)) as f32).collect()
}

fn save(checkpoints: &Checkpoints, comm: &Comm, step: u64) -> Result<PathBuf> {
    let stream = Stream::host(1);
    let a = Tensor::upload(&stream, &values(step), &[10, 100]).unwrap();
    let own = values(step + comm.rank() as u64);
    let own = Tensor::upload(&stream, &own, &[1000]).unwrap();
    let content = Content {
        trainable: vec![("a".into(), a.view())],
        own: vec![("moment".into(), own.view())],
        state: json!({"step": step, "rank": comm.rank()}),
    };
    checkpoints.save(comm, step, &content).unwrap()
}

/// Asserts that `saved` is, to the bit, what was saved at its step.
fn holds(saved: &Saved) {
    let step = saved.manifest.step;
    let bytes = |values: Vec<f32>| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
    let trainable = saved.trainable().unwrap();
    assert!(trainable.get("a").unwrap().to_vec() == bytes(values(step)));
    for rank in 0..saved.manifest.world {
        assert_eq!(saved.state(rank).unwrap(), json!({"step": step, "rank": rank}));
        let own = saved.own(rank).unwrap().unwrap();
        assert!(own.get("moment").unwrap().to_vec() == bytes(values(step + rank as u64)));
    }
}

fn steps(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn the_last_ones_stay_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("checkpoints");
    let checkpoints = Checkpoints::new(&at, 2, Disk::default());
    assert!(checkpoints.newest().0.is_none());
    for step in [5, 10, 15] {
        save(&checkpoints, &Comm::Single, step).unwrap();
        holds(&checkpoints.newest().0.unwrap());
    }
    assert_eq!(steps(&at), ["step-00000010", "step-00000015"]);
    assert_eq!(checkpoints.newest().0.unwrap().manifest.step, 15);
}

#[test]
fn damaged_ones_are_passed_over_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(folder.path(), 3, Disk::default());
    for step in [1, 2] {
        save(&checkpoints, &Comm::Single, step).unwrap();
    }
    let newest = folder.path().join("step-00000002");
    for file in steps(&newest) {
        let path = newest.join(&file);
        let good = std::fs::read(&path).unwrap();
        let lengths = [0, good.len() / 2, good.len() - 1];
        let cut = lengths.map(|len| good[..len].to_vec());
        let places = (0..good.len()).step_by(good.len().div_ceil(40));
        let flipped = places.map(|at| {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            bytes
        });
        for bytes in cut.into_iter().chain(flipped) {
            std::fs::write(&path, &bytes).unwrap();
            let (saved, damaged) = checkpoints.newest();
            assert_eq!(saved.unwrap().manifest.step, 1, "{file}");
            assert_eq!(damaged.len(), 1);
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(checkpoints.newest().0.unwrap().manifest.step, 1, "{file}");
        std::fs::write(&path, &good).unwrap();
        assert_eq!(checkpoints.newest().0.unwrap().manifest.step, 2, "{file}");
    }
    std::fs::write(newest.join(TRAINABLE), "no").unwrap();
    save(&checkpoints, &Comm::Single, 2).unwrap();
    holds(&checkpoints.newest().0.unwrap());
    assert_eq!(checkpoints.newest().0.unwrap().manifest.step, 2);
}

/// At each operation in turn: the disk is full once, or from then on, or the process ends there.
#[test]
fn no_failure_costs_a_checkpoint_or_leaves_half_of_one() {
    let operations = {
        let folder = tempfile::tempdir().unwrap();
        save(&Checkpoints::new(folder.path(), 1, Disk::default()), &Comm::Single, 1).unwrap();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let disk = Disk::faulty(move |_, _| {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        save(&Checkpoints::new(folder.path(), 1, disk), &Comm::Single, 2).unwrap();
        count.load(Ordering::Relaxed)
    };
    assert!(operations > 15, "{operations}");
    for k in 0..operations {
        for is_for_good in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let good = Checkpoints::new(folder.path(), 1, Disk::default());
            save(&good, &Comm::Single, 1).unwrap();
            let count = AtomicUsize::new(0);
            let disk = Disk::faulty(move |_, _| {
                let n = count.fetch_add(1, Ordering::Relaxed);
                let fails = if is_for_good { n >= k } else { n == k };
                match fails {
                    true => Err(std::io::Error::from(std::io::ErrorKind::StorageFull)),
                    false => Ok(()),
                }
            });
            let result = save(&Checkpoints::new(folder.path(), 1, disk), &Comm::Single, 2);
            let (found, damaged) = good.newest();
            let found = found.unwrap_or_else(|| panic!("operation {k}: none left"));
            holds(&found);
            assert!(damaged.is_empty(), "operation {k}: {damaged:?}");
            if result.is_ok() {
                assert_eq!(found.manifest.step, 2, "operation {k}");
            }
            // The next attempt finds nothing in its way, and cleans up.
            save(&good, &Comm::Single, 3).unwrap();
            assert_eq!(good.newest().0.unwrap().manifest.step, 3);
            assert!(!steps(folder.path()).iter().any(|n| n.starts_with('.')), "operation {k}");
        }
    }
}

#[test]
fn ranks_save_together_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let together = |step: u64, failing: Option<usize>| {
        let comms = Comm::threads(3, Duration::from_secs(20));
        std::thread::scope(|scope| {
            let one = |comm: Comm| {
                scope.spawn(move || {
                    let is_failing = failing == Some(comm.rank());
                    let disk =
                        Disk::faulty(move |action, _| match is_failing && action == "write" {
                            true => Err(std::io::Error::from(std::io::ErrorKind::StorageFull)),
                            false => Ok(()),
                        });
                    save(&Checkpoints::new(at, 2, disk), &comm, step)
                })
            };
            let threads: Vec<_> = comms.into_iter().map(one).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>()
        })
    };
    let good = Checkpoints::new(at, 2, Disk::default());
    assert!(together(1, None).iter().all(Result::is_ok));
    for rank in 0..3 {
        let results = together(2, Some(rank));
        assert!(results.iter().all(Result::is_err));
        let found = good.newest().0.unwrap();
        assert_eq!((found.manifest.step, found.manifest.world), (1, 3));
        holds(&found);
    }
    assert!(together(2, None).iter().all(Result::is_ok));
    holds(&good.newest().0.unwrap());
}
