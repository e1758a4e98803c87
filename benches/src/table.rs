//! The figures as tables for people: on the terminal, and as Markdown for the book.

use std::fmt::Write as _;

use crate::growth;
use crate::report::Report;

/// As the page of the book has it.
pub(crate) fn markdown(report: &Report) -> String {
    let mut out = String::new();
    let machine = &report.machine;
    let _ = writeln!(
        out,
        "{} cores ({}), {}, {}; rounds: {}{}.\n",
        machine.cores,
        machine.processor.as_deref().unwrap_or("unknown"),
        mib(machine.memory_bytes),
        machine.system.as_deref().unwrap_or("unknown"),
        report.rounds,
        if report.seconds > 0.0 { format!(", each of at least {} s", report.seconds) } else { String::new() }
    );
    let _ = writeln!(out, "Versions: {}.", report.versions.join(", "));
    if !report.results.is_empty() {
        results(&mut out, report);
    }
    if !report.latency.is_empty() {
        latency(&mut out, report);
    }
    out.push_str(&growth::table::markdown(&report.growth));
    if !report.instructions.is_empty() {
        instructions(&mut out, report);
    }
    out
}

fn results(out: &mut String, report: &Report) {
    out.push_str(
        "\n| broker | case | bytes | postrider/s | usual/s | best/s | to best | least … most | target | to usual | to bare | CPU to best | allocations (best) | peak memory (best) |\n",
    );
    out.push_str("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    for row in &report.results {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {:.0} | {} | {:.0} | {:.2} | {:.2} … {:.2} | {:.2} | {} | {} | {:.2} | {} ({}) | {} ({}) |",
            row.broker,
            row.case,
            row.payload,
            row.postrider,
            row.usual.map_or("–".into(), |usual| format!("{usual:.0}")),
            row.best,
            row.ratio,
            row.ratio_min,
            row.ratio_max,
            row.target,
            row.ratio_usual.map_or("–".into(), |ratio| format!("{ratio:.2}")),
            row.ratio_bare.map_or("–".into(), |ratio| format!("{ratio:.2}")),
            row.cpu_ratio,
            few(row.allocs_per_message),
            few(row.best_allocs_per_message),
            mib(row.peak_rss_bytes),
            mib(row.best_peak_rss_bytes),
        );
    }
}

fn instructions(out: &mut String, report: &Report) {
    out.push_str(
        "\n| broker | case | bytes | postrider | best | ratio | at most |\n|---|---|--:|--:|--:|--:|--:|\n",
    );
    for row in &report.instructions {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {:.0} | {:.0} | {:.2} | {} |",
            row.broker,
            row.case,
            row.payload,
            row.postrider,
            row.best,
            row.ratio,
            row.most.map_or("–".into(), |most| {
                format!("{most:.2}{}", if row.ratio > most { ": beyond" } else { "" })
            }),
        );
    }
}

fn latency(out: &mut String, report: &Report) {
    out.push_str(
        "\n| broker | bytes | messages/s | p50 | p99 | p99.9 | added p50 | added p99 (allowed) | added p99.9 |\n",
    );
    out.push_str("|---|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    for row in &report.latency {
        let _ = writeln!(
            out,
            "| {} | {} | {:.0} | {:.0} µs | {:.0} µs | {:.0} µs | {:+.0} µs | {:+.0} µs ({:.0} µs) | {:+.0} µs |",
            row.broker,
            row.payload,
            row.rate,
            row.p50_us,
            row.p99_us,
            row.p999_us,
            row.added_p50_us,
            row.added_p99_us,
            row.allowed_p99_us,
            row.added_p999_us,
        );
    }
}

/// As the terminal has it.
pub(crate) fn text(report: &Report) -> String {
    let mut out = format!(
        "{:<9}{:<14}{:>6}{:>12}{:>11}{:>12}{:>7}  {:<12}{:>7}{:>9}{:>8}{:>7}{:>13}{:>10}\n",
        "broker",
        "case",
        "bytes",
        "postrider/s",
        "usual/s",
        "best/s",
        "ratio",
        "spread",
        "target",
        "to usual",
        "to bare",
        "CPU",
        "allocs",
        "peak RSS"
    );
    for row in &report.results {
        let _ = writeln!(
            out,
            "{:<9}{:<14}{:>6}{:>12.0}{:>11}{:>12.0}{:>7.2}  {:<12}{:>7.2}{:>9}{:>8}{:>7.2}{:>13}{:>10}{}",
            row.broker,
            row.case,
            row.payload,
            row.postrider,
            row.usual.map_or("-".into(), |usual| format!("{usual:.0}")),
            row.best,
            row.ratio,
            format!("{:.2}-{:.2}", row.ratio_min, row.ratio_max),
            row.target,
            row.ratio_usual.map_or("-".into(), |ratio| format!("{ratio:.2}")),
            row.ratio_bare.map_or("-".into(), |ratio| format!("{ratio:.2}")),
            row.cpu_ratio,
            format!("{} / {}", few(row.allocs_per_message), few(row.best_allocs_per_message)),
            mib(row.peak_rss_bytes),
            if row.ratio < row.target { "  below" } else { "" },
        );
    }
    for row in &report.latency {
        let _ = writeln!(
            out,
            "{:<9}{:<14}{:>6} at {:.0}/s: p50 {:.0} µs ({:+.0}), p99 {:.0} µs ({:+.0}, {:.0} allowed), p99.9 {:.0} µs ({:+.0})",
            row.broker,
            row.case,
            row.payload,
            row.rate,
            row.p50_us,
            row.added_p50_us,
            row.p99_us,
            row.added_p99_us,
            row.allowed_p99_us,
            row.p999_us,
            row.added_p999_us
        );
    }
    out
}

/// Instructions, as the terminal has them.
pub(crate) fn counted(report: &Report) -> String {
    let mut out = format!(
        "{:<9}{:<14}{:>6}{:>12}{:>12}{:>7}{:>9}\n",
        "broker", "case", "bytes", "postrider", "best", "ratio", "at most"
    );
    for row in &report.instructions {
        let _ = writeln!(
            out,
            "{:<9}{:<14}{:>6}{:>12.0}{:>12.0}{:>7.2}{:>9}{}",
            row.broker,
            row.case,
            row.payload,
            row.postrider,
            row.best,
            row.ratio,
            row.most.map_or("-".into(), |most| format!("{most:.2}")),
            if row.most.is_some_and(|most| row.ratio > most) { "  beyond" } else { "" },
        );
    }
    out
}

fn few(allocations: Option<f64>) -> String {
    allocations.map_or("?".into(), |n| format!("{n:.1}"))
}

fn mib(bytes: Option<u64>) -> String {
    bytes.map_or("?".into(), |bytes| format!("{} MiB", bytes >> 20))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Counted;
    use crate::rounds::Extent;

    #[test]
    fn what_is_beyond_is_marked_where_something_is_asked_for() {
        let mut report = Report::new(Extent { rounds: 1, seconds: 0.0, counts: false });
        let row = |broker: &str, ratio: f64, most| Counted {
            broker: broker.into(),
            case: "publish".into(),
            payload: 256,
            postrider: 1000.0 * ratio,
            best: 1000.0,
            ratio,
            most,
        };
        report.instructions =
            vec![row("memory", 1.5, None), row("nats", 1.15, Some(1.15)), row("kafka", 1.16, Some(1.15))];
        let mut table = String::new();
        instructions(&mut table, &report);
        let expected = "
| broker | case | bytes | postrider | best | ratio | at most |
|---|---|--:|--:|--:|--:|--:|
| memory | publish | 256 | 1500 | 1000 | 1.50 | – |
| nats | publish | 256 | 1150 | 1000 | 1.15 | 1.15 |
| kafka | publish | 256 | 1160 | 1000 | 1.16 | 1.15: beyond |
";
        assert_eq!(table, expected);
        let told = counted(&report);
        let beyond: Vec<_> = told.lines().filter(|line| line.ends_with("beyond")).collect();
        assert!(matches!(beyond[..], [line] if line.starts_with("kafka")), "{told}");
    }
}
