//! Ranks that are processes: rank 0 takes what all have and gives each what is for it, over TCP.
//!
//! Only processes with the job's token are let in. Every wait has an end; a rank that closes its
//! connection is gone, one that sends nothing in time is stuck, and rank 0 tells the others which
//! before it ends.

use super::lane::{Answer, Link, Parts, part_of};
use super::launch::Launch;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// The first bytes on a connection, with the version of what follows.
const MAGIC: &[u8; 8] = b"mfranks2";
/// How long a new connection may take to say who it is.
const HELLO: Duration = Duration::from_secs(5);
/// Between two attempts to reach rank 0, which may start later.
const AGAIN: Duration = Duration::from_millis(50);
/// More bytes in one message than any rank sends.
const MOST: u64 = 1 << 36;
const DATA: u8 = 0;
const FAILURE: u8 = 1;

/// This process's connections.
pub(super) struct Star {
    rank: usize,
    timeout: Duration,
    /// Of rank 0: to ranks 1, 2, ..; of the others: to rank 0.
    peers: Vec<TcpStream>,
    failed: Option<String>,
}

impl Star {
    pub(super) fn join(launch: &Launch, timeout: Duration) -> Result<Self, String> {
        let deadline = Instant::now() + timeout;
        let peers = match launch.rank {
            0 => {
                let at = ("0.0.0.0", launch.port);
                let listener = TcpListener::bind(at);
                let listener = listener.map_err(|e| {
                    format!("cannot listen at port {}: {e}; set MEDFLAMINGO_PORT", launch.port)
                })?;
                accept(&listener, launch, deadline)?
            }
            _ => vec![reach(launch, deadline)?],
        };
        for peer in &peers {
            // Messages are small or large, never a stream of small ones.
            let _ = peer.set_nodelay(true);
        }
        Ok(Star { rank: launch.rank, timeout, peers, failed: None })
    }

    fn fail(&mut self, why: &str) {
        self.failed = Some(why.to_string());
        if self.rank > 0 {
            self.peers.iter().for_each(|peer| drop(peer.shutdown(Shutdown::Both)));
            return;
        }
        for peer in &mut self.peers {
            let _ = send(peer, FAILURE, &[why.as_bytes()], Instant::now() + HELLO);
        }
        let deadline = Instant::now() + self.timeout / 4;
        self.peers.iter_mut().for_each(|peer| part(peer, deadline));
    }

    /// What rank 0 does.
    fn collect(&mut self, own: Parts, deadline: Instant) -> Answer {
        let seconds = self.timeout.as_secs_f64();
        let mut all = vec![own];
        for (i, peer) in self.peers.iter_mut().enumerate() {
            let message = receive(peer, deadline).map_err(|e| lost(i + 1, &e, seconds))?;
            let damaged = || format!("rank {} sent a damaged message", i + 1);
            all.push(listed_in(&message).ok_or_else(damaged)?);
        }
        let of = |rank: usize| all.iter().map(move |parts| part_of(parts, rank));
        for (i, peer) in self.peers.iter_mut().enumerate() {
            let parts: Vec<&[u8]> = of(i + 1).collect();
            send_list(peer, &parts, deadline).map_err(|e| lost(i + 1, &e, seconds))?;
        }
        Ok(of(0).map(<[u8]>::to_vec).collect())
    }

    /// What the others do. Rank 0 knows better who is late: it has that much longer.
    fn ask(&mut self, own: &[Vec<u8>], deadline: Instant) -> Answer {
        let seconds = self.timeout.as_secs_f64();
        let peer = self.peers.first_mut().ok_or("not connected")?;
        let own: Vec<&[u8]> = own.iter().map(Vec::as_slice).collect();
        let sent = send_list(peer, &own, deadline);
        let received = receive(peer, deadline + self.timeout / 4);
        // What rank 0 said before it ended says more than that it has.
        let message = match (sent, received) {
            (_, Err(e)) if e.kind() == io::ErrorKind::Other => Err(e),
            (Err(e), _) | (Ok(()), Err(e)) => Err(e),
            (Ok(()), Ok(message)) => Ok(message),
        };
        let message = message.map_err(|e| lost(0, &e, seconds))?;
        listed_in(&message).ok_or_else(|| "rank 0 sent a damaged message".into())
    }
}

impl Link for Star {
    fn exchange(&mut self, parts: Parts) -> Answer {
        if let Some(why) = &self.failed {
            return Err(why.clone());
        }
        let deadline = Instant::now() + self.timeout;
        let answer = match self.rank {
            0 => self.collect(parts, deadline),
            _ => self.ask(&parts, deadline),
        };
        if let Err(why) = &answer {
            self.fail(why);
        }
        answer
    }
}

/// Sends parts with their lengths.
fn send_list(peer: &mut TcpStream, parts: &[&[u8]], deadline: Instant) -> io::Result<()> {
    let lengths: Vec<[u8; 8]> = parts.iter().map(|b| (b.len() as u64).to_le_bytes()).collect();
    let pieces = lengths.iter().zip(parts).flat_map(|(n, b)| [&n[..], b]);
    send(peer, DATA, &pieces.collect::<Vec<_>>(), deadline)
}

/// The parts in a message, unless it is damaged.
fn listed_in(message: &[u8]) -> Option<Parts> {
    let (mut rest, mut all) = (message, Vec::new());
    while !rest.is_empty() {
        let (len, after) = rest.split_first_chunk()?;
        let (part, after) = after.split_at_checked(u64::from_le_bytes(*len) as usize)?;
        all.push(part.to_vec());
        rest = after;
    }
    Some(all)
}

/// Takes what the other side may have sent until it closes: to close before that is a reset, which
/// can overtake what was said last.
fn part(peer: &mut TcpStream, deadline: Instant) {
    let _ = peer.shutdown(Shutdown::Write);
    let mut rest = [0; 4096];
    while let Ok(left) = left(deadline)
        && peer.set_read_timeout(Some(left)).is_ok()
        && peer.read(&mut rest).is_ok_and(|n| n > 0)
    {}
}

/// What became of a rank.
fn lost(rank: usize, e: &io::Error, seconds: f64) -> String {
    match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("rank {rank} did not come within {seconds} s")
        }
        io::ErrorKind::Other => e.to_string(),
        _ => format!("rank {rank} has ended: {e}"),
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn send(peer: &mut TcpStream, kind: u8, parts: &[&[u8]], deadline: Instant) -> io::Result<()> {
    let len: u64 = parts.iter().map(|p| p.len() as u64).sum();
    let head = [&[kind][..], &len.to_le_bytes()].concat();
    for mut bytes in std::iter::once(head.as_slice()).chain(parts.iter().copied()) {
        while !bytes.is_empty() {
            peer.set_write_timeout(Some(left(deadline)?))?;
            match peer.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}

/// One message; memory grows with what comes, not with what is announced.
fn receive(peer: &mut TcpStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let head = read(peer, 9, deadline)?;
    let len = head[1..].try_into().map_or(u64::MAX, u64::from_le_bytes);
    if len > MOST || head[0] > FAILURE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let message = read(peer, len, deadline)?;
    if head[0] == FAILURE {
        return Err(io::Error::other(String::from_utf8_lossy(&message).into_owned()));
    }
    Ok(message)
}

fn read(peer: &mut TcpStream, len: u64, deadline: Instant) -> io::Result<Vec<u8>> {
    const CHUNK: usize = 1 << 20;
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < len {
        let start = bytes.len();
        let most = (len - start as u64).min(CHUNK as u64) as usize;
        bytes.resize(start + most, 0);
        peer.set_read_timeout(Some(left(deadline)?))?;
        let n = match peer.read(&mut bytes[start..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            Err(e) => return Err(e),
        };
        bytes.truncate(start + n);
    }
    Ok(bytes)
}

/// Who a process is, as it says itself.
fn hello(launch: &Launch) -> Vec<u8> {
    let (rank, world) = (launch.rank as u32, launch.world as u32);
    [&MAGIC[..], &launch.token, &rank.to_le_bytes(), &world.to_le_bytes()].concat()
}

/// Connections of all other ranks, in their order.
fn accept(
    listener: &TcpListener,
    launch: &Launch,
    deadline: Instant,
) -> Result<Vec<TcpStream>, String> {
    let fail = |e: io::Error| format!("cannot accept connections: {e}");
    listener.set_nonblocking(true).map_err(fail)?;
    let mut peers: Vec<Option<TcpStream>> = (1..launch.world).map(|_| None).collect();
    while peers.iter().any(Option::is_none) {
        match listener.accept() {
            Ok((mut peer, _)) => {
                // A stranger, or one who is not ready, is not let in and costs a moment only.
                if let Some(rank) = welcome(&mut peer, launch, deadline)
                    && peers[rank - 1].is_none()
                {
                    peers[rank - 1] = Some(peer);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let missing: Vec<usize> =
                    (1..launch.world).filter(|&r| peers[r - 1].is_none()).collect();
                if left(deadline).is_err() {
                    let missing = super::threads::listed(&missing);
                    return Err(format!("rank {missing} did not connect in time"));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(e) => return Err(fail(e)),
        }
    }
    Ok(peers.into_iter().flatten().collect())
}

/// The rank of a process of this job.
fn welcome(peer: &mut TcpStream, launch: &Launch, deadline: Instant) -> Option<usize> {
    peer.set_nonblocking(false).ok()?;
    let soon = deadline.min(Instant::now() + HELLO);
    let said = read(peer, hello(launch).len() as u64, soon).ok()?;
    let rank = u32::from_le_bytes(*said.get(40..)?.first_chunk()?) as usize;
    let expected = hello(&Launch { rank, ..launch.clone() });
    if said != expected || rank == 0 || rank >= launch.world {
        return None;
    }
    // The answer shows that this is rank 0 of the same job.
    send(peer, DATA, &[&hello(launch)], soon).ok().map(|()| rank)
}

/// A connection to rank 0.
fn reach(launch: &Launch, deadline: Instant) -> Result<TcpStream, String> {
    let at = format!("{}:{}", launch.address, launch.port);
    let mut why = String::from("no address");
    while left(deadline).is_ok() {
        match attempt(launch, deadline) {
            Ok(peer) => return Ok(peer),
            Err(e) => why = e.to_string(),
        }
        std::thread::sleep(AGAIN);
    }
    Err(format!("cannot reach rank 0 at {at}: {why}"))
}

fn attempt(launch: &Launch, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in (launch.address.as_str(), launch.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left(deadline)?.min(HELLO)) {
            Ok(mut peer) => {
                peer.write_all(&hello(launch))?;
                let answer = receive(&mut peer, deadline.min(Instant::now() + HELLO))?;
                if answer == hello(&Launch { rank: 0, ..launch.clone() }) {
                    return Ok(peer);
                }
                last = io::Error::other("another program, or another job, listens there");
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}
