//! `once WORKLOAD TIMES [small]`: runs one workload some times and ends. For what counts instructions, and
//! for a comparison with a program of others: prints the median time in ms, and the most memory that the
//! process took in MiB, as a line of JSON.

#![allow(clippy::print_stdout)] // what it is for

use std::error::Error;
use std::time::Instant;

use serde_json::json;

use workloads::{Size, WORKLOADS};

mod workloads;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<_> = std::env::args().filter(|word| word != "--bench").collect();
    let (name, times, size) = match &words[1..] {
        [name, times] => (name, times, Size::Whole),
        [name, times, size] if size == "small" => (name, times, Size::Small),
        _ => return Err("usage: once WORKLOAD TIMES [small]".into()),
    };
    let ms = median_ms(name, times.parse()?, size)?;
    println!("{}", json!({ "bench": name, "peer": "ours", "ms": ms, "mib": peak_memory_mib()? }));
    Ok(())
}

/// Of some runs, behind one that is not counted.
fn median_ms(name: &str, times: usize, size: Size) -> Result<f64, Box<dyn Error>> {
    let known = WORKLOADS.iter().find(|(known, _)| *known == name);
    let (_, make) = known.ok_or_else(|| {
        let names: Vec<_> = WORKLOADS.iter().map(|(name, _)| *name).collect();
        format!("got {name}, expected one of {}", names.join(", "))
    })?;
    let mut work = make(size)?;
    let mut times: Vec<_> = (0..=times)
        .map(|_| {
            let begun = Instant::now();
            work().map(|_| begun.elapsed().as_secs_f64() * 1e3)
        })
        .skip(1)
        .collect::<Result<_, _>>()?;
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().ok_or_else(|| "expected one run at least".into())
}

fn peak_memory_mib() -> Result<f64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: f64 = line.ok_or("no VmHWM")?.trim().trim_end_matches(" kB").parse()?;
    Ok((kib / 1024.0).round())
}
