//! The curves as pictures for the book: one SVG for each, a line for each broker, and for the best loop where it is measured beside. They stand on a ground of their own, so that they
//! can be read whatever is around them, and are dark where the reader's system is.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::Curve;
use super::figures::{Growth, Spot};
use crate::case::{Kind, Subject};

/// Of the whole picture.
const SIZE: (f64, f64) = (720.0, 400.0);
/// Of the plane of the curves: left, top, right, bottom.
const PLANE: (f64, f64, f64, f64) = (70.0, 56.0, 600.0, 340.0);
/// How many lines the height is divided by, about.
const STEPS: f64 = 5.0;

const STYLE: &str = "<style>
text { font: 13px sans-serif; fill: #333 } .title { font-size: 16px; font-weight: bold } .tick { font-size: 12px; fill: #555 }
.ground { fill: #fff } .grid { stroke: #ddd } .axis { stroke: #555 }
.curve { fill: none; stroke-width: 2.5 } .bound { stroke-width: 1.5; stroke-dasharray: 6 5; opacity: 0.7 }
.memory { color: #1b62b3 } .nats { color: #1d7d46 } .kafka { color: #7a3fb0 } .rabbitmq { color: #b84a00 } .best { color: #777 }
.line { stroke: currentColor } .dot, .name { fill: currentColor }
@media (prefers-color-scheme: dark) {
text { fill: #ddd } .tick { fill: #aaa } .ground { fill: #1c1f24 } .grid { stroke: #3a3f47 } .axis { stroke: #aaa }
.memory { color: #6fb1ff } .nats { color: #63d193 } .kafka { color: #c79bf2 } .rabbitmq { color: #ff9d5c } .best { color: #999 }
}
</style>
";

/// Writes a picture of each curve that there is into the folder.
pub(crate) fn write(growth: &[Growth], folder: &Path) -> Result<()> {
    ensure!(
        !growth.is_empty(),
        "there is no growth in these figures: they are of a bench without `--growth`"
    );
    fs::create_dir_all(folder).with_context(|| format!("{} can't be made", folder.display()))?;
    for curve in Curve::ALL {
        let of: Vec<_> = growth.iter().filter(|growth| growth.curve == curve.name()).collect();
        if !of.is_empty() {
            let file = folder.join(curve.name()).with_extension("svg");
            fs::write(&file, svg(curve, &of))
                .with_context(|| format!("{} can't be written", file.display()))?;
            println!("{}", file.display());
        }
    }
    Ok(())
}

/// Where things are in the plane.
struct Scale {
    logarithmic: bool,
    x: (f64, f64),
    top: f64,
}

impl Scale {
    fn of(curve: Curve, growth: &[&Growth]) -> Self {
        // headers begin with none, and of two points no axis is to be seen
        let logarithmic = !matches!(curve, Curve::Headers | Curve::Workers);
        let points = || growth.iter().flat_map(|growth| &growth.points);
        let at = |point: &Spot| along(logarithmic, point.at);
        let x = (
            points().map(at).fold(f64::INFINITY, f64::min),
            points().map(at).fold(f64::NEG_INFINITY, f64::max),
        );
        let bounds = growth.iter().filter_map(|growth| bound(curve, growth));
        let highest = points().map(|point| figure(curve, point)).chain(bounds).fold(0.0, f64::max);
        Self { logarithmic, x, top: (highest * 1.05).max(f64::MIN_POSITIVE) }
    }

    fn x(&self, at: u64) -> f64 {
        let (left, right) = (PLANE.0 + 20.0, PLANE.2 - 20.0);
        let wide = (self.x.1 - self.x.0).max(f64::MIN_POSITIVE);
        left + (along(self.logarithmic, at) - self.x.0) / wide * (right - left)
    }

    fn y(&self, figure: f64) -> f64 {
        PLANE.3 - figure / self.top * (PLANE.3 - PLANE.1)
    }
}

fn along(logarithmic: bool, at: u64) -> f64 {
    if logarithmic { (at.max(1) as f64).log10() } else { at as f64 }
}

/// What is drawn: cost, or of workers the rate in thousands.
fn figure(curve: Curve, point: &Spot) -> f64 {
    if curve == Curve::Workers { point.per_second / 1e3 } else { point.cpu_us_per_message }
}

/// Where a curve's last point is to stay below, or get above.
fn bound(curve: Curve, growth: &Growth) -> Option<f64> {
    Some(growth.bound? * figure(curve, growth.points.first()?))
}

fn svg(curve: Curve, growth: &[&Growth]) -> String {
    let scale = Scale::of(curve, growth);
    let mut out = String::new();
    let (width, height) = SIZE;
    let _ = writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">"#
    );
    let title = title(curve);
    let _ = writeln!(out, "<title>{title}</title>");
    out.push_str(STYLE);
    let _ = writeln!(out, r#"<rect class="ground" width="{width}" height="{height}" rx="6"/>"#);
    let _ = writeln!(out, r#"<text class="title" x="{}" y="30">{title}</text>"#, PLANE.0);
    axes(&mut out, curve, growth, &scale);
    let mut names = Vec::new();
    for growth in growth {
        line(&mut out, curve, growth, &scale);
        if let Some(last) = growth.points.last() {
            names.push((scale.y(figure(curve, last)), class(growth)));
        }
    }
    label(&mut out, names);
    out.push_str("</svg>\n");
    out
}

fn title(curve: Curve) -> &'static str {
    match curve {
        Curve::Keys => "Processor time a message, as keys grow",
        Curve::Routes => "Processor time a message, as routes grow",
        Curve::InFlight => "Processor time a message, as more are in flight",
        Curve::Headers => "Processor time a message, as its headers grow",
        Curve::Backlog => "Processor time a message, as the backlog grows",
        Curve::Workers => "Messages a second, with one worker and with two",
    }
}

fn axes(out: &mut String, curve: Curve, growth: &[&Growth], scale: &Scale) {
    let (left, top, right, bottom) = PLANE;
    let step = step(scale.top);
    let mut at = 0.0;
    while at <= scale.top {
        let y = scale.y(at);
        let class = if at == 0.0 { "axis" } else { "grid" };
        let _ = writeln!(out, r#"<line class="{class}" x1="{left}" y1="{y:.1}" x2="{right}" y2="{y:.1}"/>"#);
        let _ = writeln!(
            out,
            r#"<text class="tick" x="{}" y="{:.1}" text-anchor="end">{}</text>"#,
            left - 8.0,
            y + 4.0,
            (at * 100.0).round() / 100.0
        );
        at += step;
    }
    let _ = writeln!(out, r#"<line class="axis" x1="{left}" y1="{top}" x2="{left}" y2="{bottom}"/>"#);
    let mut ats: Vec<_> = growth.iter().flat_map(|growth| &growth.points).map(|point| point.at).collect();
    ats.sort_unstable();
    ats.dedup();
    for at in ats {
        let x = scale.x(at);
        let _ = writeln!(
            out,
            r#"<line class="axis" x1="{x:.1}" y1="{bottom}" x2="{x:.1}" y2="{}"/>"#,
            bottom + 5.0
        );
        let _ = writeln!(
            out,
            r#"<text class="tick" x="{x:.1}" y="{}" text-anchor="middle">{}</text>"#,
            bottom + 20.0,
            short(at)
        );
    }
    let vertical = if curve == Curve::Workers { "thousands a second" } else { "µs of processor time" };
    let (middle, across) = (f64::midpoint(top, bottom), f64::midpoint(left, right));
    let _ = writeln!(
        out,
        r#"<text x="22" y="{middle}" text-anchor="middle" transform="rotate(-90 22 {middle})">{vertical}</text>"#
    );
    let _ = writeln!(
        out,
        r#"<text x="{across}" y="{}" text-anchor="middle">{}</text>"#,
        bottom + 44.0,
        curve.unit()
    );
}

/// One curve's points, the line through them, and its bound.
fn line(out: &mut String, curve: Curve, growth: &Growth, scale: &Scale) {
    let _ = writeln!(out, r#"<g class="{}">"#, class(growth));
    if let Some(bound) = bound(curve, growth) {
        let y = scale.y(bound);
        let (left, right) = (PLANE.0, PLANE.2);
        let _ =
            writeln!(out, r#"<line class="bound line" x1="{left}" y1="{y:.1}" x2="{right}" y2="{y:.1}"/>"#);
    }
    let place = |point: &Spot| (scale.x(point.at), scale.y(figure(curve, point)));
    let points: Vec<_> = growth.points.iter().map(place).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(out, r#"<polyline class="curve line" points="{}"/>"#, points.join(" "));
    for point in &growth.points {
        let (x, y) = place(point);
        let _ = writeln!(
            out,
            r#"<circle class="dot" cx="{x:.1}" cy="{y:.1}" r="4"><title>{}: {:.2}</title></circle>"#,
            point.at,
            figure(curve, point)
        );
    }
    out.push_str("</g>\n");
}

/// Names at the ends of their lines, none over another.
fn label(out: &mut String, mut names: Vec<(f64, &'static str)>) {
    names.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut free = 0.0_f64;
    for (y, name) in names {
        let y = (y + 4.0).max(free);
        free = y + 16.0;
        let x = PLANE.2 + 8.0;
        let _ = writeln!(out, r#"<g class="{name}"><text class="name" x="{x}" y="{y:.1}">{name}</text></g>"#);
    }
}

/// Whose line it is. Only what is a name of ours gets into the picture: it is made of a file.
fn class(growth: &Growth) -> &'static str {
    if growth.subject == Subject::Best.name() {
        return Subject::Best.name();
    }
    Kind::ALL.into_iter().map(Kind::name).find(|name| *name == growth.broker).unwrap_or("memory")
}

/// 1, 2 or 5 times a power of ten.
fn step(top: f64) -> f64 {
    let rough = top / STEPS;
    let power = 10_f64.powf(rough.log10().floor());
    let times = [1.0, 2.0, 5.0].into_iter().find(|times| times * power >= rough).unwrap_or(10.0);
    times * power
}

/// As a tick says it.
fn short(at: u64) -> String {
    match at {
        at if at >= 1_000_000 && at % 100_000 == 0 => format!("{}M", at as f64 / 1e6),
        at if at >= 1_000 && at % 1_000 == 0 => format!("{}k", at / 1_000),
        at if at >= 10_000 => format!("{}k", at / 1_000),
        at => at.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growth(broker: &str, cpu: &[(u64, f64)]) -> Growth {
        let point = |&(at, cpu_us_per_message)| Spot {
            at,
            cpu_us_per_message,
            per_second: 1.0,
            peak_rss_bytes: None,
        };
        Growth {
            broker: broker.into(),
            subject: "postrider".into(),
            curve: "backlog".into(),
            unit: "messages".into(),
            points: cpu.iter().map(point).collect(),
            end_to_end: 1.0,
            bound: Some(1.25),
            holds: Some(true),
        }
    }

    #[test]
    fn every_point_is_drawn_in_the_plane() {
        let (kafka, nats) =
            (growth("kafka", &[(1_000, 4.0), (100_000, 8.0)]), growth("nats", &[(1_000, 2.0)]));
        let svg = svg(Curve::Backlog, &[&kafka, &nats]);
        assert_eq!(svg.matches("<circle").count(), 3);
        assert_eq!(svg.matches(r#"class="bound line""#).count(), 2);
        // 8.0 is the highest, 8.4 the top: the first is half as high
        assert!(svg.contains(r#"points="90.0,204.8 580.0,69.5""#), "{svg}");
        for text in
            ["<title>Processor", ">1k<", ">100k<", ">kafka<", ">nats<", "messages in the backlog", "µs of"]
        {
            assert!(svg.contains(text), "{text} is missing: {svg}");
        }
    }

    #[test]
    fn every_element_is_closed() {
        let kafka = growth("<kafka>", &[(1_000, 4.0), (100_000, 8.0)]);
        let svg = svg(Curve::Backlog, &[&kafka]);
        for element in ["svg", "g", "text", "title", "circle", "style"] {
            let opened =
                svg.matches(&format!("<{element} ")).count() + svg.matches(&format!("<{element}>")).count();
            assert_eq!(opened, svg.matches(&format!("</{element}>")).count(), "{element}: {svg}");
        }
        assert!(!svg.contains("<kafka>"), "{svg}");
    }

    #[test]
    fn the_best_loop_has_a_line_of_its_own() {
        let broker = growth("memory", &[(64, 2.0), (512, 3.0)]);
        let best =
            Growth { subject: "best".into(), bound: None, ..growth("memory", &[(64, 1.0), (512, 1.5)]) };
        let svg = svg(Curve::InFlight, &[&broker, &best]);
        assert!(
            svg.contains(r#"<g class="best">"#) && svg.contains(">best<") && svg.contains(">memory<"),
            "{svg}"
        );
        assert_eq!(svg.matches(r#"class="bound line""#).count(), 1);
    }

    #[test]
    fn names_at_the_ends_of_lines_keep_apart() {
        let mut out = String::new();
        label(&mut out, vec![(100.0, "nats"), (101.0, "kafka")]);
        assert!(out.contains(r#"y="104.0""#) && out.contains(r#"y="120.0""#), "{out}");
    }

    #[test]
    fn ticks_are_short_and_steps_round() {
        assert_eq!([short(1), short(4_096), short(32_768), short(10_000_000)], ["1", "4096", "32k", "10M"]);
        assert!((step(8.4) - 2.0).abs() < 1e-9 && (step(260.0) - 100.0).abs() < 1e-9);
    }
}
