//! Who this process is among those that a launcher started: torchrun, mpirun or SLURM.

use crate::{Error, Result};
use sha2::{Digest, Sha256};

/// One of the processes of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    pub rank: usize,
    pub world: usize,
    /// Counted on this machine: which card is this process's.
    pub local_rank: usize,
    /// Where rank 0 is.
    pub address: String,
    pub port: u16,
    /// What tells the job's own processes from strangers.
    pub token: [u8; 32],
    /// The launcher's name.
    pub launcher: &'static str,
}

/// Names of rank, number of ranks, and rank on this machine.
struct Names {
    launcher: &'static str,
    rank: &'static str,
    world: &'static [&'static str],
    local: &'static str,
}

/// In the order in which they count: mpirun's are also set in jobs of SLURM, whose own then are of
/// the job, not of the process.
const LAUNCHERS: [Names; 4] = [
    Names { launcher: "torchrun", rank: "RANK", world: &["WORLD_SIZE"], local: "LOCAL_RANK" },
    Names {
        launcher: "mpirun",
        rank: "OMPI_COMM_WORLD_RANK",
        world: &["OMPI_COMM_WORLD_SIZE"],
        local: "OMPI_COMM_WORLD_LOCAL_RANK",
    },
    Names { launcher: "mpirun", rank: "PMI_RANK", world: &["PMI_SIZE"], local: "MPI_LOCALRANKID" },
    Names {
        launcher: "srun",
        rank: "SLURM_PROCID",
        // A batch script is one task of a job of many.
        world: &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"],
        local: "SLURM_LOCALID",
    },
];

/// Names that identify a job, where they are set.
const JOBS: [&str; 5] =
    ["MEDFLAMINGO_TOKEN", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "PMIX_NAMESPACE", "PBS_JOBID"];

/// A number that the environment gives, if it does.
fn number(get: &dyn Fn(&str) -> Option<String>, name: &str, most: usize) -> Result<Option<usize>> {
    let Some(text) = get(name) else { return Ok(None) };
    let value = text.trim().parse().ok().filter(|&n: &usize| n <= most);
    let expected = format!("a number of at most {most}");
    value.map(Some).ok_or_else(|| Error::invalid(name, expected, format!("`{text}`")))
}

impl Launch {
    /// Reads the environment through `get`; None if no launcher started this process.
    ///
    /// # Errors
    /// Variables that contradict each other, or do not say where rank 0 is.
    pub fn from_environment(get: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        const MOST: usize = 1 << 16;
        for names in &LAUNCHERS {
            let Some(rank) = number(get, names.rank, MOST)? else { continue };
            let mut world = None;
            for name in names.world {
                world = world.or(number(get, name, MOST)?);
            }
            let who = names.world[0];
            let world = world.ok_or_else(|| {
                Error::invalid(who, format!("set, as {} is", names.rank), "not set")
                    .advise("start the processes with torchrun, srun or mpirun")
            })?;
            if rank >= world {
                return Err(Error::invalid(names.rank, format!("below {who} = {world}"), rank));
            }
            let local_rank = number(get, names.local, MOST)?.unwrap_or(rank);
            let (address, port) = match world {
                1 => (String::new(), 0),
                _ => (address(get, names)?, port(get)?),
            };
            let token = token(get);
            let launcher = names.launcher;
            let launch = Launch { rank, world, local_rank, address, port, token, launcher };
            return Ok(Some(launch));
        }
        Ok(None)
    }
}

/// Where rank 0 is.
fn address(get: &dyn Fn(&str) -> Option<String>, names: &Names) -> Result<String> {
    if let Some(address) = get("MASTER_ADDR").filter(|a| !a.is_empty()) {
        return Ok(address);
    }
    let nodes = get("SLURM_STEP_NODELIST").or(get("SLURM_JOB_NODELIST"));
    if let Some(first) = nodes.as_deref().and_then(first_node) {
        return Ok(first);
    }
    let local = ["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "LOCAL_WORLD_SIZE"];
    let local = local.iter().find_map(|name| get(name));
    if local.is_some() && local == names.world.iter().find_map(|name| get(name)) {
        return Ok("127.0.0.1".into());
    }
    Err(Error::invalid("MASTER_ADDR", "the name or address of rank 0's machine", "not set")
        .advise("several machines: mpirun -x MASTER_ADDR=HOST -x MASTER_PORT=PORT .."))
}

/// The port at which rank 0 listens: `MEDFLAMINGO_PORT`, or one after `MASTER_PORT`, which torchrun
/// itself may listen at, or one that follows from the job.
fn port(get: &dyn Fn(&str) -> Option<String>) -> Result<u16> {
    const MOST: usize = u16::MAX as usize;
    if let Some(port) = number(get, "MEDFLAMINGO_PORT", MOST)? {
        return Ok(port as u16);
    }
    if let Some(port) = number(get, "MASTER_PORT", MOST)? {
        return Ok(if port == MOST { MOST - 1 } else { port + 1 } as u16);
    }
    let job = number(get, "SLURM_JOB_ID", usize::MAX)?.unwrap_or(0);
    Ok(15000 + (job % 20000) as u16)
}

fn token(get: &dyn Fn(&str) -> Option<String>) -> [u8; 32] {
    let mut hash = Sha256::new_with_prefix(b"medflamingo ranks 1");
    if let Some(job) = JOBS.iter().find_map(|name| get(name)) {
        hash.update(job.as_bytes());
    }
    hash.finalize().into()
}

/// The first name of a list such as `gpu[03-07,12],login1`.
fn first_node(list: &str) -> Option<String> {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let (head, rest) = list.split_at(end);
    let Some(inside) = rest.strip_prefix('[') else {
        return (!head.is_empty()).then(|| head.to_string());
    };
    let number = inside.split([',', '-', ']']).next()?;
    let tail = inside.split_once(']')?.1.split(',').next()?;
    Some(format!("{head}{number}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(variables: &[(&str, &str)]) -> Result<Option<Launch>> {
        let get = |name: &str| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string())
        };
        Launch::from_environment(&get)
    }

    fn found(variables: &[(&str, &str)]) -> (usize, usize, usize, String, u16) {
        let l = launch(variables).unwrap().unwrap();
        (l.rank, l.world, l.local_rank, l.address, l.port)
    }

    #[test]
    fn launchers_say_who_a_process_is() {
        assert_eq!(launch(&[]).unwrap(), None);
        let torchrun = [
            ("RANK", "5"),
            ("WORLD_SIZE", "16"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "10.0.0.1"),
            ("MASTER_PORT", "29500"),
        ];
        assert_eq!(found(&torchrun), (5, 16, 1, "10.0.0.1".into(), 29501));
        let slurm = [
            ("SLURM_PROCID", "9"),
            ("SLURM_NTASKS", "16"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_JOB_NODELIST", "gpu[03-04],x"),
            ("SLURM_JOB_ID", "1234567"),
        ];
        assert_eq!(found(&slurm), (9, 16, 1, "gpu03".into(), 29567));
        let inside = [
            ("SLURM_PROCID", "0"),
            ("SLURM_NTASKS", "2"),
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        assert_eq!(found(&inside), (1, 2, 1, "127.0.0.1".into(), 15000));
        let batch = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8"), ("SLURM_STEP_NUM_TASKS", "1")];
        assert_eq!(found(&batch).1, 1);
    }

    #[test]
    fn contradictions_name_the_variable() {
        for (variables, needle) in [
            (&[("RANK", "0")][..], "WORLD_SIZE"),
            (&[("RANK", "2"), ("WORLD_SIZE", "2")], "below WORLD_SIZE"),
            (&[("RANK", "x"), ("WORLD_SIZE", "2")], "`x`"),
            (&[("RANK", "0"), ("WORLD_SIZE", "2")], "MASTER_ADDR"),
        ] {
            let message = launch(variables).unwrap_err().to_string();
            assert!(message.contains(needle), "{message}");
        }
    }

    #[test]
    fn lists_of_nodes_have_a_first_one() {
        for (list, first) in
            [("a1,a2", "a1"), ("n[1,5-7]", "n1"), ("n[08-10]-ib,m", "n08-ib"), ("one", "one")]
        {
            assert_eq!(first_node(list).as_deref(), Some(first));
        }
        assert_eq!(first_node(""), None);
    }

    #[test]
    fn the_token_is_the_jobs() {
        let token = |job: &str| {
            let variables = [("RANK", "0"), ("WORLD_SIZE", "1"), ("MEDFLAMINGO_TOKEN", job)];
            launch(&variables).unwrap().unwrap().token
        };
        assert_eq!(token("a"), token("a"));
        assert_ne!(token("a"), token("b"));
    }
}
