//! Broker URLs. A parser of our own, because a list of hosts is no URL by the standard.

use std::fmt;

use serde::de::DeserializeOwned;

use super::options;
use crate::error::{Error, Result};

/// One server of a broker.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    /// Name or address; an IPv6 address without its brackets.
    pub name: String,
    /// The port, where the URL names one.
    pub port: Option<u16>,
}

impl Host {
    /// `name:port`, with the scheme's own port where none is named.
    pub fn address(&self, default_port: u16) -> String {
        let port = self.port.unwrap_or(default_port);
        if self.name.contains(':') {
            format!("[{}]:{port}", self.name)
        } else {
            format!("{}:{port}", self.name)
        }
    }
}

/// `scheme://user:password@host:port,host:port/path?option=value`. Everything after the scheme may be missing (`memory:`).
///
/// Its `Debug` and `Display` forms show no password.
///
/// ```
/// use postrider_core::BrokerUrl;
/// let url = BrokerUrl::parse("nats://ann:s3cret@one:4222,two/?connect_timeout=3s")?;
/// assert_eq!((url.scheme(), url.hosts().len(), url.user()), ("nats", 2, Some("ann")));
/// assert_eq!(url.to_string(), "nats://ann:***@one:4222,two/");
/// # Ok::<(), postrider_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    scheme: String,
    user: Option<String>,
    password: Option<String>,
    hosts: Vec<Host>,
    path: String,
    query: Vec<(String, String)>,
}

impl BrokerUrl {
    /// Reads a URL.
    ///
    /// # Errors
    /// `Config`, saying what is wrong, never repeating what may be a secret.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| Error::config("connect", format!("not a broker URL: {why}"));
        let (scheme, rest) = text
            .split_once(':')
            .ok_or_else(|| bad("it has no scheme; write `memory:`, or `scheme://host:port`"))?;
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.chars().all(legal) {
            return Err(bad("a scheme has letters, digits, `+`, `-` and `.` only"));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.find('/').map_or((rest, ""), |at| rest.split_at(at)),
            None => ("", rest),
        };
        if rest.starts_with("//") && (path.contains('@') || query.contains('@')) {
            // most likely the end of a password, of which nothing may be repeated
            return Err(bad(
                "`@` stands after `/` or `?`; in a user or password write `%2F` and `%3F` for those, elsewhere `%40` for `@`",
            ));
        }
        let (login, hosts) =
            authority.rsplit_once('@').map_or((None, authority), |(login, hosts)| (Some(login), hosts));
        let (user, password) = match login.map(|l| l.split_once(':').map_or((l, None), |(u, p)| (u, Some(p))))
        {
            Some((user, password)) => (Some(unescape(user)?), password.map(unescape).transpose()?),
            None => (None, None),
        };
        let hosts =
            if hosts.is_empty() { Vec::new() } else { hosts.split(',').map(host).collect::<Result<_>>()? };
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let query = pairs
            .enumerate()
            .map(|(at, pair)| {
                let (name, value) = pair.split_once('=').ok_or_else(|| {
                    // not what it says: it may be a part of a password with a `&` in it
                    let message = "an option of the URL has no value; write `name=value`, and `&` within a value as `%26`";
                    Error::config("connect", message).with("option", format!("number {}", at + 1))
                })?;
                Ok((unescape(name)?, unescape(value)?))
            })
            .collect::<Result<_>>()?;
        Ok(Self { scheme: scheme.to_ascii_lowercase(), user, password, hosts, path: unescape(path)?, query })
    }

    /// The scheme, in lower case.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// The user, unescaped.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The password, unescaped. Keep it out of logs and errors.
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// The servers, in order.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The path with its leading slash, unescaped; empty when there is none.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The options after `?`, read into the adapter's own struct. Its field names are the options' names; durations are
    /// written `250ms`, `3s`, `7d`.
    ///
    /// # Errors
    /// `Config`: an unknown option (with the nearest right one), one that is named twice, or a value that can't be read.
    pub fn options<T: DeserializeOwned>(&self) -> Result<T> {
        options::read(&self.query)
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.scheme)?;
        if !self.hosts.is_empty() || self.user.is_some() {
            f.write_str("//")?;
        }
        if let Some(user) = &self.user {
            // a user alone may be a token
            f.write_str(if self.password.is_some() { user } else { "***" })?;
            f.write_str(if self.password.is_some() { ":***@" } else { "@" })?;
        }
        for (i, host) in self.hosts.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let (open, close) = if host.name.contains(':') { ("[", "]") } else { ("", "") };
            write!(f, "{comma}{open}{}{close}", host.name)?;
            host.port.map_or(Ok(()), |port| write!(f, ":{port}"))?;
        }
        f.write_str(&self.path)
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn host(text: &str) -> Result<Host> {
    // without what follows the name: where the host was forgotten, that is a password
    let shown = if text.starts_with('[') { text } else { text.split(':').next().unwrap_or_default() };
    let bad = |why: &str| Error::config("connect", format!("not a broker URL: {why}")).with("host", shown);
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (name, port) =
                rest.split_once(']').ok_or_else(|| bad("an IPv6 address needs its closing bracket"))?;
            (name, port.strip_prefix(':'))
        }
        None => text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port))),
    };
    if name.is_empty() {
        return Err(bad("a host is empty"));
    }
    let port =
        port.map(|p| p.parse().map_err(|_| bad("the port is no number from 0 to 65535"))).transpose()?;
    Ok(Host { name: name.into(), port })
}

/// Undoes percent-encoding.
fn unescape(text: &str) -> Result<String> {
    let bad = || {
        Error::config(
            "connect",
            "not a broker URL: `%` must be followed by two hex digits (write `%25` for `%`)",
        )
    };
    let (mut out, mut bytes) = (Vec::with_capacity(text.len()), text.bytes());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |b: Option<u8>| char::from(b?).to_digit(16);
        let (high, low) = (digit(bytes.next()), digit(bytes.next()));
        out.push(high.zip(low).map(|(h, l)| (h * 16 + l) as u8).ok_or_else(bad)?);
    }
    String::from_utf8(out).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_are_read() {
        let url = BrokerUrl::parse("amqp://u%40x:p%2Fw@[::1]:5672,b:1/%2f?a=1&b=x%20y").unwrap();
        assert_eq!((url.user(), url.password(), url.path()), (Some("u@x"), Some("p/w"), "//"));
        assert_eq!(url.hosts()[0].address(9), "[::1]:5672");
        assert_eq!(url.hosts()[1].address(9), "b:1");
        assert_eq!(url.query, [("a".into(), "1".into()), ("b".into(), "x y".into())]);
        let bare = BrokerUrl::parse("memory:").unwrap();
        assert_eq!((bare.scheme(), bare.hosts().len(), bare.path()), ("memory", 0, ""));
    }

    #[test]
    fn no_form_shows_a_secret() {
        for text in ["nats://ann:s3cret@h", "nats://s3cret@h", "nats://h?token=s3cret"] {
            let url = BrokerUrl::parse(text).unwrap();
            assert!(!format!("{url} {url:?}").contains("s3cret"), "{url}");
        }
        for text in
            ["nats://ann:s3%cret@h", "nats://ann:secret", "nats://ann:1?secret@h", "nats://ann:1/secret@h"]
        {
            let error = BrokerUrl::parse(text).unwrap_err();
            assert!(!format!("{error:?}").contains("cret"), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, says) in [
            ("localhost", "no scheme"),
            ("n ats://h", "a scheme has"),
            ("nats://h:99999", "the port"),
            ("nats://,", "a host is empty"),
            ("nats://[::1", "closing bracket"),
            ("nats://h?x", "no value"),
        ] {
            let error = BrokerUrl::parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
