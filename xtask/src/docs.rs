//! `cargo xtask docs`: the reference by rustdoc, and the book by mdBook.

use std::process::{Command, ExitCode, Stdio};

use anyhow::Result;

use crate::interrupt::Interrupt;
use crate::steps::Steps;
use crate::workspace::Workspace;

/// Builds both; where mdBook is missing, says how to get it.
pub(crate) fn main() -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let interrupt = Interrupt::install()?;
    let mut steps = Steps::new(false);
    steps.step("reference", || rustdoc(&workspace, &interrupt))?;
    eprintln!("the reference: {}", workspace.target.join("doc/postrider/index.html").display());
    let there = Command::new("mdbook").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        eprintln!("the book needs mdBook: cargo install --locked mdbook");
        return Ok(ExitCode::FAILURE);
    }
    let book = workspace.target.join("book");
    steps.step("book", || {
        let mut build = Command::new("mdbook");
        build.arg("build").arg(workspace.root.join("docs")).arg("--dest-dir").arg(&book);
        Ok(interrupt.run(&mut build)?.success())
    })?;
    eprintln!("the book: {}", book.join("index.html").display());
    Ok(ExitCode::SUCCESS)
}

/// The reference of the whole workspace; a warning fails it.
pub(crate) fn rustdoc(workspace: &Workspace, interrupt: &Interrupt) -> Result<bool> {
    let mut doc = workspace.cargo(["doc", "--workspace", "--all-features", "--no-deps"]);
    Ok(interrupt.run(doc.env("RUSTDOCFLAGS", "-D warnings"))?.success())
}
