//! When messages are sent: at once, or at a rate, in bursts of a millisecond.

use std::time::{Duration, Instant};

/// The clock of a timer of tokio.
const TICK: Duration = Duration::from_millis(1);

/// Lets so many messages a second pass.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: Option<f64>,
    began: Instant,
    /// How many may have been sent by now.
    due: u64,
    /// When those now due should be sent.
    at: Instant,
}

impl Pace {
    pub(crate) fn new(rate: Option<f64>) -> Self {
        let began = Instant::now();
        Self { rate, began, due: 0, at: began }
    }

    /// Resolves when the message of that number is due, with the time that counts as its sending: now, or when its burst was due
    /// where the sender is behind, so that waiting isn't left out of what is measured.
    pub(crate) async fn wait(&mut self, number: u64) -> Instant {
        let Some(rate) = self.rate else {
            return Instant::now();
        };
        while number >= self.due {
            let tick = self.at + TICK;
            let now = Instant::now();
            self.at = if now < tick {
                tokio::time::sleep_until(tick.into()).await;
                Instant::now()
            } else {
                tick
            };
            self.due = ((self.at - self.began).as_secs_f64() * rate) as u64;
        }
        self.at
    }
}
