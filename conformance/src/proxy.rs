//! A byte-level TCP proxy between a client and a broker: it can cut, stall, slice and reset.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// Listens on a port of its own and passes everything on, unless it is told otherwise. Dropping it ends every connection.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    /// Rises with every cut; connections of an older one end.
    cuts: watch::Sender<u64>,
    reset: AtomicBool,
    stalled: watch::Sender<bool>,
    refusing: AtomicBool,
    /// How many bytes go on at a time; 0: as they come.
    slice: AtomicUsize,
    connections: AtomicU64,
    bytes: AtomicU64,
    connected: Notify,
    tasks: Mutex<JoinSet<()>>,
}

impl Proxy {
    /// A proxy in front of `target`, on a free port of the loopback address.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            target,
            cuts: watch::Sender::new(0),
            reset: AtomicBool::new(false),
            stalled: watch::Sender::new(false),
            refusing: AtomicBool::new(false),
            slice: AtomicUsize::new(0),
            connections: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            connected: Notify::new(),
            tasks: Mutex::new(JoinSet::new()),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, _tasks: tasks })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes every connection; new ones are taken.
    pub fn cut(&self) {
        self.shared.reset.store(false, Relaxed);
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Ends every connection with a reset (RST) instead of an orderly close; new ones are taken.
    pub fn reset(&self) {
        self.shared.reset.store(true, Relaxed);
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Holds every byte, in both directions, as a half-open connection would; `false` lets them go on.
    pub fn stall(&self, stalled: bool) {
        self.shared.stalled.send_replace(stalled);
    }

    /// Closes new connections at once, and those there are if `refuse` begins; `false` takes them again.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refusing.store(refuse, Relaxed);
        if refuse {
            self.cut();
        }
    }

    /// Passes on at most `bytes` at a time, with a pause between; 0 as they come.
    pub fn slice(&self, bytes: usize) {
        self.shared.slice.store(bytes, Relaxed);
    }

    /// How many connections there have been.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Relaxed)
    }

    /// How many bytes came to be passed on, in both directions.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Relaxed)
    }

    /// Resolves when there have been at least `count` connections.
    pub async fn connected(&self, count: u64) {
        loop {
            let connected = self.shared.connected.notified();
            if self.connections() >= count {
                return;
            }
            connected.await;
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        if shared.refusing.load(Relaxed) {
            continue;
        }
        let connection = pass(client, Arc::clone(&shared));
        let mut tasks = shared.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(connection);
    }
}

async fn pass(client: TcpStream, shared: Arc<Shared>) {
    let Ok(server) = TcpStream::connect(shared.target).await else {
        return;
    };
    shared.connections.fetch_add(1, Relaxed);
    shared.connected.notify_waiters();
    // nothing is gathered that the other side should see at once
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let mut cuts = shared.cuts.subscribe();
    let (mut client_read, mut client_write) = client.into_split();
    let (mut server_read, mut server_write) = server.into_split();
    tokio::select! {
        _ = cuts.changed() => {}
        _ = copy(&mut client_read, &mut server_write, &shared) => {}
        _ = copy(&mut server_read, &mut client_write, &shared) => {}
    }
    if shared.reset.load(Relaxed) {
        for half in [client_write, server_write] {
            // closed without linger, the system sends an RST; a half that is dropped would say good-bye before
            let _ = half.as_ref().set_zero_linger();
            half.forget();
        }
    }
}

async fn copy(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    shared: &Shared,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    let mut stalled = shared.stalled.subscribe();
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        if stalled.wait_for(|stalled| !stalled).await.is_err() {
            return Ok(());
        }
        shared.bytes.fetch_add(count as u64, Relaxed);
        let slice = shared.slice.load(Relaxed);
        let pieces = if slice == 0 { count } else { slice };
        for piece in buffer[..count].chunks(pieces) {
            to.write_all(piece).await?;
            if slice > 0 {
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = socket.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        address
    }

    async fn round_trip(client: &mut TcpStream, bytes: &[u8]) -> io::Result<Vec<u8>> {
        client.write_all(bytes).await?;
        let mut back = vec![0; bytes.len()];
        client.read_exact(&mut back).await?;
        Ok(back)
    }

    #[tokio::test]
    async fn bytes_pass_whole_and_sliced() {
        let proxy = Proxy::start(echo().await).await.unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(round_trip(&mut client, b"hello").await.unwrap(), b"hello");
        proxy.slice(3);
        let long: Vec<u8> = (0..255).collect();
        assert_eq!(round_trip(&mut client, &long).await.unwrap(), long);
        assert_eq!(proxy.connections(), 1);
        assert!(proxy.bytes() >= 2 * 260);
    }

    #[tokio::test]
    async fn a_cut_and_a_reset_end_connections_and_new_ones_are_taken() {
        let proxy = Proxy::start(echo().await).await.unwrap();
        for reset in [false, true] {
            let mut client = TcpStream::connect(proxy.address()).await.unwrap();
            round_trip(&mut client, b"x").await.unwrap();
            if reset {
                proxy.reset();
            } else {
                proxy.cut();
            }
            let end = client.read(&mut [0; 1]).await;
            assert_eq!(end.is_err(), reset, "{end:?}");
        }
        proxy.connected(2).await;
    }

    #[tokio::test]
    async fn a_stall_holds_bytes_back_and_refusing_closes_at_once() {
        let proxy = Proxy::start(echo().await).await.unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        round_trip(&mut client, b"x").await.unwrap();
        proxy.stall(true);
        let stalled = tokio::time::timeout(Duration::from_millis(100), round_trip(&mut client, b"y")).await;
        assert!(stalled.is_err());
        proxy.stall(false);
        let mut back = [0; 1];
        client.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"y");
        proxy.refuse(true);
        let mut refused = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(refused.read(&mut [0; 1]).await.unwrap_or(0), 0);
    }
}
