//! A connection that breaks: passes bytes on, up to a number.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// A port that leads to a server, until so many bytes have come from there.
pub(crate) struct Wire {
    address: SocketAddr,
    left: Arc<AtomicU64>,
    cut: Arc<Notify>,
}

impl Wire {
    pub(crate) async fn to(server: SocketAddr, bytes: u64) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (left, cut) = (Arc::new(AtomicU64::new(bytes)), Arc::new(Notify::new()));
        tokio::spawn({
            let (left, cut) = (Arc::clone(&left), Arc::clone(&cut));
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(carry(client, server, Arc::clone(&left), Arc::clone(&cut)));
                }
            }
        });
        Self { address, left, cut }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until it has broken.
    pub(crate) async fn cut(&self) {
        self.cut.notified().await;
    }

    /// It breaks no more.
    pub(crate) fn mend(&self) {
        self.left.store(u64::MAX, Ordering::Relaxed);
    }
}

async fn carry(mut client: TcpStream, server: SocketAddr, left: Arc<AtomicU64>, cut: Arc<Notify>) {
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let back = async {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let got = from_server.read(&mut buffer).await.unwrap_or(0);
            let allowed = left.load(Ordering::Relaxed);
            if got as u64 > allowed {
                left.store(0, Ordering::Relaxed);
                cut.notify_one();
                return;
            }
            left.fetch_sub(got as u64, Ordering::Relaxed);
            if got == 0 || to_client.write_all(&buffer[..got]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = back => {}
        _ = copy(&mut from_client, &mut to_server) => {}
    }
}
