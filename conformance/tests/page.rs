//! The book's page of what each broker passes is written by a run on all of them; that it counts every case is seen here, in a moment.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

use std::fs;
use std::path::Path;

macro_rules! count {
    (() $($group:ident { $($case:ident [$($needs:ident)?],)* })*) => {
        const CASES: usize = [$($(stringify!($group::$case)),*),*].len();
    };
}

postrider_conformance::for_each_case! { count, }

#[test]
fn the_page_of_what_each_broker_passes_counts_every_case() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src/brokers/conformance.md");
    let page = fs::read_to_string(page).expect("the page is there");
    let mut adapters = 0;
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let Ok(counts) = cells[2..].iter().map(|cell| cell.parse::<usize>()).collect::<Result<Vec<_>, _>>()
        else {
            continue; // a case that isn't passed
        };
        let told = counts.iter().sum::<usize>();
        assert_eq!(told, CASES, "{line}: run `cargo xtask test --bless` on all brokers");
        adapters += 1;
    }
    assert_eq!(adapters, 4, "each adapter has its line");
}
