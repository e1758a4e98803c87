//! Rounds: both subjects in turns, so that whatever else the machine does falls on both.

use std::time::Duration;

use anyhow::Result;
use tokio::runtime::Builder;

/// Messages a second, of each round.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) postrider: Vec<f64>,
    pub(crate) best: Vec<f64>,
}

/// Runs both subjects by turns, after a round that doesn't count.
pub(crate) fn rounds<P, B>(
    rounds: u32,
    messages: u64,
    postrider: impl Fn(u64) -> P,
    best: impl Fn(u64) -> B,
) -> Result<Figures>
where
    P: Future<Output = Result<Duration>> + Send + 'static,
    B: Future<Output = Result<Duration>> + Send + 'static,
{
    let mut figures = Figures { postrider: Vec::new(), best: Vec::new() };
    let warm = (messages / 10).max(1);
    rate(warm, postrider(warm))?;
    rate(warm, best(warm))?;
    for round in 1..=rounds {
        // who goes first changes, so that neither always runs on what the other left
        let first = (round % 2 == 0).then(|| rate(messages, best(messages))).transpose()?;
        let ours = rate(messages, postrider(messages))?;
        let theirs = first.map_or_else(|| rate(messages, best(messages)), Ok)?;
        eprintln!("round {round}/{rounds}: postrider {ours:.0}/s, best {theirs:.0}/s");
        figures.postrider.push(ours);
        figures.best.push(theirs);
    }
    Ok(figures)
}

/// On a runtime of its own with the machine's cores.
fn rate(messages: u64, subject: impl Future<Output = Result<Duration>> + Send + 'static) -> Result<f64> {
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    let took = runtime.block_on(async { tokio::spawn(subject).await? })?;
    Ok(messages as f64 / took.as_secs_f64())
}

/// The middle one; of two, the mean.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).is_nan());
    }
}
