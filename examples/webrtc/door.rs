//! Connections: no more at once than there are places, and none that holds one in silence.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// Far from the descriptors that a process may have; a page takes two or three.
pub const PLACES: usize = 128;
/// An open page says something every five seconds.
pub const SILENCE: Duration = Duration::from_secs(30);

/// A listener that lets so many in.
pub struct Door {
    listener: TcpListener,
    places: Arc<Semaphore>,
    silence: Duration,
}

impl Door {
    pub fn new(listener: TcpListener, places: usize, silence: Duration) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(places)), silence }
    }
}

impl Listener for Door {
    type Io = Guest;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guest, SocketAddr) {
        let place = self.places.clone().acquire_owned().await.ok(); // nobody closes it
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let silence = Box::pin(sleep(self.silence));
        (Guest { stream, patience: self.silence, silence, _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when nothing comes for too long; its place is free then.
pub struct Guest {
    stream: TcpStream,
    patience: Duration,
    silence: Pin<Box<Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(context, into) {
            let latest = Instant::now() + self.patience;
            self.silence.as_mut().reset(latest);
            return Poll::Ready(read);
        }
        ready!(self.silence.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn who_says_nothing_gives_its_place_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut door = Door::new(listener, 1, Duration::from_millis(100));
        let _silent = TcpStream::connect(address).await.unwrap();
        let (mut guest, _) = door.accept().await;
        let _next = TcpStream::connect(address).await.unwrap();
        assert!(timeout(Duration::from_millis(50), door.accept()).await.is_err(), "it is full");
        let mut bytes = [0; 8];
        let mut into = ReadBuf::new(&mut bytes);
        let read = poll_fn(|context| Pin::new(&mut guest).poll_read(context, &mut into));
        let read = timeout(PATIENCE, read).await.unwrap();
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(guest);
        timeout(PATIENCE, door.accept()).await.unwrap();
    }
}
