//! The storm of rebalances: each second one of a few members leaves, by turns in good order and by SIGKILL, or comes back as a new
//! process, while messages flow.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::process::Child;

use super::driver::{Driver, consumer};
use crate::history::{Step, Target, now};

/// How many members there are; each comes back after it has left.
const MEMBERS: u32 = 5;
/// The time between one that leaves and one that comes.
const PACE: Duration = Duration::from_secs(1);
/// The longest time without any effect. A group that rebalances needs a few seconds; the rest is for
/// a machine that stands still.
const STANDSTILL: Duration = Duration::from_secs(30);
/// What each member handles at least, of all messages.
const SHARE: f64 = 0.01;
/// How long a member that leaves in good order may take.
const LEAVING: Duration = Duration::from_mins(1);

impl Driver {
    /// Runs the storm until all is handled. Answers what was wrong with its course.
    pub(super) async fn storm(&mut self) -> Result<Vec<String>> {
        // the member of each process, since a member that comes back is another process
        let mut member_of: BTreeMap<u32, u32> = BTreeMap::new();
        for member in 0..MEMBERS {
            self.start_and_wait().await?;
            let number = *self.consumers.keys().next_back().context("it was started")?;
            member_of.insert(number, member);
        }
        self.publish().await?;
        let began = now();
        let mut leaving: Vec<(u32, Child, Instant)> = Vec::new();
        let all = self.run.size.messages as usize;
        let mut last = (0, Instant::now());
        for turn in 0.. {
            // members that come are news as well, so this isn't seen elsewhere
            if self.counts.done.len() > last.0 {
                last = (self.counts.done.len(), Instant::now());
            } else if last.1.elapsed() > LEAVING {
                bail!("nothing was handled for {} s: {} of {all}", LEAVING.as_secs(), last.0);
            }
            if self.counts.confirmed.len() == all && self.counts.done.is_superset(&self.counts.confirmed) {
                break;
            }
            let leaver = turn % MEMBERS;
            let running =
                self.consumers.keys().find(|number| member_of.get(number) == Some(&leaver)).copied();
            let number = running.context("every member runs")?;
            let mut child = self.consumers.remove(&number).context("it is one that runs")?;
            // by turns, and each member both ways since their number is odd
            if turn % 2 == 0 {
                drop(child.stdin.take());
                leaving.push((number, child, Instant::now()));
            } else {
                let target = Target::Consumer(number);
                self.begin(target)?;
                child.kill().await?;
                self.history.write(Step::Dead { target })?;
                self.history.write(Step::Back { target })?;
            }
            self.pass(PACE).await?;
            let new = self.start_consumer()?;
            member_of.insert(new, leaver);
            self.pass(PACE).await?;
            left(&mut leaving)?;
        }
        let until = Instant::now() + LEAVING;
        while !leaving.is_empty() && Instant::now() < until {
            left(&mut leaving)?;
            self.pass(Duration::from_millis(100)).await?;
        }
        self.end().await?;
        Ok(self.complaints(&member_of, began))
    }

    /// Whether some member had too little to do, and whether the work stood still.
    fn complaints(&self, member_of: &BTreeMap<u32, u32>, began: u64) -> Vec<String> {
        let (mut complaints, mut effects) = (Vec::new(), vec![began]);
        let mut handled: BTreeMap<u32, usize> = (0..MEMBERS).map(|member| (member, 0)).collect();
        for (number, member) in member_of {
            let entries = self.histories.get(&consumer(*number)).map_or(&[][..], Vec::as_slice);
            let of_it = entries.iter().filter(|entry| matches!(entry.step, Step::Effect { .. }));
            let before = effects.len();
            effects.extend(of_it.map(|entry| entry.at));
            *handled.entry(*member).or_default() += effects.len() - before;
        }
        effects.sort_unstable();
        let longest = effects.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
        let longest = Duration::from_nanos(longest);
        eprintln!(
            "storm: {} processes, handled by each of {MEMBERS} members: {:?}, longest standstill {longest:.1?}",
            member_of.len(),
            handled.values().collect::<Vec<_>>()
        );
        if longest > STANDSTILL {
            complaints.push(format!("nothing was handled for {longest:.1?}"));
        }
        for (member, count) in handled {
            if (count as f64) < f64::from(self.run.size.messages) * SHARE {
                complaints.push(format!("member {member} handled {count} messages, less than 1 %"));
            }
        }
        complaints
    }
}

/// Looks after those that leave in good order.
fn left(leaving: &mut Vec<(u32, Child, Instant)>) -> Result<()> {
    let mut failed = None;
    leaving.retain_mut(|(number, child, since)| match child.try_wait() {
        Ok(Some(status)) if status.success() => false,
        Ok(None) if since.elapsed() < LEAVING => true,
        other => {
            failed = Some(format!("{} doesn't leave in good order: {other:?}", consumer(*number)));
            false
        }
    });
    match failed {
        Some(failed) => bail!(failed),
        None => Ok(()),
    }
}
