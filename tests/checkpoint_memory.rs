//! What reading costs in memory: nothing for tensors, little for hostile files. One test, because
//! the figures are those of the whole process.

#[allow(dead_code, reason = "shared with tests/checkpoint.rs, which uses the rest")]
mod pickle;

use medflamingo::checkpoint::Checkpoint;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

const MIB: usize = 1 << 20;

/// A line of `/proc/self/status` in bytes, or none where there is no such file.
fn status(field: &str) -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<usize>().ok()? * 1024)
}

/// An archive of `count` storages of `each` bytes, all holes: no space on the disk.
fn sparse(path: &Path, count: u64, each: u64) {
    let tensor = |i: u64| {
        let storage = pickle::storage("Half", &i.to_string(), &format!("long:{}", wide(each / 2)));
        pickle::view(&storage, "k:0", &format!("long:{}", wide(each / 2)), "k:1")
    };
    let items: String = (0..count).map(|i| format!(" s:w{i} {}", tensor(i))).collect();
    let pickle = pickle::asm(&format!("proto:2 }} ({items} u ."));
    let mut file = File::create(path).unwrap();
    let mut central = Vec::new();
    let mut put = |file: &mut File, name: &str, content: Option<&[u8]>| {
        let at = file.stream_position().unwrap();
        let size = content.map_or(each, |c| c.len() as u64);
        let crc = content.map_or(0, pickle::crc32);
        let words = |crc: u32| [crc, u32::MAX, u32::MAX].map(u32::to_le_bytes).concat();
        let extra: Vec<u8> = [[size, size, at].map(u64::to_le_bytes).concat()].concat();
        let local = b"PK\x03\x04\x2d\0\x08\x08\0\0\0\0\0\0";
        file.write_all(
            &[local, &words(0)[..], &(name.len() as u16).to_le_bytes(), &[0, 0]].concat(),
        )
        .unwrap();
        file.write_all(name.as_bytes()).unwrap();
        match content {
            Some(content) => file.write_all(content).unwrap(),
            None => drop(file.seek(SeekFrom::Current(each as i64)).unwrap()),
        }
        central.extend(b"PK\x01\x02\x2d\0\x2d\0\x08\x08\0\0\0\0\0\0");
        central.extend(words(crc));
        central.extend((name.len() as u16).to_le_bytes());
        central.extend([28, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
        central.extend(name.as_bytes());
        central.extend([1, 0, 24, 0]);
        central.extend(extra);
    };
    put(&mut file, "big/data.pkl", Some(&pickle));
    for i in 0..count {
        put(&mut file, &format!("big/data/{i}"), None);
    }
    let at = file.stream_position().unwrap();
    file.write_all(&central).unwrap();
    let end = at + central.len() as u64;
    let members = count + 1;
    file.write_all(b"PK\x06\x06").unwrap();
    file.write_all(&44u64.to_le_bytes()).unwrap();
    file.write_all(b"\x2d\0\x2d\0\0\0\0\0\0\0\0\0").unwrap();
    for word in [members, members, central.len() as u64, at] {
        file.write_all(&word.to_le_bytes()).unwrap();
    }
    file.write_all(b"PK\x06\x07\0\0\0\0").unwrap();
    file.write_all(&end.to_le_bytes()).unwrap();
    file.write_all(b"\x01\0\0\0PK\x05\x06\0\0\0\0").unwrap();
    file.write_all(&[0xff; 12]).unwrap();
    file.write_all(&[0, 0]).unwrap();
}

/// Eight little-endian bytes in hex.
fn wide(n: u64) -> String {
    n.to_le_bytes().iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn tensors_cost_no_memory_and_hostile_files_little() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("big.pt");
    sparse(&path, 20, 1 << 30);
    let before = status("RssAnon");
    let big = Checkpoint::open(&path).unwrap();
    let total: usize = big.iter().map(|(_, entry)| entry.bytes()).sum();
    assert_eq!(total, 20 << 30);
    let last = big.get("w19").unwrap();
    let mut read = 0;
    last.read(&mut |piece| {
        assert!(piece.len() <= 4 * MIB && piece[0] == 0);
        read += piece.len();
        Ok(())
    })
    .unwrap();
    assert_eq!(read, 1 << 30);
    match (before, status("RssAnon")) {
        (Some(before), Some(after)) => {
            println!("20 GiB opened, 1 GiB read: {} KiB", after.saturating_sub(before) >> 10);
            assert!(after.saturating_sub(before) < 8 * MIB);
        }
        _ => println!("SKIPPED: no /proc/self/status, anonymous memory not measured"),
    }
    drop(big);
    hostile_peaks();
}

fn hostile_peaks() {
    let mut worst = (0, String::new());
    for case in pickle::hostile::cases() {
        let (label, file) = (case.label, case.file);
        if std::fs::write("/proc/self/clear_refs", "5").is_err() {
            println!("SKIPPED: the peak of memory cannot be reset here");
            return;
        }
        let Some(before) = status("VmRSS") else { return };
        assert!(Checkpoint::from_bytes("file", file).is_err(), "{label}");
        let peak = status("VmHWM").unwrap_or(0).saturating_sub(before);
        if peak > worst.0 {
            worst = (peak, label);
        }
    }
    println!("worst hostile file: {} MiB ({})", worst.0 >> 20, worst.1);
    assert!(worst.0 < 256 * MIB, "{worst:?}");
}
