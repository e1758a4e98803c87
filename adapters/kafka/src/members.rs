//! How many threads of members run, for whoever waits until none does.

use std::sync::Arc;

use tokio::sync::watch;

/// The members of a broker, counted, so that closing can wait for them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Members(Arc<watch::Sender<usize>>);

impl Members {
    /// Resolves when no member's thread runs.
    pub(crate) async fn ended(&self) {
        let mut count = self.0.subscribe();
        // the sender is ours, so it is there
        let _ = count.wait_for(|count| *count == 0).await;
    }

    pub(crate) fn enter(&self) -> Entered {
        self.0.send_modify(|count| *count += 1);
        Entered(self.clone())
    }
}

pub(crate) struct Entered(Members);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}
