//! What became of a case, written down for the table of results.

use std::io::Write as _;
use std::path::Path;

use serde::Serialize;

/// What became of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It holds.
    Passed,
    /// The broker can't, says so, and was asserted to refuse: the capability's name.
    Refused(&'static str),
    /// It needs a control that the factory doesn't have: its name.
    Skipped(&'static str),
    /// It doesn't hold.
    Failed,
}

#[derive(Serialize)]
struct Line<'a> {
    adapter: &'a str,
    variant: &'a str,
    group: &'a str,
    case: &'a str,
    outcome: &'a str,
    missing: Option<&'a str>,
}

/// Appends a line to the adapter's file, if results are wanted.
pub(crate) fn record(adapter: &str, variant: &str, group: &str, case: &str, outcome: &Outcome) {
    let Some(directory) = std::env::var_os("POSTRIDER_CONFORMANCE_DIR") else {
        return;
    };
    let (word, missing) = match outcome {
        Outcome::Passed => ("passed", None),
        Outcome::Refused(capability) => ("refused", Some(*capability)),
        Outcome::Skipped(control) => ("skipped", Some(*control)),
        Outcome::Failed => ("failed", None),
    };
    let line = Line { adapter, variant, group, case, outcome: word, missing };
    // a file a case: cases run in processes of their own, at the same time
    let path = Path::new(&directory).join(format!("{adapter}-{variant}-{group}-{case}.jsonl"));
    let mut file = std::fs::File::create(path).expect("the results can be written");
    writeln!(file, "{}", serde_json::to_string(&line).expect("plain text is JSON"))
        .expect("the results can be written");
}
