//! How many tests passed, failed and were skipped, as the test runners themselves report it.

use std::fmt;
use std::ops::AddAssign;

use anyhow::{Context as _, Result};
use roxmltree::Node;
use serde::Deserialize;

/// The counts of one or more test runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Counts {
    /// From nextest's JUnit report: what was run.
    pub(crate) fn from_junit(report: &str) -> Result<Self> {
        let document = roxmltree::Document::parse(report).context("nextest's report is not XML")?;
        let mut counts = Self::default();
        for case in document.descendants().filter(|node| node.has_tag_name("testcase")) {
            if has_failed(&case) {
                counts.failed += 1;
            } else if has(&case, "skipped") {
                counts.skipped += 1;
            } else {
                counts.passed += 1;
            }
        }
        Ok(counts)
    }

    /// How many tests were run.
    pub(crate) fn ran(self) -> usize {
        self.passed + self.failed
    }

    /// From `cargo nextest list --message-format json`: how many tests the filter lets through, and how many it leaves out.
    pub(crate) fn of_list(list: &str) -> Result<(usize, Self)> {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct List {
            rust_suites: std::collections::BTreeMap<String, Suite>,
        }
        #[derive(Deserialize)]
        struct Suite {
            testcases: std::collections::BTreeMap<String, Case>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Case {
            filter_match: Match,
        }
        #[derive(Deserialize)]
        struct Match {
            status: String,
        }
        let list: List = serde_json::from_str(list).context("nextest's list of tests could not be read")?;
        let cases = list.rust_suites.values().flat_map(|suite| suite.testcases.values());
        let (through, skipped): (Vec<_>, Vec<_>) =
            cases.partition(|case| case.filter_match.status == "matches");
        Ok((through.len(), Self { skipped: skipped.len(), ..Self::default() }))
    }

    /// From nextest's JUnit report: the tests that failed, as `package::binary test`.
    pub(crate) fn failures(report: &str) -> Result<Vec<String>> {
        let document = roxmltree::Document::parse(report).context("nextest's report is not XML")?;
        let failed = document.descendants().filter(|node| node.has_tag_name("testcase")).filter(has_failed);
        let name = |node: Node<'_, '_>| {
            let part = |name| node.attribute(name).unwrap_or("?");
            format!("{} {}", part("classname"), part("name"))
        };
        Ok(failed.map(name).collect())
    }

    /// From the output of `cargo test --doc`: the `test result:` line of each run in it.
    pub(crate) fn from_libtest(output: &str) -> Self {
        let mut counts = Self::default();
        for line in output.lines().filter_map(|line| line.strip_prefix("test result: ")) {
            for part in line.split(';') {
                let mut words = part.split_whitespace().rev();
                let (Some(what), Some(number)) = (words.next(), words.next()) else {
                    continue;
                };
                let Ok(number) = number.parse::<usize>() else {
                    continue;
                };
                match what {
                    "passed" => counts.passed += number,
                    "failed" => counts.failed += number,
                    "ignored" => counts.skipped += number,
                    _ => {}
                }
            }
        }
        counts
    }
}

fn has(case: &Node<'_, '_>, tag: &str) -> bool {
    case.children().any(|child| child.has_tag_name(tag))
}

fn has_failed(case: &Node<'_, '_>) -> bool {
    has(case, "failure") || has(case, "error")
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_nextest_is_counted() {
        let report = r#"<?xml version="1.0" encoding="UTF-8"?>
            <testsuites name="nextest-run" tests="3" failures="1" errors="1">
              <testsuite name="core" tests="3">
                <testcase name="a" classname="core" time="0.1"/>
                <testcase name="b" classname="core"><failure message="no &lt;testcase name='x'&gt;">b</failure></testcase>
                <testcase name="c" classname="core"><error type="timeout"/></testcase>
                <testcase name="d" classname="core"><flakyFailure message="once"/><system-out>ok</system-out></testcase>
              </testsuite>
            </testsuites>"#;
        let counts = Counts::from_junit(report).expect("it is a report");
        assert_eq!(counts, Counts { passed: 2, failed: 2, skipped: 0 });
        assert_eq!(Counts::failures(report).expect("it is a report"), ["core b", "core c"]);
        Counts::from_junit("passed: 3").expect_err("it is no report");
    }

    #[test]
    fn what_nextest_left_out_is_counted() {
        let list = r#"{"test-count": 3, "rust-suites": {"core": {"testcases": {
            "a": {"kind": "test", "ignored": false, "filter-match": {"status": "matches"}},
            "b": {"kind": "test", "ignored": true, "filter-match": {"status": "mismatch", "reason": "ignored"}},
            "c": {"kind": "test", "ignored": false, "filter-match": {"status": "mismatch", "reason": "expression"}}
        }}, "nats": {"testcases": {}}}}"#;
        let counts = Counts::of_list(list).expect("it is a list");
        assert_eq!(counts, (1, Counts { passed: 0, failed: 0, skipped: 2 }));
    }

    #[test]
    fn doctests_are_summed_over_all_crates() {
        let output = "running 2 tests\n\
            test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\n\
            test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.50s\n";
        assert_eq!(Counts::from_libtest(output), Counts { passed: 5, failed: 1, skipped: 1 });
    }

    #[test]
    fn the_summary_is_one_plain_line() {
        let mut sum = Counts { passed: 5, failed: 0, skipped: 1 };
        sum += Counts { passed: 2, failed: 1, skipped: 0 };
        assert_eq!(sum.to_string(), "7 passed, 1 failed, 1 skipped");
    }
}
