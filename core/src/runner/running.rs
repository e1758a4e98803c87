//! A service at work: its health, whether it is idle, and how it is stopped.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::plan::Plan;
use super::report::{Report, RouteHealth, RouteState, ServiceHealth, Status};
use super::stop::StopOrder;
use super::task::RouteEnd;
use crate::breaker::{Breaker, BreakerState};
use crate::broker::Broker;
use crate::env::deadline_from;
use crate::error::{Error, ErrorKind, Result};
use crate::publish::Publisher;
use crate::subscribe::{Control, HealthState};

/// Routes at work. Dropping it ends them at once and gives back what they hold; [`stop`](Self::stop) lets them finish.
#[must_use = "dropping it stops all routes at once; call `stop`"]
pub struct Running {
    broker: Broker,
    routes: Vec<RunningRoute>,
    tasks: JoinSet<(usize, RouteEnd)>,
    stop: StopOrder,
    ended: Vec<(usize, RouteEnd)>,
}

pub(crate) struct RunningRoute {
    pub(crate) plan: Arc<Plan>,
    pub(crate) status: Arc<Status>,
    pub(crate) control: Arc<dyn Control>,
    pub(crate) breaker: Option<Breaker>,
}

impl Running {
    pub(crate) fn new(
        broker: Broker,
        routes: Vec<RunningRoute>,
        tasks: JoinSet<(usize, RouteEnd)>,
        stop: StopOrder,
    ) -> Self {
        Self { broker, routes, tasks, stop, ended: Vec::new() }
    }

    /// The broker that the routes run on, to publish to.
    pub fn publisher(&self) -> &Broker {
        &self.broker
    }

    /// How the service is, as data, without any I/O.
    pub fn health(&self) -> ServiceHealth {
        let (connection, now) = (self.broker.health(), self.broker.env().now());
        let routes: Vec<_> = self.routes.iter().map(|route| route.health(connection.state, now)).collect();
        let worst = routes.iter().map(|r| r.health.state).chain([connection.state]).max().unwrap_or_default();
        ServiceHealth { state: worst, connection, routes }
    }

    /// The same, and of each route how many messages its group has still to settle, for which the broker is asked. A route whose lag
    /// isn't told has none.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn health_with_lag(&self) -> ServiceHealth {
        let mut health = self.health();
        for (route, told) in self.routes.iter().zip(&mut health.routes) {
            told.lag = route.control.lag().await.ok();
        }
        health
    }

    /// The handle of a route's subscription: pause, resume, seek, lag.
    pub fn control(&self, route: &str) -> Option<Arc<dyn Control>> {
        self.routes.iter().find(|r| r.plan.names.handler == route).map(|r| Arc::clone(&r.control))
    }

    /// The breaker of a route that has one: its state, and a watch that tells of every change.
    pub fn breaker(&self, route: &str) -> Option<Breaker> {
        self.routes.iter().find(|r| r.plan.names.handler == route).and_then(|r| r.breaker.clone())
    }

    /// What the routes have done so far.
    pub fn report(&self) -> Report {
        let routes = self.routes.iter().map(RunningRoute::report).collect();
        Report { routes, drained: false, took: Duration::ZERO }
    }

    /// Resolves when nothing is left to do: every group has read and settled all that its channel holds, what handlers
    /// published on the way included. Needs the broker's lag, where it has none it waits until nothing is in flight.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn idle(&self) {
        let mut pause = Duration::from_micros(200);
        loop {
            let before = self.activity();
            if self.nothing_in_flight()
                && self.nothing_to_read().await
                && self.nothing_in_flight()
                && before == self.activity()
            {
                return;
            }
            self.broker.env().sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Resolves when a route has ended by itself, with the reason.
    ///
    /// # Cancel safety
    /// Safe: what ended is remembered for [`stop`](Self::stop).
    pub async fn failed(&mut self) -> Error {
        match self.tasks.join_next().await {
            Some(ended) => {
                let (index, end) = ended.unwrap_or_else(|error| {
                    let error = Error::new(ErrorKind::Closed, "run", "a route's task ended").because(error);
                    (usize::MAX, RouteEnd { drained: false, result: Err(error) })
                });
                let error = match &end.result {
                    Err(error) => Error::new(error.kind(), "run", format!("a route has ended: {error}")),
                    Ok(()) => Error::new(ErrorKind::Closed, "run", "a route has ended"),
                };
                self.ended.push((index, end));
                error
            }
            None => std::future::pending().await,
        }
    }

    /// Stops: nothing new starts, running handlers have until the deadline, then they are cancelled and their messages
    /// given back; settlements and publishes are flushed. The broker stays connected. With `Duration::MAX` there is no deadline.
    ///
    /// # Errors
    /// A route that had ended by itself before, with its reason.
    ///
    /// # Cancel safety
    /// Dropped before it resolves, the routes end at once and what they hold is given back.
    pub async fn stop(mut self, deadline: Duration) -> Result<Report> {
        let env = self.broker.env().clone();
        let began = env.now();
        // a second order can't come: `stop` takes the service by value
        let _ = self.stop.deadline.set(deadline_from(began, deadline));
        self.stop.token.cancel();
        let (mut drained, mut first_error) = (true, None);
        let mut ends = std::mem::take(&mut self.ended);
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok(end) => ends.push(end),
                Err(error) => {
                    first_error =
                        Some(Error::new(ErrorKind::Closed, "stop", "a route's task ended").because(error));
                }
            }
        }
        for (_, end) in ends {
            drained &= end.drained;
            first_error = first_error.or(end.result.err());
        }
        // outcomes of sends that a handler didn't wait for
        let flushed = self.broker.flush().await.map_err(Error::from);
        let routes = self.routes.iter().map(RunningRoute::report).collect();
        let report = Report { routes, drained, took: env.now().saturating_duration_since(began) };
        match first_error {
            Some(error) => Err(error),
            None => flushed.map(|()| report),
        }
    }

    fn activity(&self) -> u64 {
        self.routes.iter().map(|r| r.status.activity.load(Relaxed)).fold(0, u64::wrapping_add)
    }

    fn nothing_in_flight(&self) -> bool {
        self.routes.iter().all(|r| r.status.in_flight.load(Relaxed) == 0)
    }

    async fn nothing_to_read(&self) -> bool {
        for route in &self.routes {
            match route.control.lag().await {
                Ok(0) => {}
                // a broker that can't tell has nothing to add to what is in flight
                Err(error) if error.kind() == ErrorKind::Unsupported => {}
                Ok(_) | Err(_) => return false,
            }
        }
        true
    }
}

impl RunningRoute {
    fn health(&self, connection: HealthState, now: Instant) -> RouteHealth {
        let own = self.status.trouble();
        let subscription = self.control.health();
        let health = match own {
            Some(own) if own.state >= subscription.state => own,
            _ => subscription,
        };
        let state = match self.status.state() {
            _ if connection > HealthState::Standby => RouteState::ConnectionTroubled,
            _ if self.status.stalled.load(Relaxed) > 0 => RouteState::PausedByDeadLetters,
            _ if self.breaker.as_ref().is_some_and(|breaker| breaker.state() == BreakerState::Open) => {
                RouteState::PausedByBreaker
            }
            state => state,
        };
        RouteHealth {
            route: self.plan.names.handler.clone(),
            channel: self.plan.names.channel.clone(),
            group: self.plan.names.group.clone(),
            health,
            state,
            oldest_unsettled: self.status.arrivals.oldest(now),
            lag: None,
            in_flight: self.status.in_flight.load(Relaxed),
            consecutive_failures: self.status.consecutive_failures.load(Relaxed),
            breaker: self.breaker.as_ref().map(Breaker::state),
        }
    }

    fn report(&self) -> super::report::RouteReport {
        let names = &self.plan.names;
        self.status.report(&names.handler, &names.channel, &names.group)
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("health", &self.health().state).finish_non_exhaustive()
    }
}

impl ServiceHealth {
    /// Whether the service can do its work, degraded or not: what a readiness probe asks.
    pub fn is_ready(&self) -> bool {
        self.state < HealthState::Down
    }
}
