//! From a URL to a connected broker: which scheme is whose, and what to say when it is nobody's.

mod options;
mod url;

use std::fmt;

pub use options::OptionsError;
pub use url::{BrokerUrl, Host};

use crate::broker::Broker;
use crate::env::{BoxFuture, Env};
use crate::error::{Error, Result};

/// Connects to brokers of some schemes; an adapter has one.
pub trait Connector: Send + Sync + 'static {
    /// The URL schemes it takes, without `:`.
    fn schemes(&self) -> &'static [&'static str];

    /// Connects, within the URL's connect deadline (10 s unless set).
    ///
    /// # Errors
    /// `Config` for a bad option, `Connection` or `Timeout` when nobody answers (naming host and port, never the password),
    /// `Unauthorized` when the credentials are refused.
    fn connect<'a>(&'a self, url: &'a BrokerUrl, env: Env) -> BoxFuture<'a, Result<Broker>>;
}

/// The connectors of a program, and the schemes that it could have had.
#[derive(Default)]
pub struct Registry {
    connectors: Vec<Box<dyn Connector>>,
    known: &'static [(&'static str, &'static str)],
}

impl Registry {
    /// No connector yet. `known` lists schemes and the Cargo feature that brings each, for the error that names it.
    pub fn new(known: &'static [(&'static str, &'static str)]) -> Self {
        Self { connectors: Vec::new(), known }
    }

    /// Adds a connector.
    pub fn with(mut self, connector: impl Connector) -> Self {
        self.connectors.push(Box::new(connector));
        self
    }

    /// The schemes that can be connected to.
    pub fn schemes(&self) -> impl Iterator<Item = &'static str> {
        self.connectors.iter().flat_map(|c| c.schemes().iter().copied())
    }

    /// Connects to the broker that the URL names.
    ///
    /// # Errors
    /// An unknown scheme lists those compiled in, and names the feature to add if there is one; else see
    /// [`Connector::connect`].
    pub async fn connect(&self, url: &str, env: Env) -> Result<Broker> {
        let url = BrokerUrl::parse(url)?;
        let connector = self.connectors.iter().find(|c| c.schemes().contains(&url.scheme()));
        match connector {
            Some(connector) => connector.connect(&url, env).await,
            None => Err(self.unknown(url.scheme())),
        }
    }

    fn unknown(&self, scheme: &str) -> Error {
        let mut compiled: Vec<_> = self.schemes().map(|s| format!("`{s}:`")).collect();
        compiled.sort_unstable();
        let compiled = if compiled.is_empty() { "none".into() } else { compiled.join(", ") };
        let next = match self.known.iter().find(|(known, _)| *known == scheme) {
            Some((_, feature)) => {
                format!("it needs the Cargo feature `{feature}`: add it to the dependency on postrider")
            }
            None => match nearest(scheme, self.known.iter().map(|(s, _)| *s).chain(self.schemes())) {
                Some(near) => format!("did you mean `{near}:`?"),
                None => "no such broker is known".into(),
            },
        };
        let message = format!("the scheme `{scheme}:` is not compiled in; {next} (compiled in: {compiled})");
        Error::config("connect", message)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.schemes()).finish()
    }
}

/// The candidate that `word` most likely meant, if one is near enough.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
