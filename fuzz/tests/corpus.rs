//! Every input that is kept, through its target: what was found once is seen by each `cargo test`.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

use std::path::Path;

use postrider_fuzz::TARGETS;

#[test]
fn every_input_that_is_kept_passes_and_every_target_has_some() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, target) in TARGETS {
        let mut count = 0;
        for entry in std::fs::read_dir(corpus.join(name)).expect("each target has a folder") {
            let path = entry.unwrap().path();
            println!("{}", path.display());
            target(&std::fs::read(&path).unwrap());
            count += 1;
        }
        assert!(count > 0, "{name} has no inputs");
    }
    let folders = std::fs::read_dir(&corpus).unwrap().count();
    assert_eq!(folders, TARGETS.len(), "a folder for each target, and no other");
}

#[test]
fn the_shortest_inputs_pass() {
    for (_, target) in TARGETS {
        target(&[]);
        (0..=255).for_each(|byte| target(&[byte]));
        (0..=255).for_each(|byte| target(&[byte; 40]));
    }
}
