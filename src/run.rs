//! Running a service until the system says stop.

use std::future::Future;

use postrider_core::{Broker, Error, Report, Result, Router};

/// Runs a router until Ctrl-C or SIGTERM. The core knows no signals, so this stands here.
pub trait RunExt {
    /// Starts, runs until Ctrl-C or SIGTERM, drains for at most 30 s, and closes the broker's connections. A second signal
    /// ends it at once, with an error; what was held is given back.
    ///
    /// # Errors
    /// As [`Router::start`], or the reason why a route ended by itself.
    fn run(self, broker: Broker) -> impl Future<Output = Result<Report>> + Send;
}

impl<S: Send, L: Send> RunExt for Router<S, L> {
    async fn run(self, broker: Broker) -> Result<Report> {
        let (first, second) = (signals(1)?, signals(2)?);
        tokio::select! {
            report = self.run_until(broker, first) => report,
            () = second => {
                let message = "a second signal came before the routes were drained; what they held is given back";
                Err(Error::config("run", message))
            }
        }
    }
}

/// Resolves at the `count`-th Ctrl-C or SIGTERM.
fn signals(count: usize) -> Result<impl Future<Output = ()> + Send> {
    let failed = |error| Error::config("run", "the stop signals can't be listened for").because(error);
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        Ok(async move {
            for _ in 0..count {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            }
        })
    }
    #[cfg(not(unix))]
    {
        let _ = failed;
        Ok(async move {
            for _ in 0..count {
                // where signals can't be listened for, the service runs until it is ended
                if tokio::signal::ctrl_c().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        })
    }
}
