//! One exchange over a connected stream.
//!
//! hyper's connection is made around the stream for one request and taken off again after the answer. So
//! an idle VMM costs a descriptor and no buffers (8 KiB and [`READ_BUFFER`] while a request runs), and no task has to be woken to
//! carry a request. Making the pair costs a few allocations.
//!
//! A stream that is given up with an answer outstanding is not closed at once but read to its end by a
//! task: Firecracker 1.12.1 writes its answers without guarding against SIGPIPE, whose handler ends the
//! whole VMM (seen with a payload over the limit, which it answers many times over, and the connection
//! closed under its hands). See also [`crate::exit_code::meaning`].

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::Verb;
use super::message::{Answer, may_quote_mmds};
use crate::error::ApiError;

/// Bytes read at once, and the most that an answer's head may have: Firecracker's heads have some 130 bytes,
/// and nearly all of its answers fit too.
const READ_BUFFER: usize = 2048;

/// Why an exchange ended without an answer.
#[derive(Debug)]
pub(super) enum Broken {
    /// Nothing of the request was written.
    BeforeSending(hyper::Error),
    /// The stream ended, or the answer is not HTTP.
    Http(hyper::Error),
    /// The answer is longer than the bound.
    TooLarge,
}

impl Broken {
    pub(super) fn into_error(self, verb: Verb, path: &str, limit: usize) -> ApiError {
        let path = path.to_owned();
        match self {
            Self::BeforeSending(source) => ApiError::Disconnected { verb, path, sent: false, source },
            Self::Http(error) if error.is_parse() => {
                let quiet = may_quote_mmds(verb, &path);
                let problem = if quiet { "it is not HTTP".to_owned() } else { error.to_string() };
                ApiError::Protocol { verb, path, problem }
            }
            Self::Http(source) => ApiError::Disconnected { verb, path, sent: true, source },
            Self::TooLarge => ApiError::TooLarge { verb, path, limit },
        }
    }
}

/// Sends `request`, returns the answer, and the stream when it can carry another request.
///
/// # Cancel safety
/// Dropping the future gives the stream up.
pub(super) async fn exchange(
    stream: UnixStream,
    request: Request<Full<Bytes>>,
    limit: usize,
) -> Result<(Answer, Option<UnixStream>), Broken> {
    let (mut sender, connection) = http1::Builder::new()
        .read_buf_exact_size(Some(READ_BUFFER))
        .handshake(TokioIo::new(stream))
        .await
        .map_err(Broken::BeforeSending)?;
    let mut carried = Carried { connection: Some(connection) };
    let mut exchanged = pin!(async {
        let response = sender.send_request(request).await.map_err(|error| match error.is_canceled() {
            true => Broken::BeforeSending(error),
            false => Broken::Http(error),
        })?;
        Ok((read(response, limit).await?, sender))
    });
    // One task drives both halves. The connection comes second, so that it finds the request, and what it
    // brings in is picked up at once. A connection that ended is taken apart: that ends the exchange too.
    let (answer, mut sender) = poll_fn(|cx| {
        if let Poll::Ready(result) = exchanged.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        carried.drive(cx);
        exchanged.as_mut().poll(cx)
    })
    .await?;
    // One more turn, in which the connection sees that the answer is complete: then it wants another
    // request, unless one of the two sides wants to close.
    let usable = poll_fn(|cx| {
        carried.drive(cx);
        Poll::Ready(matches!(sender.poll_ready(cx), Poll::Ready(Ok(()))))
    })
    .await;
    if usable && !answer.is_out_of_step() {
        return Ok((answer, carried.reclaim()));
    }
    Ok((answer, None))
}

type Connection = http1::Connection<TokioIo<UnixStream>, Full<Bytes>>;

/// A connection on its way. Unless reclaimed, its stream is read to the end, not closed.
struct Carried {
    connection: Option<Connection>,
}

impl Carried {
    fn drive(&mut self, cx: &mut Context<'_>) {
        if self.connection.as_mut().is_some_and(|live| live.poll_without_shutdown(cx).is_ready()) {
            self.give_up();
        }
    }

    /// The stream, when nothing more was read from it than the answer.
    fn reclaim(&mut self) -> Option<UnixStream> {
        let parts = self.connection.take()?.into_parts();
        let stream = parts.io.into_inner();
        if parts.read_buf.is_empty() {
            return Some(stream);
        }
        abandon(stream);
        None
    }

    fn give_up(&mut self) {
        if let Some(connection) = self.connection.take() {
            abandon(connection.into_parts().io.into_inner());
        }
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// How long a stream that was given up stays open for an answer that may still come.
const PATIENCE: Duration = Duration::from_secs(300);

/// Sends nothing more, reads and drops what still comes until the peer closes, then closes.
fn abandon(mut stream: UnixStream) {
    let run_dry = async move {
        let mut sink = [0; 1024];
        stream.shutdown().await?;
        while stream.read(&mut sink).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Outside of a runtime nothing can be read any more: the stream closes here.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        drop(runtime.spawn(tokio::time::timeout(PATIENCE, run_dry)));
    }
}

async fn read(response: Response<Incoming>, limit: usize) -> Result<Answer, Broken> {
    let status = response.status().as_u16();
    let mut incoming = response.into_body();
    let mut body = Bytes::new();
    let mut more = BytesMut::new();
    while let Some(frame) = incoming.frame().await {
        let Ok(data) = frame.map_err(Broken::Http)?.into_data() else { continue };
        if body.len() + more.len() + data.len() > limit {
            return Err(Broken::TooLarge);
        }
        // Nearly every answer comes in one piece, which is then kept as it is.
        if body.is_empty() && more.is_empty() {
            body = data;
        } else {
            if more.is_empty() {
                more.extend_from_slice(&std::mem::take(&mut body));
            }
            more.extend_from_slice(&data);
        }
    }
    let body = if more.is_empty() { body } else { more.freeze() };
    Ok(Answer { status, body })
}
