//! One exchange over a connected stream.
//!
//! hyper's connection is made around the stream for one request and taken off again after the answer. So
//! an idle VMM costs a descriptor and no buffers (hyper's are 16 KiB), no task has to be woken to carry a
//! request, and a dropped exchange drops the stream with it. Making the pair costs a few allocations.

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
                let quiet = may_quote_mmds(&path);
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
/// Dropping the future closes the stream.
pub(super) async fn exchange(
    stream: UnixStream,
    request: Request<Full<Bytes>>,
    limit: usize,
) -> Result<(Answer, Option<UnixStream>), Broken> {
    let (mut sender, connection) =
        http1::Builder::new().handshake(TokioIo::new(stream)).await.map_err(Broken::BeforeSending)?;
    let mut connection = Some(connection);
    let mut exchanged = pin!(async {
        let response = sender.send_request(request).await.map_err(|error| match error.is_canceled() {
            true => Broken::BeforeSending(error),
            false => Broken::Http(error),
        })?;
        Ok((read(response, limit).await?, sender))
    });
    // One task drives both halves. The connection comes second, so that it finds the request, and what it
    // brings in is picked up at once. A connection that ended is dropped: that ends the exchange too.
    let (answer, mut sender) = poll_fn(|cx| {
        if let Poll::Ready(result) = exchanged.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        drive(&mut connection, cx);
        exchanged.as_mut().poll(cx)
    })
    .await?;
    // One more turn, in which the connection sees that the answer is complete: then it wants another
    // request, unless one of the two sides wants to close.
    let usable = poll_fn(|cx| {
        drive(&mut connection, cx);
        Poll::Ready(matches!(sender.poll_ready(cx), Poll::Ready(Ok(()))))
    })
    .await;
    let Some(parts) = connection.map(http1::Connection::into_parts) else { return Ok((answer, None)) };
    let stream = parts.io.into_inner();
    if answer.is_out_of_step() {
        run_dry(stream).await;
        return Ok((answer, None));
    }
    let in_step = usable && parts.read_buf.is_empty();
    Ok((answer, in_step.then_some(stream)))
}

/// Ends a connection whose peer is still busy with what it takes for requests, and sees it close first.
///
/// Firecracker 1.12.1 was seen to reset the *next* connection now and then when such a one was closed
/// under its hands. Waits 250 ms at most: the answer is known, only the next request is at stake.
async fn run_dry(mut stream: UnixStream) {
    let dry = async {
        let mut sink = [0; 4096];
        stream.shutdown().await?;
        while stream.read(&mut sink).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Any end will do: closed, broken, or given up.
    let _ = tokio::time::timeout(Duration::from_millis(250), dry).await;
}

type Connection = http1::Connection<TokioIo<UnixStream>, Full<Bytes>>;

fn drive(connection: &mut Option<Connection>, cx: &mut Context<'_>) {
    if connection.as_mut().is_some_and(|live| live.poll_without_shutdown(cx).is_ready()) {
        *connection = None;
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
