//! Free ports for a set of brokers.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher as _, Hasher as _};
use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Result, bail};

/// Below the ports that programs listen on by habit, we don't look.
const LOWEST: u16 = 15_000;
/// Where the system's ephemeral ports begin, if it doesn't tell.
const EPHEMERAL: u16 = 32_768;

/// `count` ports of 127.0.0.1 that nobody listens on.
///
/// They are looked for below the ephemeral ports. A broker on an ephemeral port may not get it back after it was
/// killed: a client that tries again and again to reach it is given that very port as its own by the system sooner
/// or later, is connected to itself, and holds the port.
pub(crate) fn free(count: usize) -> Result<Vec<u16>> {
    let range = usize::from(ephemeral().max(LOWEST + 1_000) - LOWEST);
    // somewhere at random, so that two runs at the same time look in different places
    let start = RandomState::new().build_hasher().finish() as usize % range;
    let mut held = Vec::with_capacity(count);
    for offset in 0..range {
        if held.len() == count {
            break;
        }
        let port = LOWEST + ((start + offset) % range) as u16;
        held.extend(TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
    }
    if held.len() < count {
        bail!("fewer than {count} ports of 127.0.0.1 are free from {LOWEST} on");
    }
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// The first ephemeral port of this system.
fn ephemeral() -> u16 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(EPHEMERAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ_can_be_bound_and_are_not_ephemeral() {
        let mut ports = free(20).expect("twenty ports are free");
        for &port in &ports {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a free port can be bound");
            assert!(port < ephemeral(), "{port} is an ephemeral port");
        }
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
    }
}
