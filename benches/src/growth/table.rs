//! The curves as tables for people: on the terminal, and as Markdown for the book.

use std::fmt::Write as _;

use super::Curve;
use super::figures::{Growth, Spot};

/// As the terminal has it: a line for each point, and one for what the curve comes to.
pub(crate) fn text(growth: &[Growth]) -> String {
    let mut out = format!(
        "{:<11}{:<14}{:>12}{:>12}{:>13}{:>11}\n",
        "curve", "broker", "at", "CPU µs/msg", "messages/s", "peak RSS"
    );
    for curve in growth {
        for point in &curve.points {
            let _ = writeln!(
                out,
                "{:<11}{:<14}{:>12}{:>12.2}{:>13.0}{:>11}",
                curve.curve,
                curve.whose(),
                grouped(point.at),
                point.cpu_us_per_message,
                point.per_second,
                mib(point),
            );
        }
        let _ = writeln!(out, "{:<11}{:<14}  {}", "", "", sum(curve));
    }
    out
}

/// As the page of the book has it: a table for each curve, a line for each of its points.
pub(crate) fn markdown(growth: &[Growth]) -> String {
    let mut out = String::new();
    for kind in Curve::ALL {
        let curves: Vec<_> = growth.iter().filter(|curve| curve.curve == kind.name()).collect();
        if let Some(first) = curves.first() {
            let _ = writeln!(out, "\n| broker | {} | CPU a message | messages/s | peak memory |", first.unit);
            out.push_str("|---|--:|--:|--:|--:|\n");
        }
        for curve in curves {
            for point in &curve.points {
                let _ = writeln!(
                    out,
                    "| {} | {} | {:.2} µs | {} | {} |",
                    curve.whose(),
                    grouped(point.at),
                    point.cpu_us_per_message,
                    grouped(point.per_second as u64),
                    mib(point),
                );
            }
            let _ = writeln!(out, "| | | **{}** | | |", sum(curve));
        }
    }
    out
}

/// What a curve comes to.
fn sum(growth: &Growth) -> String {
    let mark = if growth.holds == Some(false) { ": beyond" } else { "" };
    let slope = growth.slope_us().unwrap_or(f64::NAN);
    match (Curve::find(&growth.curve), growth.bound) {
        (Some(Curve::Workers), Some(bound)) => {
            let mark = if growth.holds == Some(false) { ": below" } else { "" };
            format!("{:.2} times the rate ({bound} at least{mark})", growth.end_to_end)
        }
        (Some(Curve::Headers), _) => format!("{slope:.2} µs a header"),
        (Some(Curve::Backlog), Some(bound)) if growth.broker == "memory" => {
            let bytes = growth.slope_bytes().unwrap_or(f64::NAN);
            format!(
                "{:.2} end to end ({bound} at most{mark}), {bytes:.0} bytes kept a message",
                growth.end_to_end
            )
        }
        (_, Some(bound)) => format!("{:.2} end to end ({bound} at most{mark})", growth.end_to_end),
        (_, None) => format!("{:.2} end to end", growth.end_to_end),
    }
}

/// With a comma between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn mib(point: &Spot) -> String {
    point.peak_rss_bytes.map_or("?".into(), |bytes| format!("{} MiB", bytes >> 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growth(curve: &str, broker: &str, end_to_end: f64, bound: Option<f64>, holds: Option<bool>) -> Growth {
        let at = |at, cpu_us_per_message, mib: u64| Spot {
            at,
            cpu_us_per_message,
            per_second: 123_456.7,
            peak_rss_bytes: Some(mib << 20),
        };
        let unit = "things".to_owned();
        let points = vec![at(0, 4.0, 10), at(10, 4.0 * end_to_end, 20)];
        let subject = "postrider".to_owned();
        Growth { broker: broker.into(), subject, curve: curve.into(), unit, points, end_to_end, bound, holds }
    }

    #[test]
    fn every_point_has_a_line_and_what_is_beyond_its_bound_is_marked() {
        let table = markdown(&[
            growth("keys", "memory", 1.1, Some(1.25), Some(true)),
            growth("keys", "nats", 1.5, Some(1.25), Some(false)),
        ]);
        let expected = "
| broker | things | CPU a message | messages/s | peak memory |
|---|--:|--:|--:|--:|
| memory | 0 | 4.00 µs | 123,456 | 10 MiB |
| memory | 10 | 4.40 µs | 123,456 | 20 MiB |
| | | **1.10 end to end (1.25 at most)** | | |
| nats | 0 | 4.00 µs | 123,456 | 10 MiB |
| nats | 10 | 6.00 µs | 123,456 | 20 MiB |
| | | **1.50 end to end (1.25 at most: beyond)** | | |
";
        assert_eq!(table, expected);
    }

    #[test]
    fn each_curve_is_summed_up_in_its_own_words() {
        let workers = growth("workers", "memory", 1.5, Some(1.6), Some(false));
        assert_eq!(sum(&workers), "1.50 times the rate (1.6 at least: below)");
        assert_eq!(sum(&growth("headers", "kafka", 1.5, None, None)), "0.20 µs a header");
        let backlog = growth("backlog", "memory", 1.0, Some(1.25), Some(true));
        assert_eq!(sum(&backlog), "1.00 end to end (1.25 at most), 1048576 bytes kept a message");
    }

    #[test]
    fn thousands_stand_apart() {
        assert_eq!([grouped(0), grouped(999), grouped(1_000_000)], ["0", "999", "1,000,000"]);
    }
}
