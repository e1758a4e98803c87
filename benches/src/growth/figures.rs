//! What a growth was found to be, as programs read it.

use serde::{Deserialize, Serialize};

use crate::case::Subject;

/// One curve on one broker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Growth {
    pub(crate) broker: String,
    /// `postrider`, or `best`: a loop without a library that does the same, held to nothing.
    #[serde(default = "postrider")]
    pub(crate) subject: String,
    pub(crate) curve: String,
    /// What `at` counts.
    pub(crate) unit: String,
    /// From the least to the most.
    pub(crate) points: Vec<Spot>,
    /// The last point's processor time a message to the first's; of workers, the last one's rate to the first's.
    pub(crate) end_to_end: f64,
    /// What that may be at most; of workers, at least. Null where it is held to nothing.
    pub(crate) bound: Option<f64>,
    pub(crate) holds: Option<bool>,
}

/// One point: the medians of its rounds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Spot {
    pub(crate) at: u64,
    /// Of the process, all its threads.
    pub(crate) cpu_us_per_message: f64,
    /// Messages a second.
    pub(crate) per_second: f64,
    /// The most of all rounds.
    pub(crate) peak_rss_bytes: Option<u64>,
}

/// For files that were written before there was another.
fn postrider() -> String {
    Subject::Postrider.name().to_owned()
}

impl Growth {
    /// Whose it is, as tables and pictures say it.
    pub(crate) fn whose(&self) -> String {
        if self.subject == Subject::Postrider.name() {
            self.broker.clone()
        } else {
            format!("{}, {}", self.broker, self.subject)
        }
    }

    /// Its first and last point.
    pub(crate) fn ends(&self) -> Option<(&Spot, &Spot)> {
        self.points.first().zip(self.points.last())
    }

    /// What one more of what grows costs, in microseconds of processor time a message.
    pub(crate) fn slope_us(&self) -> Option<f64> {
        let (first, last) = self.ends()?;
        let more = last.at.checked_sub(first.at).filter(|more| *more > 0)?;
        Some((last.cpu_us_per_message - first.cpu_us_per_message) / more as f64)
    }

    /// By how many bytes the process grows for one more of what grows.
    pub(crate) fn slope_bytes(&self) -> Option<f64> {
        let (first, last) = self.ends()?;
        let more = last.at.checked_sub(first.at).filter(|more| *more > 0)?;
        Some((last.peak_rss_bytes? as f64 - first.peak_rss_bytes? as f64) / more as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_subjects_is_postriders() {
        let file = r#"{"broker":"nats","curve":"keys","unit":"keys","points":[],"end_to_end":1.0,"bound":null,"holds":null}"#;
        let growth: Growth = serde_json::from_str(file).unwrap();
        assert_eq!((growth.subject.as_str(), growth.whose().as_str()), ("postrider", "nats"));
    }
}
