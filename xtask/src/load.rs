//! A busy machine: threads that compute for as long as the load lives.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

/// One busy thread a core. Dropping it ends them.
pub(crate) struct Load {
    done: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts as many threads as the machine has cores.
    pub(crate) fn start() -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads = (0..cores).map(|_| {
            let done = Arc::clone(&done);
            thread::spawn(move || {
                let mut number = 1_u64;
                while !done.load(Relaxed) {
                    number = black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
                }
            })
        });
        let threads = threads.collect();
        Self { done, threads }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.done.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // it can't panic
        }
    }
}
