//! The backlog's points. The route of a process that is warm already is paused, a backlog is put there, and the route goes on until
//! it is gone; short ones are repeated. Another process fills a real broker, told so by a line each time: it isn't measured.

use std::io::{BufRead as _, Write as _};
use std::ops::Range;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use postrider::Broker;

use super::load::{self, Load};
use super::point::Point;
use crate::case::Kind;
use crate::meter::{Measured, Meter};

/// What is said when the route is paused: now a backlog may be put there.
pub(super) const FILL: &str = "fill";
/// What is answered when it is there.
pub(super) const FILLED: &str = "filled";

/// The messages that the process is warmed by, then a backlog after the other: where each begins and ends.
pub(super) fn backlogs(point: &Point) -> impl Iterator<Item = Range<u64>> {
    let (warm, at) = (point.warm, point.at);
    let rest =
        (0..point.messages.checked_div(at).unwrap_or(0)).map(move |n| warm + n * at..warm + (n + 1) * at);
    std::iter::once(0..warm).chain(rest)
}

/// Measures in this process.
pub(super) async fn run(point: &Point, broker: &Broker, load: &Load) -> Result<Measured> {
    if point.broker == Kind::Memory {
        broker.declare(crate::job::ORDERS).await?;
    }
    let service = load.router(point).start(broker).await?;
    let control = service.control(crate::job::BILLING).context("the route has no handle")?;
    let (mut seconds, mut cpu_seconds, mut peak_rss_bytes) = (0.0, 0.0, None);
    for (number, backlog) in backlogs(point).enumerate() {
        control.pause();
        load.tally.expect(backlog.end);
        let meter = stand(point, broker, backlog).await?;
        let began = Instant::now();
        control.resume();
        load.tally.reached().await;
        let (took, measured) = (began.elapsed(), meter.end(point.at));
        // the first one warms
        if number > 0 {
            seconds += took.as_secs_f64();
            cpu_seconds += measured.cpu_seconds;
            peak_rss_bytes = measured.peak_rss_bytes;
        }
    }
    point.end(broker, service).await?;
    Ok(Measured {
        messages: point.messages,
        doubled: load.tally.doubled(),
        seconds,
        cpu_seconds,
        allocations: None,
        instructions: None,
        peak_rss_bytes,
        latency_us: None,
    })
}

/// Has a backlog put there, and measures from when reading it could begin: a client may fetch while its route is paused. On the
/// embedded broker this process publishes, which is no part of it.
async fn stand(point: &Point, broker: &Broker, backlog: Range<u64>) -> Result<Meter> {
    let meter = Meter::new(None);
    if point.broker == Kind::Memory {
        load::send(point, broker, backlog).await?;
        meter.begin();
    } else {
        meter.begin();
        tokio::task::spawn_blocking(ask).await??;
    }
    Ok(meter)
}

/// Has the backlog put there.
fn ask() -> Result<()> {
    println!("{FILL}");
    std::io::stdout().flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    ensure!(line.trim_end() == FILLED, "`{FILLED}` was to come, `{}` came", line.trim_end());
    Ok(())
}
