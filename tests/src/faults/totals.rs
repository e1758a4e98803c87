//! What a run comes to: figures as JSON for programs and as a table for people.

use std::fmt::{self, Write as _};

use serde::Serialize;

use crate::checker::{Bounds, Verdict};
use crate::history::Target;

/// The figures of a case, or of all cases of a run together.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Totals {
    /// The broker.
    pub broker: String,
    /// The seed of the schedule.
    pub seed: u64,
    /// The case; `None` for the sum of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub case: Option<String>,
    /// Messages that the broker confirmed.
    pub confirmed: usize,
    /// Messages with an effect.
    pub handled: usize,
    /// Messages among the dead letters.
    pub dead_lettered: usize,
    /// Confirmed, and neither handled nor dead-lettered.
    pub lost: usize,
    /// Handled without having been sent.
    pub phantom: usize,
    /// Handled out of the order of their key.
    pub inverted: usize,
    /// Handled by a member that was cut off, within the claim time-out.
    pub overlap: usize,
    /// In effects or dead letters more than once.
    pub doubled: usize,
    /// Of those, the ones that no kill explains.
    pub doubled_unexplained: usize,
    /// Kills of the broker that count.
    pub broker_kills: usize,
    /// Kills of consumers that count.
    pub consumer_kills: usize,
    /// From when a killed broker was ready again to the first confirm, in milliseconds: the median of all its kills.
    pub first_confirm_median_ms: Option<f64>,
    /// The longest of them.
    pub first_confirm_max_ms: Option<f64>,
    /// All kills, pauses and cuts.
    pub kills: Vec<KillLine>,
    /// The figures of each case.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cases: Vec<Totals>,
    /// Whether every promise was kept and as much was killed as planned.
    pub ok: bool,
}

/// A kill.
#[derive(Clone, Debug, Serialize)]
pub struct KillLine {
    /// Seconds after the run's first step.
    pub at: f64,
    /// What was killed.
    pub what: String,
    /// Messages sent and not handled then.
    pub in_flight: u64,
    /// Messages confirmed before.
    pub confirmed_before: u64,
    /// Messages confirmed after.
    pub confirmed_after: u64,
    /// Effects after.
    pub handled_after: u64,
    /// From when it was there again to the first confirm, in milliseconds.
    pub first_confirm_ms: Option<f64>,
}

impl Totals {
    /// The figures of one case. `planned` is how many kills of the broker and of consumers there were to be.
    pub fn of(verdict: &Verdict, bounds: &Bounds, planned: (usize, usize), began: u64) -> Self {
        let kills = verdict.kills.iter().map(|kill| KillLine {
            at: kill.at.saturating_sub(began) as f64 / 1e9,
            what: match kill.target {
                Target::Broker => "broker".into(),
                Target::Consumer(number) => format!("consumer-{number}"),
                Target::Pause => "pause".into(),
                Target::Cut => "cut".into(),
                Target::Letters => "dead letters".into(),
            },
            first_confirm_ms: kill.confirmed_at.map(|at| (at - kill.back) as f64 / 1e6),
            in_flight: kill.in_flight,
            confirmed_before: kill.confirmed_before,
            confirmed_after: kill.confirmed_after,
            handled_after: kill.handled_after,
        });
        let counted = verdict.counted(bounds);
        Self {
            confirmed: verdict.confirmed.len(),
            handled: verdict.handled.len(),
            dead_lettered: verdict.dead_lettered.len(),
            lost: verdict.lost.len(),
            phantom: verdict.phantom.len(),
            inverted: verdict.inverted.len(),
            overlap: verdict.overlap.len(),
            doubled: verdict.doubled.len(),
            doubled_unexplained: verdict.doubled_unexplained.len(),
            broker_kills: counted.0,
            consumer_kills: counted.1,
            kills: kills.collect(),
            ok: verdict.is_clean() && counted.0 >= planned.0 && counted.1 >= planned.1,
            ..Self::default()
        }
        .with_first_confirms()
    }

    /// Works out how soon confirms came after the broker was back.
    fn with_first_confirms(mut self) -> Self {
        let of_broker = self.kills.iter().filter(|kill| kill.what == "broker");
        let mut times: Vec<f64> = of_broker.filter_map(|kill| kill.first_confirm_ms).collect();
        times.sort_by(f64::total_cmp);
        self.first_confirm_median_ms = times.get(times.len() / 2).copied();
        self.first_confirm_max_ms = times.last().copied();
        self
    }

    /// All cases together.
    pub fn sum(broker: &str, seed: u64, cases: Vec<Self>) -> Self {
        let mut sum = Self { broker: broker.into(), seed, ok: true, ..Self::default() };
        for case in &cases {
            sum.confirmed += case.confirmed;
            sum.handled += case.handled;
            sum.dead_lettered += case.dead_lettered;
            sum.lost += case.lost;
            sum.phantom += case.phantom;
            sum.inverted += case.inverted;
            sum.overlap += case.overlap;
            sum.doubled += case.doubled;
            sum.doubled_unexplained += case.doubled_unexplained;
            sum.broker_kills += case.broker_kills;
            sum.consumer_kills += case.consumer_kills;
            sum.kills.extend(case.kills.iter().cloned());
            sum.ok &= case.ok;
        }
        Self { cases, ..sum.with_first_confirms() }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        writeln!(
            text,
            "{:<10}{:>8}  {:>9}{:>16}{:>15}",
            "killed", "at", "in flight", "confirmed after", "handled after"
        )?;
        for kill in &self.kills {
            let KillLine { at, what, in_flight, confirmed_after, handled_after, .. } = kill;
            writeln!(text, "{what:<10}{at:>6.1} s  {in_flight:>9}{confirmed_after:>16}{handled_after:>15}")?;
        }
        writeln!(text)?;
        let rows = [
            ("confirmed", self.confirmed),
            ("handled", self.handled),
            ("dead-lettered", self.dead_lettered),
            ("lost", self.lost),
            ("phantom", self.phantom),
            ("inverted", self.inverted),
            ("overlap", self.overlap),
            ("doubled", self.doubled),
            ("doubled, unexplained", self.doubled_unexplained),
            ("kills of the broker", self.broker_kills),
            ("kills of consumers", self.consumer_kills),
        ];
        for (name, figure) in rows {
            writeln!(text, "{name:<22}{figure:>8}")?;
        }
        if let (Some(median), Some(max)) = (self.first_confirm_median_ms, self.first_confirm_max_ms) {
            writeln!(
                text,
                "first confirm after the broker was ready again: {median:.0} ms in the median, {max:.0} ms at most"
            )?;
        }
        f.write_str(&text)
    }
}
