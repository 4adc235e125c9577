//! Several ranks: the same bits as one, and an end when one of them is gone.

use super::*;
use std::process::Child;
use std::time::{Duration, Instant};

/// Trains with so many threads as ranks, eight micro-batches of one sequence a step in all.
fn with_ranks(world: usize, bits: u32, mask: &str) -> BTreeMap<String, String> {
    let scratch = tempfile::tempdir().unwrap();
    let config = prepared(scratch.path(), 2, &format!("micro_batches = {}", 8 / world));
    let text = std::fs::read_to_string(&config).unwrap();
    let train = format!("[train]\nmask_mode = \"{mask}\"\n[train.schedule]");
    let text = text.replace("bits = 8", &format!("bits = {bits}"));
    std::fs::write(&config, text.replace("[train.schedule]", &train)).unwrap();
    let comms = Comm::threads(world, Duration::from_secs(120));
    std::thread::scope(|scope| {
        let one = |comm: Comm| scope.spawn(|| trained(&config, false, comm, Disk::default()).0);
        let threads: Vec<_> = comms.into_iter().map(one).collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap().unwrap().step, 2);
        }
    });
    let (step, sums) = newest(&config).unwrap();
    assert_eq!(step, 2);
    sums
}

#[test]
fn one_two_four_and_eight_ranks_end_with_the_same_parameters() {
    let (name, mut all) = ("trainable.safetensors", Vec::new());
    for (bits, worlds, mask) in
        [(8, &[2, 4, 8][..], "v2"), (32, &[4], "v2"), (8, &[4], "v1-augmented")]
    {
        let alone = with_ranks(1, bits, mask);
        all.push(alone[name].clone());
        for &world in worlds {
            let sums = with_ranks(world, bits, mask);
            assert_eq!(sums[name], alone[name], "{world} ranks, {bits} bits");
            let parts = sums.keys().filter(|n| n.starts_with("optimizer-")).count();
            assert_eq!(parts, world, "each has a part of the state");
        }
    }
    assert_ne!(all[0], all[2], "masks are drawn");
}

#[test]
fn ranks_resume_together_and_other_numbers_of_them_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let config = prepared(scratch.path(), 6, "checkpoint_every = 2");
    let run = |world: usize, resume: bool| {
        let comms = Comm::threads(world, Duration::from_secs(60));
        std::thread::scope(|scope| {
            let one = |comm| scope.spawn(|| trained(&config, resume, comm, Disk::default()).0);
            let threads: Vec<_> = comms.into_iter().map(one).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>()
        })
    };
    assert!(run(2, false).iter().all(|r| r.is_ok()));
    let whole = newest(&config).unwrap();
    let checkpoints = scratch.path().join("out/checkpoints");
    std::fs::remove_dir_all(checkpoints.join("step-00000006")).unwrap();
    for world in [1, 4] {
        for refused in run(world, true) {
            let message = refused.unwrap_err().to_string();
            assert!(
                message.contains("number of ranks") && message.contains("found 2"),
                "{message}"
            );
        }
    }
    assert!(run(2, true).iter().all(|r| r.is_ok()));
    assert_eq!(newest(&config).unwrap(), whole);
}

/// Processes, as torchrun would start them.
fn start(config: &Path, world: usize, port: u16) -> Vec<Child> {
    let one = |rank: usize| {
        let mut command = command(config);
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", world.to_string());
        command.env("LOCAL_RANK", rank.to_string()).env("MASTER_ADDR", "127.0.0.1");
        command.env("MEDFLAMINGO_PORT", port.to_string()).env("MEDFLAMINGO_TOKEN", "t");
        command.spawn().unwrap()
    };
    (0..world).map(one).collect()
}

#[test]
fn a_dead_or_stuck_process_ends_the_others_within_the_timeout() {
    for (round, signal) in [(0, libc::SIGKILL), (1, libc::SIGKILL), (2, libc::SIGSTOP)] {
        let scratch = tempfile::tempdir().unwrap();
        let config =
            prepared(scratch.path(), 1_000_000, "timeout_seconds = 3\ncheckpoint_every = 1000000");
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut children = start(&config, 3, port);
        // Until they train.
        let lines = scratch.path().join("out/metrics.jsonl");
        let begin = Instant::now();
        while std::fs::metadata(&lines).map_or(0, |m| m.len()) == 0 {
            assert!(begin.elapsed() < Duration::from_secs(60), "they do not begin");
            std::thread::sleep(Duration::from_millis(20));
        }
        let lost = children.remove(round);
        // SAFETY: a signal to a child of this process that has not been waited for.
        assert_eq!(unsafe { libc::kill(lost.id() as i32, signal) }, 0);
        let began = Instant::now();
        for child in children {
            let out = child.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&out.stderr);
            assert_eq!(out.status.code(), Some(3), "{text}");
            assert!(text.contains(&format!("rank {round} ")), "rank {round}: {text}");
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        let mut lost = lost;
        lost.kill().unwrap();
        lost.wait().unwrap();
    }
}
