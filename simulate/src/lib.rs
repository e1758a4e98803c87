//! Whole services in simulated time: what a seed stands for is run on the embedded broker under tokio's paused clock, all that happens
//! is written down, and the history is held against what is promised. A seed replays to the byte.

mod bug;
mod check;
mod dice;
mod doubles;
mod group;
mod hand;
mod history;
mod places;
mod run;
mod scenario;
mod store;
mod totals;
mod watched;

pub use bug::Bug;
pub use totals::Totals;

use scenario::Scenario;

/// What became of one seed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Run {
    /// The seed.
    pub seed: u64,
    /// What was not as it should be; empty when all is well.
    pub wrong: Vec<String>,
    /// All that happened, a line each, and the scenario before.
    pub trace: String,
    /// What happened, counted.
    pub totals: Totals,
}

/// Runs a seed, with a bug put in where one is asked for.
///
/// # Errors
/// The runtime can't be made.
pub fn simulate(seed: u64, bug: Option<Bug>) -> std::io::Result<Run> {
    play(&Scenario::of(seed), bug)
}

/// Runs a seed without what seeds stood for later: slow groups, bulkheads and breakers.
///
/// # Errors
/// The runtime can't be made.
pub fn simulate_plainly(seed: u64) -> std::io::Result<Run> {
    play(&Scenario::of(seed).plain(), None)
}

fn play(scenario: &Scenario, bug: Option<Bug>) -> std::io::Result<Run> {
    let seed = scenario.seed;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let ran = runtime.block_on(run::run(scenario.clone(), bug));
    // what was left behind ends here, so that it is in the trace
    drop(runtime);
    let head = format!("{scenario:#?}\n");
    Ok(match ran {
        Ok(world) => {
            let (events, trace) = world.take();
            let wrong = check::check(scenario, &events);
            Run { seed, wrong, trace: head + &trace, totals: Totals::of(&events) }
        }
        Err(error) => Run {
            seed,
            wrong: vec![format!("the run ended: {error}")],
            trace: head,
            totals: Totals::default(),
        },
    })
}
