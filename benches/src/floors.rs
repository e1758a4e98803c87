//! What **best** must itself reach in the same run, so that postrider isn't compared with a weak loop.

use crate::case::Kind;
use crate::report::{Report, Row};

/// What a floor is measured from.
type Other = fn(&Row) -> Option<f64>;

/// Says where **best** is weak.
pub(crate) fn weak(report: &Report) -> Vec<String> {
    let floors: [(Kind, &str, f64, Other, &str); 4] = [
        (Kind::Kafka, "consume", 4.0, |row| row.usual, "usual"),
        (Kind::Kafka, "publish", 1.8, |row| row.narrow, "a window of 256"),
        (Kind::Rabbitmq, "consume", 2.0, |row| row.usual, "awaited acknowledgements"),
        (Kind::Nats, "publish", 1.15, |row| row.usual, "usual"),
    ];
    let mut weak = Vec::new();
    for (kind, case, floor, other, name) in floors {
        // larger bodies are bound by bytes, not by the loop
        for row in report.of(kind).filter(|row| row.case == case && row.payload == 256) {
            // those send bodies alone, and so must the loop that is held against them
            let best = row.bare.unwrap_or(row.best);
            if let Some(other) = other(row)
                && best < other * floor
            {
                weak.push(format!(
                    "best is weak: {} {case} at {} B: {:.0}/s are {:.2} times {name}, {floor} are asked for",
                    kind.name(),
                    row.payload,
                    best,
                    best / other
                ));
            }
        }
    }
    weak
}
