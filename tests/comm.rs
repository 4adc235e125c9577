//! Ranks as threads and as connections: the same sums whatever their number, and an end when one of
//! them is gone or stuck.

use medflamingo::comm::{Comm, Launch};
use medflamingo::device::Stream;
use medflamingo::ops::{AdamwStep, Codebooks, Moments8, Out, SecondMomentMap, adamw8};
use medflamingo::tensor::Tensor;
use medflamingo::{DType, Error};
use std::net::TcpListener;
use std::ops::Range;
use std::time::{Duration, Instant};

/// What each of `world` ranks returns.
fn each<T: Send>(world: usize, body: impl Fn(Comm) -> T + Sync) -> Vec<T> {
    let comms = Comm::threads(world, Duration::from_secs(20));
    run(comms, body)
}

fn run<T: Send>(comms: Vec<Comm>, body: impl Fn(Comm) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = comms.into_iter().map(|comm| scope.spawn(|| body(comm))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

/// Processes of a job, as threads: they meet at a free port of this machine.
fn launches(world: usize) -> Vec<Launch> {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let launch = |rank| Launch {
        rank,
        world,
        local_rank: rank,
        address: "127.0.0.1".into(),
        port: free,
        token: [7; 32],
        launcher: "test",
    };
    (0..world).map(launch).collect()
}

fn connected<T: Send>(world: usize, timeout: Duration, body: impl Fn(Comm) -> T + Sync) -> Vec<T> {
    let body = &body;
    std::thread::scope(|scope| {
        let join =
            |launch: Launch| scope.spawn(move || body(Comm::join(&launch, timeout).unwrap()));
        let threads: Vec<_> = launches(world).into_iter().map(join).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

/// `n` elements over `world` ranks, in multiples of `each`.
fn parts(n: usize, world: usize, each: usize) -> Vec<Range<usize>> {
    let part = n.div_ceil(world).next_multiple_of(each);
    (0..world).map(|r| (r * part).min(n)..((r + 1) * part).min(n)).collect()
}

fn values(seed: usize, n: usize) -> Vec<f32> {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 / 1009.0 - 0.5;
    (0..n).map(|i| value(i) * 10f32.powi((i % 7) as i32 - 3)).collect()
}

#[test]
fn every_collective_does_what_it_says() {
    let check = |comm: Comm| {
        let stream = Stream::host(1);
        let (rank, world) = (comm.rank(), comm.world());
        // The last rank has less.
        let n = 5 * world - 2;
        let parts = parts(n, world, 1);
        let own = parts[rank].len();
        let full = || Tensor::upload(&stream, &vec![(rank + 1) as f32; n], &[n]).unwrap();
        let mut out = Tensor::upload(&stream, &vec![0.5f32; own], &[own]).unwrap();
        let total = (world * (world + 1) / 2) as f32;
        let (accumulate, overwrite) = (Out::Accumulate, Out::Overwrite);
        // Several at once, and something else in between.
        let [first, second] = [full(), full()].map(|x| comm.begin_sum(x, &parts).unwrap());
        assert_eq!(comm.exchange(&[7]).unwrap(), vec![[7]; world]);
        first.end(&stream, out.view_mut(), accumulate).unwrap();
        assert_eq!(out.view().read::<f32>().unwrap(), vec![total + 0.5; own]);
        second.end(&stream, out.view_mut(), overwrite).unwrap();
        assert_eq!(out.view().read::<f32>().unwrap(), vec![total; own]);
        let mut x = full();
        comm.all_gather(&stream, x.view_mut(), &parts).unwrap();
        let owner = |i: usize| parts.iter().position(|p| p.contains(&i)).unwrap();
        let gathered: Vec<f32> = (0..n).map(|i| (owner(i) + 1) as f32).collect();
        assert_eq!(x.view().read::<f32>().unwrap(), gathered);
        let mut y = Tensor::upload(&stream, &[rank as f32], &[1]).unwrap();
        comm.broadcast(&stream, y.view_mut(), world - 1).unwrap();
        assert_eq!(y.view().read::<f32>().unwrap(), [(world - 1) as f32]);
        comm.all_reduce(&stream, y.view_mut()).unwrap();
        assert_eq!(y.view().read::<f32>().unwrap(), [(world * (world - 1)) as f32]);
        let told = comm.exchange(&[rank as u8; 3]).unwrap();
        assert!(told.iter().enumerate().all(|(r, b)| *b == [r as u8; 3]));
        assert!(comm.broadcast(&stream, y.view_mut(), world).is_err());
        assert!(comm.all_gather(&stream, y.view_mut(), &parts).is_err(), "beyond its end");
    };
    for world in [1, 2, 3, 8] {
        each(world, check);
    }
    connected(3, Duration::from_secs(20), check);
    check(Comm::Single);
}

/// ZeRO-2 with 8-bit moments, three steps of eight micro-batches: ranks take them in turn.
#[test]
fn one_two_four_and_eight_ranks_train_to_the_same_bits() {
    const N: usize = 5 * 2048;
    let train = |comm: Comm| {
        let stream = Stream::host(1);
        let parts = parts(N, comm.world(), 2048);
        let own = parts[comm.rank()].clone();
        let mut param = Tensor::upload(&stream, &values(1, N), &[N]).unwrap();
        let mut sum = Tensor::zeros(&stream, DType::F32, &[own.len()]).unwrap();
        let books = Codebooks::new(&stream, SecondMomentMap::Dynamic).unwrap();
        let zeros = |dtype, n: usize| Tensor::zeros(&stream, dtype, &[n]).unwrap();
        let scales = own.len().div_ceil(256);
        let mut codes = [zeros(DType::U8, own.len()), zeros(DType::U8, own.len())];
        let mut absmax = [zeros(DType::F32, scales), zeros(DType::F32, scales)];
        for step in 1..=3 {
            for turn in 0..8 / comm.world() {
                let micro = step * 8 + turn * comm.world() + comm.rank();
                let g = Tensor::upload(&stream, &values(micro, N), &[N]).unwrap();
                let mode = if turn == 0 { Out::Overwrite } else { Out::Accumulate };
                let begun = comm.begin_sum(g, &parts).unwrap();
                begun.end(&stream, sum.view_mut(), mode).unwrap();
            }
            if !own.is_empty() {
                let [c1, c2] = &mut codes;
                let [a1, a2] = &mut absmax;
                let moments = Moments8 {
                    codes: [c1.view_mut(), c2.view_mut()],
                    absmax: [a1.view_mut(), a2.view_mut()],
                };
                let grad = sum.view();
                let part = param.view_mut().block(0..1, own.clone()).unwrap();
                let step = AdamwStep {
                    step: step as u64,
                    lr: 1e-3,
                    betas: [0.9, 0.999],
                    eps: 1e-8,
                    weight_decay: 0.1,
                    seed: 0,
                };
                adamw8(&stream, part, None, moments, grad, None, &books, 256, &step).unwrap();
            }
            comm.all_gather(&stream, param.view_mut(), &parts).unwrap();
        }
        let bits: Vec<u32> =
            param.view().read::<f32>().unwrap().iter().map(|x| x.to_bits()).collect();
        bits
    };
    let alone = train(Comm::Single);
    assert_ne!(alone, values(1, N).iter().map(|x| x.to_bits()).collect::<Vec<_>>());
    for world in [2, 4, 8] {
        for (rank, bits) in each(world, train).into_iter().enumerate() {
            assert!(bits == alone, "rank {rank} of {world}");
        }
    }
    assert!(connected(2, Duration::from_secs(20), train).iter().all(|bits| *bits == alone));
}

/// Ten times each: a rank that leaves, and one that does not come.
#[test]
fn a_dead_or_stuck_rank_ends_all_in_time() {
    let timeout = Duration::from_millis(300);
    for round in 0..10 {
        let world = 2 + round % 4;
        let lost = round % world;
        for is_stuck in [false, true] {
            let body = |comm: Comm| {
                comm.exchange(&[1]).unwrap();
                if comm.rank() == lost {
                    if is_stuck {
                        std::thread::sleep(timeout * 3);
                    }
                    return None;
                }
                let began = Instant::now();
                let e = comm.exchange(&[2]).unwrap_err();
                let again = comm.exchange(&[3]).unwrap_err();
                Some((e, again, began.elapsed()))
            };
            let threads = run(Comm::threads(world, timeout), body);
            for (e, again, took) in
                threads.into_iter().chain(connected(world, timeout, body)).flatten()
            {
                let (message, again) = (e.to_string(), again.to_string());
                assert!(message.contains(&format!("rank {lost} ")), "{message}");
                assert_eq!(message, again, "it stays failed");
                assert!(took < timeout * 3, "{took:?}");
                assert_eq!(e.exit_code(), 3);
            }
        }
    }
}

#[test]
fn an_error_of_one_is_an_error_of_all() {
    let bad = |comm: Comm| {
        let own = match comm.rank() {
            1 => Err(Error::invalid("disk", "room", "none")),
            _ => Ok(vec![comm.rank() as u8]),
        };
        comm.agree(own).unwrap().unwrap_err().to_string()
    };
    assert!(each(3, bad).iter().all(|e| e.contains("disk: expected room")));
    let good = |comm: Comm| comm.agree(Ok(vec![comm.rank() as u8])).unwrap().unwrap();
    assert!(each(3, good).iter().all(|all| *all == [[0], [1], [2]]));
}

#[test]
fn strangers_are_not_let_in() {
    let own = launches(2);
    let stranger = Launch { token: [8; 32], ..own[1].clone() };
    std::thread::scope(|scope| {
        let root = scope.spawn(|| Comm::join(&own[0], Duration::from_secs(20)).unwrap());
        let short = Duration::from_millis(300);
        let refused = Comm::join(&stranger, short).err().unwrap().to_string();
        assert!(refused.contains("cannot reach rank 0"), "{refused}");
        let mut noise = loop {
            match std::net::TcpStream::connect(("127.0.0.1", own[0].port)) {
                Ok(stream) => break stream,
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        std::io::Write::write_all(&mut noise, &[b'x'; 100]).unwrap();
        let member = Comm::join(&own[1], Duration::from_secs(20)).unwrap();
        let other = scope.spawn(move || member.exchange(&[1]).unwrap());
        let root = root.join().unwrap();
        assert_eq!(root.exchange(&[0]).unwrap(), [[0], [1]]);
        assert_eq!(other.join().unwrap(), [[0], [1]]);
    });
}
