//! Ports for the brokers of tests' own.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::sync::{Mutex, PoisonError};

use postrider_core::Env;

/// Below those that systems give to connections (Linux from 32,768 on): one of these that is free now may be taken by any connection
/// before the broker has it.
const PORTS: std::ops::Range<u16> = 10_000..30_000;

/// Given out here.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port of 127.0.0.1 for a broker to be started, which nobody has at the moment; another one each time.
pub fn free_port() -> u16 {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let env = Env::system();
    let any =
        std::iter::repeat_with(|| PORTS.start + (env.random() % u64::from(PORTS.end - PORTS.start)) as u16);
    let free = |port: &u16| !given.contains(port) && TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let port = any.take(1_000).find(free).expect("a free port");
    given.insert(port);
    port
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once_and_is_free() {
        let ports: BTreeSet<_> = (0..50).map(|_| free_port()).collect();
        assert_eq!(ports.len(), 50);
        assert!(
            ports.iter().all(|port| PORTS.contains(port) && TcpListener::bind(("127.0.0.1", *port)).is_ok())
        );
    }
}
