//! No page is left out, no link leads nowhere, and no code escapes the compiler. What the code does is tested by running it, as this
//! crate's documentation.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says what it expects")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn book() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All pages below `folder`.
fn pages(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder can be read");
    let paths = entries.map(|entry| entry.expect("its entries can be read").path());
    let (folders, files): (Vec<_>, Vec<_>) = paths.partition(|path| path.is_dir());
    let here = files.into_iter().filter(|file| file.extension().is_some_and(|ending| ending == "md"));
    here.chain(folders.iter().flat_map(|folder| pages(folder))).collect()
}

fn readme() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join("README.md")
}

/// The targets of a page's links, with the text behind `#`, outside code.
fn links(text: &str) -> Vec<(String, Option<String>)> {
    let prose: String = text.split("```").step_by(2).collect();
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target));
    let parts = targets.map(|target| match target.split_once('#') {
        Some((page, anchor)) => (page.to_owned(), Some(anchor.to_owned())),
        None => (target.to_owned(), None),
    });
    parts.filter(|(page, _)| !page.contains("://")).collect()
}

/// The anchors of a page's headings, as mdBook makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.split("```").step_by(2).flat_map(str::lines).filter(|line| line.starts_with('#'));
    let kept = |c: char| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c.to_ascii_lowercase()),
        _ => None,
    };
    headings.map(|line| line.trim_start_matches('#').trim().chars().filter_map(kept).collect()).collect()
}

#[test]
fn every_page_is_in_the_summary() {
    let summary = read(&book().join("SUMMARY.md"));
    let listed: BTreeSet<_> = links(&summary).into_iter().map(|(page, _)| book().join(page)).collect();
    let there: BTreeSet<_> =
        pages(&book()).into_iter().filter(|page| !page.ends_with("SUMMARY.md")).collect();
    assert_eq!(listed, there);
}

#[test]
fn every_link_leads_somewhere() {
    for page in pages(&book()).into_iter().chain([readme()]) {
        let text = read(&page);
        for (target, anchor) in links(&text) {
            let path = if target.is_empty() { page.clone() } else { page.with_file_name("").join(&target) };
            assert!(path.exists(), "{}: there is no {target}", page.display());
            let found = anchor.as_ref().is_none_or(|anchor| anchors(&read(&path)).contains(anchor));
            assert!(found, "{}: {target} has no heading {anchor:?}", page.display());
        }
    }
}

#[test]
fn all_rust_is_compiled() {
    let included = read(&book().join("lib.rs"));
    for page in pages(&book()).into_iter().chain([readme()]) {
        let text = read(&page);
        // every second piece is code, and begins with the words of its fence
        let fences: Vec<_> =
            text.split("```").skip(1).step_by(2).filter_map(|code| code.lines().next()).collect();
        for fence in &fences {
            let known = matches!(*fence, "rust" | "rust,no_run" | "toml" | "text");
            assert!(known, "{}: a fence of `{fence}`", page.display());
        }
        if fences.iter().any(|fence| fence.starts_with("rust")) {
            let name = page.strip_prefix(book()).unwrap_or(Path::new("../../README.md"));
            assert!(
                included.contains(&format!("include_str!({name:?})")),
                "lib.rs leaves out {}",
                name.display()
            );
        }
    }
}

#[test]
fn the_readmes_first_program_is_the_quickstart() {
    let example = readme().with_file_name("examples").join("quickstart.rs");
    let example = read(&example);
    let program: String =
        example.lines().skip_while(|line| line.starts_with("//!")).collect::<Vec<_>>().join("\n");
    let readme = read(&readme());
    let first = readme.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next());
    assert_eq!(first.map(str::trim), Some(program.trim()));
}
