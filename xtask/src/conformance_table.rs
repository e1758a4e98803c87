//! What the conformance suite wrote down, merged: the table at the end of `cargo xtask test`, and
//! `target/conformance.json`. The cases themselves are the suite's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// At least so many cases are passed by each adapter.
pub(crate) const FLOOR: usize = 85;

/// What became of a case; of several, the greatest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Passed,
    Refused,
    Skipped,
    Failed,
}

/// One case on one variant of an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    adapter: String,
    variant: String,
    group: String,
    case: String,
    outcome: Outcome,
    /// The capability that the broker lacks, or the control that the tests lack.
    missing: Option<String>,
}

/// All cases of all adapters and variants.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// By adapter, variant, group and case. A case that ran with several parameters has the worst of its outcomes.
    rows: BTreeMap<(String, String, String, String), Row>,
}

impl Table {
    /// Reads every `.jsonl` file of a folder.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let mut table = Self::default();
        let entries =
            fs::read_dir(folder).with_context(|| format!("{} could not be read", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "jsonl") {
                let lines = fs::read_to_string(&path)
                    .with_context(|| format!("{} could not be read", path.display()))?;
                table.add(&lines).with_context(|| format!("{}", path.display()))?;
            }
        }
        Ok(table)
    }

    /// Takes up results, one JSON object a line.
    fn add(&mut self, lines: &str) -> Result<()> {
        for (number, line) in lines.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let row: Row =
                serde_json::from_str(line).with_context(|| format!("line {} is not a result", number + 1))?;
            let place = (row.adapter.clone(), row.variant.clone(), row.group.clone(), row.case.clone());
            match self.rows.get_mut(&place) {
                Some(known) if known.outcome >= row.outcome => {}
                Some(known) => *known = row,
                None => {
                    self.rows.insert(place, row);
                }
            }
        }
        Ok(())
    }

    /// Writes all rows as one JSON array, sorted.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let rows: Vec<_> = self.rows.values().collect();
        let text = serde_json::to_string_pretty(&rows).context("the table could not be made JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("{} could not be written", path.display()))
    }

    /// The cases of an adapter, each with the worst outcome over its variants.
    fn cases(&self, adapter: &str) -> BTreeMap<(&str, &str), &Row> {
        let mut cases = BTreeMap::new();
        for row in self.rows.values().filter(|row| row.adapter == adapter) {
            let worst = cases.entry((row.group.as_str(), row.case.as_str())).or_insert(row);
            if worst.outcome < row.outcome {
                *worst = row;
            }
        }
        cases
    }

    /// The table for people: a line for each of `adapters` and each that has results, then what was not passed, and why.
    pub(crate) fn to_text(&self, adapters: &[&str]) -> String {
        let mut names = adapters.to_vec();
        for row in self.rows.values() {
            if !names.contains(&row.adapter.as_str()) {
                names.push(&row.adapter);
            }
        }
        let mut text =
            format!("{:<12}{:>8}{:>9}{:>9}{:>8}\n", "conformance", "passed", "refused", "skipped", "failed");
        let mut notes = String::new();
        for name in names {
            let cases = self.cases(name);
            let count = |outcome| cases.values().filter(|row| row.outcome == outcome).count();
            let [passed, refused, skipped, failed] =
                [Outcome::Passed, Outcome::Refused, Outcome::Skipped, Outcome::Failed].map(count);
            // writing to a string can't fail
            let _ = writeln!(text, "{name:<12}{passed:>8}{refused:>9}{skipped:>9}{failed:>8}");
            for row in cases.values() {
                let why = row.missing.as_deref().unwrap_or("it doesn't say what");
                let _ = match row.outcome {
                    Outcome::Passed => Ok(()),
                    Outcome::Refused => {
                        writeln!(notes, "{name}: refused {}/{}: lacks {why}", row.group, row.case)
                    }
                    Outcome::Skipped => {
                        writeln!(notes, "{name}: skipped {}/{}: missing {why}", row.group, row.case)
                    }
                    Outcome::Failed => {
                        writeln!(notes, "{name}: FAILED {}/{} ({})", row.group, row.case, row.variant)
                    }
                };
            }
        }
        text + &notes
    }

    /// The page of the book: the counts, and every case that an adapter doesn't pass, with the reason.
    fn to_page(&self) -> String {
        let mut text = String::from(concat!(
            "# What each broker passes\n\n",
            "One suite runs on every broker, each case on every version and mode that is listed. A case is *refused* where the broker lacks a capability: the suite\n",
            "asserts that it says so before anything is sent. It is *skipped* where the broker has nothing that a test could kill, cut or ask for.\n",
            "This page is made from what the suite found (`cargo xtask test --bless`), and the tests fail where it says something else.\n\n",
            "| adapter | tested as | passed | refused | skipped |\n|---|---|---|---|---|\n",
        ));
        let mut notes = String::from("\n| adapter | case | | for want of |\n|---|---|---|---|\n");
        for name in self.rows.values().map(|row| row.adapter.as_str()).collect::<BTreeSet<_>>() {
            let of_it = self.rows.values().filter(|row| row.adapter == name);
            let variants: BTreeSet<_> = of_it.map(|row| format!("`{}`", row.variant)).collect();
            let variants = variants.into_iter().collect::<Vec<_>>().join(", ");
            let cases = self.cases(name);
            let count = |outcome| cases.values().filter(|row| row.outcome == outcome).count();
            let [passed, refused, skipped] = [Outcome::Passed, Outcome::Refused, Outcome::Skipped].map(count);
            // writing to a string can't fail
            let _ = writeln!(text, "| `{name}` | {variants} | {passed} | {refused} | {skipped} |");
            for row in cases.values().filter(|row| row.outcome > Outcome::Passed) {
                let what = if row.outcome == Outcome::Refused { "refused" } else { "skipped" };
                let why = row.missing.as_deref().unwrap_or("it doesn't say what");
                let _ = writeln!(notes, "| `{name}` | `{}::{}` | {what} | {why} |", row.group, row.case);
            }
        }
        text + &notes
    }

    /// Compares the page with what was found, or writes it. Answers what is wrong with it.
    pub(crate) fn settle_page(&self, path: &Path, bless: bool) -> Result<Option<String>> {
        let (page, known) = (self.to_page(), fs::read_to_string(path).unwrap_or_default());
        if page == known {
            return Ok(None);
        }
        if bless {
            fs::write(path, page).with_context(|| format!("{} could not be written", path.display()))?;
            return Ok(None);
        }
        Ok(Some(format!(
            "{} says something else than was found; `cargo xtask test --bless` writes what was found:\n{page}",
            path.display()
        )))
    }

    /// Why the adapters don't conform; nothing where they do.
    pub(crate) fn complaints(&self, adapters: &[&str]) -> Vec<String> {
        let mut complaints = Vec::new();
        for name in adapters {
            let cases = self.cases(name);
            let passed = cases.values().filter(|row| row.outcome == Outcome::Passed).count();
            let failed = cases.values().filter(|row| row.outcome == Outcome::Failed).count();
            if failed > 0 {
                complaints.push(format!("{name} failed {failed} conformance cases"));
            }
            if passed < FLOOR {
                complaints.push(format!(
                    "{name} passed {passed} conformance cases, and at least {FLOOR} are wanted"
                ));
            }
        }
        complaints
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(adapter: &str, variant: &str, case: &str, outcome: &str, missing: Option<&str>) -> String {
        let missing = missing.map_or("null".to_owned(), |missing| format!("{missing:?}"));
        format!(
            r#"{{"adapter":"{adapter}","variant":"{variant}","group":"publish","case":"{case}","outcome":"{outcome}","missing":{missing}}}"#
        ) + "\n"
    }

    fn table(lines: &[String]) -> Table {
        let mut table = Table::default();
        for lines in lines {
            table.add(lines).expect("they are results");
        }
        table
    }

    fn counts(table: &Table, adapter: &str) -> String {
        let text = table.to_text(&[adapter]);
        let line = text.lines().find(|line| line.starts_with(adapter)).expect("the adapter has a line");
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_case_counts_once_and_only_if_all_variants_passed() {
        let table = table(&[
            line("rabbitmq", "3.10", "a", "passed", None) + &line("rabbitmq", "4.0", "a", "passed", None),
            line("rabbitmq", "3.10", "b", "passed", None)
                + &line("rabbitmq", "4.0", "b", "refused", Some("Delay")),
            line("rabbitmq", "4.0", "c", "failed", None) + &line("rabbitmq", "3.10", "c", "passed", None),
        ]);
        assert_eq!(counts(&table, "rabbitmq"), "1 1 0 1");
    }

    #[test]
    fn a_case_with_several_parameters_has_the_worst_outcome_whatever_their_order() {
        for outcomes in [["passed", "failed"], ["failed", "passed"]] {
            let table = table(&outcomes.map(|outcome| line("memory", "default", "a", outcome, None)));
            assert_eq!(counts(&table, "memory"), "0 0 0 1");
        }
    }

    #[test]
    fn what_was_not_passed_is_told_with_its_reason() {
        let text = table(&[line("nats", "2.15", "a", "skipped", Some("kill"))]).to_text(&["memory", "nats"]);
        assert!(text.contains("nats: skipped publish/a: missing kill"), "{text}");
        assert!(text.lines().any(|line| line.starts_with("memory ")), "{text}");
    }

    #[test]
    fn the_page_is_compared_and_written_where_that_is_asked_for() {
        let folder = std::env::temp_dir().join(format!("postrider-page-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("page.md");
        let table = table(&[line("nats", "2.15", "a", "refused", Some("seek"))]);
        let wrong = table.settle_page(&path, false).expect("it can be read").expect("it isn't there");
        assert!(wrong.contains("| `nats` | `publish::a` | refused | seek |"), "{wrong}");
        assert_eq!(table.settle_page(&path, true).expect("it is written"), None);
        assert_eq!(table.settle_page(&path, false).expect("it can be read"), None);
        fs::remove_dir_all(&folder).expect("it is ours");
    }

    #[test]
    fn too_few_and_failed_cases_are_complained_of() {
        let mut lines: Vec<_> =
            (0..FLOOR).map(|case| line("nats", "default", &case.to_string(), "passed", None)).collect();
        assert_eq!(table(&lines).complaints(&["nats"]), Vec::<String>::new());
        assert_eq!(table(&lines).complaints(&["memory", "nats"]).len(), 1);
        lines.push(line("nats", "default", "one more", "failed", None));
        assert_eq!(table(&lines).complaints(&["nats"]).len(), 1);
        assert_eq!(table(&lines[1..]).complaints(&["nats"]).len(), 2);
    }

    #[test]
    fn a_line_that_is_no_result_is_an_error_that_names_it() {
        let lines = line("nats", "default", "a", "passed", None) + "{\"adapter\":\"nats\"}\n";
        let error = Table::default().add(&lines).expect_err("the second is no result");
        assert!(format!("{error:#}").contains("line 2"), "{error:#}");
        Table::default().add(&line("nats", "default", "a", "perhaps", None)).expect_err("no such outcome");
    }
}
