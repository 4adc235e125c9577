//! Runs that are killed, interrupted, and whose disk is full.

use super::*;
use medflamingo::run::checkpoint;
use std::io::{BufRead, BufReader};
use std::process::Child;
use std::time::{Duration, Instant};

/// A longer soak: `MEDFLAMINGO_KILLS=1000 cargo test --release --test runs killed`.
fn kills_wanted() -> usize {
    std::env::var("MEDFLAMINGO_KILLS").map_or(25, |n| n.parse().unwrap())
}

/// Of an interrupted run's state all that decides how it goes on is compared: tensors, progress,
/// place in the data.
#[test]
fn a_run_killed_at_any_moment_loses_nothing_and_ends_the_same() {
    let scratch = tempfile::tempdir().unwrap();
    let every = "checkpoint_every = 2\nkeep_checkpoints = 2";
    let whole = scratch.path().join("whole");
    std::fs::create_dir(&whole).unwrap();
    let config = prepared(&whole, 16, every);
    let began = Instant::now();
    let out = command(&config).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let life = began.elapsed();
    let expected = newest(&config).unwrap();
    assert_eq!(expected.0, 16);

    let (mut kills, mut seed, mut round) = (0, 7u64, 0);
    let wanted = kills_wanted();
    while kills < wanted {
        round += 1;
        let own = scratch.path().join(format!("killed-{round}"));
        std::fs::create_dir(&own).unwrap();
        let config = prepared(&own, 16, every);
        let mut step = 0;
        loop {
            seed = seed.wrapping_mul(6364136223846791605).wrapping_add(1442695040888963407);
            let delay = life.mul_f64((seed >> 33) as f64 / (1u64 << 31) as f64 * 0.4);
            let mut child = command(&config).spawn().unwrap();
            let ended = if kills < wanted { waited(&mut child, delay) } else { child.wait().ok() };
            if let Some(status) = ended {
                let mut text = String::new();
                let _ = std::io::Read::read_to_string(&mut child.stderr.unwrap(), &mut text);
                assert!(status.success(), "{text}");
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
            // Every checkpoint that has its name holds, and none is lost.
            let now = newest(&config).map_or(0, |(step, _)| step);
            assert!(now >= step, "step {step} was there, now {now}");
            step = now;
        }
        assert_eq!(newest(&config).unwrap(), expected, "round {round}, {kills} kills");
    }
}

/// The status of a child that ends within `delay`.
fn waited(child: &mut Child, delay: Duration) -> Option<std::process::ExitStatus> {
    let end = Instant::now() + delay;
    while Instant::now() < end {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

fn send(child: &Child, signal: i32) {
    // SAFETY: a signal to a child of this process that has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

#[test]
fn ctrl_c_saves_and_the_run_goes_on_to_the_same_end() {
    let scratch = tempfile::tempdir().unwrap();
    let config = prepared(scratch.path(), 30, "checkpoint_every = 1000");
    let mut child = command(&config).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let is_step = |line: &String| line.starts_with("step 3/");
    lines.by_ref().map(Result::unwrap).find(is_step).unwrap();
    send(&child, libc::SIGINT);
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(rest.iter().any(|l| l.contains("go on with --resume")), "{rest:?}");
    let (step, _) = newest(&config).unwrap();
    assert!((3..30).contains(&step), "{step}");
    assert!(command(&config).status().unwrap().success());
    let interrupted = newest(&config).unwrap();

    let other = scratch.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let config = prepared(&other, 30, "checkpoint_every = 7");
    alone(&config, false).unwrap();
    assert_eq!(newest(&config).unwrap(), interrupted);
}

/// A disk that is full for a while costs a checkpoint; one that stays full ends the run, and the
/// last checkpoint that was saved stays.
#[test]
fn a_full_disk_keeps_what_is_there() {
    for stays_full in [false, true] {
        let scratch = tempfile::tempdir().unwrap();
        let config = prepared(scratch.path(), 20, "checkpoint_every = 2");
        let full = move |action: &'static str, path: &Path| {
            let at = path.display().to_string();
            let is_hit = at.contains("step-00000006")
                || (stays_full && !at.contains("step-00000002") && at.contains("step-"));
            match action == "write" && is_hit && at.ends_with(".safetensors") {
                true => Err(std::io::Error::from(std::io::ErrorKind::StorageFull)),
                false => Ok(()),
            }
        };
        let (ended, notes) = trained(&config, false, Comm::Single, Disk::faulty(full));
        let (step, _) = newest(&config).unwrap();
        if stays_full {
            assert!(ended.unwrap_err().to_string().contains("step-00000008"), "three in a row");
            assert_eq!((step, notes.len()), (2, 2), "{notes:?}");
        } else {
            assert_eq!(ended.unwrap().step, 20);
            assert_eq!((step, notes.len()), (20, 1), "{notes:?}");
        }
        assert!(notes[0].contains("no checkpoint of step"), "{notes:?}");
        assert_eq!(alone(&config, true).unwrap().step, 20);
    }
}

#[test]
fn a_damaged_checkpoint_is_passed_over_with_a_note() {
    let scratch = tempfile::tempdir().unwrap();
    let config = prepared(scratch.path(), 8, "checkpoint_every = 4");
    alone(&config, false).unwrap();
    let whole = newest(&config).unwrap();
    let last = scratch.path().join("out/checkpoints/step-00000008").join(checkpoint::TRAINABLE);
    let mut bytes = std::fs::read(&last).unwrap();
    let at = bytes.len() - 5;
    bytes[at] ^= 4;
    std::fs::write(&last, bytes).unwrap();
    let (ended, notes) = trained(&config, true, Comm::Single, Disk::default());
    assert_eq!(ended.unwrap().step, 8);
    assert!(notes[0].contains("damaged") && notes[0].contains("sha256"), "{notes:?}");
    assert_eq!(newest(&config).unwrap(), whole);
}
