//! Routes, put together and started. How a route runs is the runner's.

mod check;
mod cycles;
mod describe;

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use describe::{Description, RouteDescription};

use crate::broker::{Broker, Declare};
use crate::error::Result;
use crate::extract::{Declaration, RouteContext, RouteNames};
use crate::handler::{DynHandler, IntoRoute};
use crate::idempotency::IdempotencyStore;
use crate::layer::{Layer, Stack};
use crate::policy::RouteOptions;
use crate::publish::Publisher;
use crate::runner::{self, Admission, Orders, Plan, Report, Running, RunningRoute, Status, StopOrder};
use crate::subscribe::{Subscriber, Subscription};

/// How long a service that is told to stop lets its handlers finish, unless told otherwise: 30 s.
pub const DRAIN: Duration = Duration::from_secs(30);

/// What the routes of a program are. Nothing registers itself: a route runs if it is listed here.
///
/// State comes first, so that a route that needs another is refused by the compiler; routers of any state merge.
///
/// ```
/// use postrider_core::{Envelope, Router, RouteOptions, State};
/// async fn count(_: Envelope, State(total): State<u64>) { println!("{total}"); }
/// let router = Router::with_state(7_u64).route(RouteOptions::new("orders", "audit").handle(count));
/// assert_eq!(router.describe()?.routes[0].channel, "orders");
/// # Ok::<(), postrider_core::Error>(())
/// ```
#[must_use = "a router does nothing until it is started"]
pub struct Router<S = (), L = ()> {
    state: S,
    layers: L,
    routes: Vec<Built>,
    store: Option<Arc<dyn IdempotencyStore>>,
}

/// A route whose handler waits for the broker.
struct Built {
    options: RouteOptions,
    declaration: Declaration,
    handler: MakeHandler,
    /// The store of the router that it was added to, where that was another.
    store: Option<Arc<dyn IdempotencyStore>>,
}

type MakeHandler = Box<dyn FnOnce(Broker, Arc<RouteNames>, CancellationToken) -> Arc<dyn DynHandler> + Send>;

impl Router {
    /// No routes and no state.
    pub fn new() -> Self {
        Self::with_state(())
    }
}

impl Default for Router {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Clone + Send + Sync + 'static> Router<S> {
    /// No routes yet; every handler may take `State` of what `S` provides.
    pub fn with_state(state: S) -> Self {
        Self { state, layers: (), routes: Vec::new(), store: None }
    }
}

impl<S: Clone + Send + Sync + 'static, L: Stack> Router<S, L> {
    /// Puts a layer around every route that is added after it; the last one added is the innermost.
    pub fn layer<N: Layer>(self, layer: N) -> Router<S, (L, N)> {
        Router { state: self.state, layers: (self.layers, layer), routes: self.routes, store: self.store }
    }

    /// Adds a route: a `#[handler]` function, or [`RouteOptions::handle`].
    pub fn route<M>(mut self, route: impl IntoRoute<S, M>) -> Self {
        let (options, declaration, build) = route.into_route();
        let (state, layers) = (self.state.clone(), self.layers.clone());
        let handler: MakeHandler = Box::new(move |broker, names, stop| {
            Arc::new(layers.wrap(build(RouteContext::new(state, broker, names, stop))))
        });
        self.routes.push(Built { options, declaration, handler, store: None });
        self
    }

    /// Adds all routes of another router, with their own state and layers.
    pub fn merge<S2, L2>(mut self, other: Router<S2, L2>) -> Self {
        let store = other.store;
        self.routes.extend(other.routes.into_iter().map(|mut built| {
            built.store = built.store.or_else(|| store.clone());
            built
        }));
        self
    }
}

impl<S, L> Router<S, L> {
    /// Where routes with [`RouteOptions::idempotency`] remember what they have handled. Routes of a router that is merged keep their own.
    pub fn idempotency(mut self, store: impl IdempotencyStore) -> Self {
        self.store = Some(Arc::new(store));
        self
    }

    /// What the routes are, as data: a table when printed, JSON when serialized.
    ///
    /// # Errors
    /// The first option that contradicts itself, as [`start`](Self::start) would say it.
    pub fn describe(&self) -> Result<Description> {
        let plans = self.plans()?;
        Ok(Description::of(&plans))
    }

    /// Declares all topology, attaches every consumer, and runs the routes. Resolves when messages published from now on
    /// reach the handlers.
    ///
    /// Outputs that lead back to the channel that they came from may be meant; each such cycle is logged at WARN.
    ///
    /// # Errors
    /// A route whose options contradict each other, dead letters that lead back to where they came from, or a route that asks for what the broker can't do (naming the capability),
    /// before any I/O; else what declaring and subscribing answer. Then nothing runs.
    pub async fn start(self, broker: &Broker) -> Result<Running> {
        let mut plans = self.plans()?;
        for plan in &mut plans {
            check::defaults(plan, broker.capabilities());
        }
        plans.iter().try_for_each(|plan| check::capabilities(plan, broker.capabilities()))?;
        for cycle in cycles::of_outputs(&plans) {
            runner::output_cycle(broker.name(), &cycle);
        }
        broker.declare_all(&topology(&plans)).await?;
        let stop = StopOrder { token: CancellationToken::new(), deadline: Arc::new(OnceLock::new()) };
        let mut subscriptions = Vec::with_capacity(plans.len());
        for plan in &plans {
            subscriptions.push(broker.subscribe(&plan.subscribe).await?);
        }
        let shared = self.store;
        let (mut tasks, mut routes, isolation) = (JoinSet::new(), Vec::new(), Arc::default());
        for (index, ((built, plan), subscription)) in
            self.routes.into_iter().zip(plans).zip(subscriptions).enumerate()
        {
            let plan = Arc::new(plan);
            let handler = (built.handler)(broker.clone(), Arc::clone(&plan.names), stop.token.clone());
            let admission = Admission::of(&plan, broker.env());
            let breaker = admission.as_ref().and_then(Admission::breaker);
            let orders = Orders {
                handler,
                broker: broker.clone(),
                env: broker.env().clone(),
                publishes: plan.publishes.as_ref().map(|channel| Arc::from(channel.as_str())),
                timeout: plan.timeout,
                only_if: plan.retry.asks().cloned(),
                isolation: Arc::clone(&isolation),
                index,
                store: built.store.or_else(|| shared.clone()),
            };
            let status = Arc::new(Status::default());
            let control = subscription.control();
            runner::started(&plan.names, broker.name(), check::worst_case(&plan));
            routes.push(RunningRoute {
                plan: Arc::clone(&plan),
                status: Arc::clone(&status),
                control,
                breaker,
            });
            let stop = stop.clone();
            tasks.spawn(async move {
                (index, runner::run(plan, orders, admission, subscription, status, stop).await)
            });
        }
        Ok(Running::new(broker.clone(), routes, tasks, stop))
    }

    /// Starts, waits until `until` resolves (or a route ends by itself), stops with the default deadline of 30 s, and closes
    /// the broker's connections.
    ///
    /// # Errors
    /// As [`start`](Self::start), or the reason why a route ended by itself.
    pub async fn run_until(self, broker: Broker, until: impl Future<Output = ()> + Send) -> Result<Report> {
        let mut running = self.start(&broker).await?;
        let failed = tokio::select! {
            () = until => None,
            error = running.failed() => Some(error),
        };
        let report = running.stop(DRAIN).await;
        broker.close(broker.env().deadline(DRAIN)).await;
        failed.map_or(report, Err)
    }

    fn plans(&self) -> Result<Vec<Plan>> {
        let plans = self.routes.iter().map(|built| check::plan(&built.options, &built.declaration));
        let plans = plans.collect::<Result<Vec<_>>>()?;
        check::together(&plans)?;
        cycles::refuse_dead_letters(&plans)?;
        for (plan, built) in plans.iter().zip(&self.routes) {
            check::store(plan, built.store.is_some() || self.store.is_some())?;
        }
        Ok(plans)
    }
}

/// Everything that the routes read, publish to, or dead-letter to.
fn topology(plans: &[Plan]) -> Vec<Declare> {
    let mut topology: Vec<Declare> = Vec::new();
    let mut add = |declare: Declare| {
        if !topology.contains(&declare) {
            topology.push(declare);
        }
    };
    for plan in plans {
        add(Declare::Channel(plan.subscribe.channel.clone()));
        plan.publishes.iter().cloned().map(Declare::Channel).for_each(&mut add);
        let letters = plan.dead_letter.iter().chain(plan.dead_letter_for.iter().map(|(_, channel)| channel));
        letters.cloned().map(Declare::DeadLetters).for_each(&mut add);
    }
    // groups last: their channels exist by then
    plans.iter().map(|plan| Declare::Group(plan.subscribe.clone())).for_each(&mut add);
    topology
}

impl<S, L> std::fmt::Debug for Router<S, L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.routes.iter().map(|built| &built.options)).finish()
    }
}
