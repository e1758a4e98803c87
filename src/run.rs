//! Running a service until the system says stop.

use std::future::Future;

use postrider_core::{Broker, Error, Report, Result, Router};

/// Runs a router until Ctrl-C or SIGTERM. The core knows no signals, so this stands here.
pub trait RunExt {
    /// Starts, runs until Ctrl-C or SIGTERM, drains for at most 30 s, and closes the broker's connections.
    ///
    /// # Errors
    /// As [`Router::start`], or the reason why a route ended by itself.
    fn run(self, broker: Broker) -> impl Future<Output = Result<Report>> + Send;
}

impl<S: Send, L: Send> RunExt for Router<S, L> {
    async fn run(self, broker: Broker) -> Result<Report> {
        let stop = stop_signal()?;
        self.run_until(broker, stop).await
    }
}

/// Resolves at the first Ctrl-C or SIGTERM. A second one ends the process as the system would.
fn stop_signal() -> Result<impl Future<Output = ()> + Send> {
    let failed = |error| Error::config("run", "the stop signals can't be listened for").because(error);
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        Ok(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        })
    }
    #[cfg(not(unix))]
    {
        let _ = failed;
        Ok(async {
            // where signals can't be listened for, the service runs until it is ended
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}
