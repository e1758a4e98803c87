//! `cargo xtask simulate`: many seeds, or one, and where the trace of a failed one lies.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use postrider_simulation::{Run, Totals, simulate};

/// A seed that takes longer in real time hangs: something goes round without simulated time passing.
const PATIENCE: Duration = Duration::from_mins(1);
/// After so many seeds one is run twice, to see that it repeats itself.
const TWICE: u64 = 20;

/// Whole services in simulated time, each following from its seed
#[derive(Parser)]
#[command(name = "cargo xtask simulate", bin_name = "cargo xtask simulate")]
struct Options {
    /// How many seeds
    #[arg(long, value_name = "N", default_value_t = 1_000, conflicts_with = "seed")]
    seeds: u64,
    /// The first of them
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "seed")]
    from: u64,
    /// This one alone; its trace is written down
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Where traces are written
    #[arg(long, value_name = "DIR", default_value = "target/simulate")]
    traces: PathBuf,
    /// How many run at the same time; as many as there are cores unless set
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let (from, count) = options.seed.map_or((options.from, options.seeds), |seed| (seed, 1));
    let began = Instant::now();
    let (mut totals, mut failed, mut done) = (Totals::default(), BTreeMap::new(), 0);
    let next = AtomicU64::new(0);
    let jobs = options
        .jobs
        .map_or_else(|| std::thread::available_parallelism().map_or(1, NonZeroUsize::get), NonZeroUsize::get);
    let running: Mutex<BTreeMap<u64, Instant>> = Mutex::default();
    std::thread::scope(|scope| -> Result<()> {
        let (tell, told) = mpsc::channel();
        for _ in 0..jobs {
            let (tell, next, running) = (tell.clone(), &next, &running);
            scope.spawn(move || {
                loop {
                    let number = next.fetch_add(1, Relaxed);
                    if number >= count {
                        return;
                    }
                    let seed = from + number;
                    running.lock().unwrap_or_else(PoisonError::into_inner).insert(seed, Instant::now());
                    let run = one(seed, number % TWICE == 0);
                    running.lock().unwrap_or_else(PoisonError::into_inner).remove(&seed);
                    if tell.send(run).is_err() {
                        // whoever listens has gone after a failure of its own
                        return;
                    }
                }
            });
        }
        drop(tell);
        loop {
            let run = match told.recv_timeout(Duration::from_secs(1)) {
                Ok(run) => run,
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let running = running.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some((seed, _)) = running.iter().find(|(_, since)| since.elapsed() > PATIENCE) {
                        println!("seed {seed} FAILED: it hangs, and no simulated time passes");
                        println!("  again: cargo xtask simulate --seed {seed}");
                        // its thread can't be ended
                        std::process::exit(1);
                    }
                    continue;
                }
            };
            let run = run.context("a run could not be made")?;
            done += 1;
            totals += &run.totals;
            if !run.wrong.is_empty() {
                println!("seed {} FAILED: {}", run.seed, run.wrong[0]);
            }
            if !run.wrong.is_empty() || options.seed.is_some() {
                let trace = options.traces.join(format!("seed-{}.txt", run.seed));
                std::fs::create_dir_all(&options.traces)
                    .and_then(|()| {
                        std::fs::write(&trace, format!("{}\n{}\n", run.trace, run.wrong.join("\n")))
                    })
                    .with_context(|| format!("{} could not be written", trace.display()))?;
                println!("  trace: {}", trace.display());
            }
            if !run.wrong.is_empty() {
                println!("  again: cargo xtask simulate --seed {}", run.seed);
                failed.insert(run.seed, run.wrong);
            }
            if done % 100 == 0 && done < count {
                println!(
                    "{done} of {count} seeds, {} failed, {:.1} s",
                    failed.len(),
                    began.elapsed().as_secs_f64()
                );
            }
        }
        Ok(())
    })?;
    println!("{totals}");
    println!("{done} seeds, {} failed, {:.1} s", failed.len(), began.elapsed().as_secs_f64());
    for (seed, wrong) in &failed {
        println!("seed {seed}:");
        wrong.iter().take(5).for_each(|what| println!("  {what}"));
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a seed; `twice`, and its two traces must be the same.
fn one(seed: u64, twice: bool) -> std::io::Result<Run> {
    let mut run = simulate(seed, None)?;
    if twice {
        let again = simulate(seed, None)?;
        if again.trace != run.trace {
            let lines = run.trace.lines().zip(again.trace.lines()).enumerate();
            let differs = lines.into_iter().find(|(_, (a, b))| a != b);
            let (line, (first, second)) = differs.unwrap_or((0, ("", "one trace is longer")));
            run.wrong
                .push(format!("the seed doesn't repeat itself; line {line}: `{first}`, then `{second}`"));
        }
    }
    Ok(run)
}
