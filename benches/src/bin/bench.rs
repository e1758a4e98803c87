//! The bench as it is run for speed.

use std::process::ExitCode;

fn main() -> ExitCode {
    postrider_bench::main(None)
}
