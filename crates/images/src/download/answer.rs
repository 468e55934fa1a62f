//! A question whose answer is more than a file: its status, headers and a small body.

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, Response, StatusCode};
use url::Url;

use super::http::{refused, shown};
use super::rounds::Rounds;
use super::{DownloadError, Downloader, Request};

/// What a server said.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The error of an answer that was not what was hoped for.
    pub(crate) fn refused(&self, url: &Url) -> DownloadError {
        let (url, status) = (shown(url), self.status.as_u16());
        match status {
            401 | 403 => DownloadError::Unauthorized { url, status },
            404 | 410 => DownloadError::NotFound { url, status },
            _ => DownloadError::Status { url, status },
        }
    }
}

impl Downloader {
    /// Asks for the first of `request.urls` by GET, or by POST where there is a form, with the patience of a download.
    /// Any status is an answer but 429 and 5xx. Digest and size of the request are not looked at.
    ///
    /// # Errors
    /// See [`DownloadError`].
    pub(crate) async fn answer(
        &self,
        request: &Request,
        form: Option<&[(&str, &str)]>,
    ) -> Result<Answer, DownloadError> {
        let body = form
            .map(|pairs| url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish());
        let mut rounds = Rounds::new(self, request);
        loop {
            for (index, url) in rounds.open() {
                match self.answer_of(request, url, body.as_deref()).await {
                    Ok(answer) => return Ok(answer),
                    Err(error) => rounds.failed(index, error)?,
                }
            }
            rounds.pause(false).await?;
        }
    }

    async fn answer_of(
        &self,
        request: &Request,
        url: &Url,
        form: Option<&str>,
    ) -> Result<Answer, DownloadError> {
        let http = self.http()?;
        let mut response = match form {
            None => http.ask(Method::GET, url, &request.headers, &HeaderMap::new()).await?.0,
            Some(form) => {
                let mut headers = request.headers.clone();
                let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
                headers.insert(reqwest::header::CONTENT_TYPE, kind);
                http.post(url, headers, form.to_owned()).await?
            }
        };
        if response.status() == StatusCode::TOO_MANY_REQUESTS || response.status().is_server_error() {
            return Err(refused(url, &response));
        }
        let body = self.small_body(url, &mut response, request.max_size).await?;
        Ok(Answer { status: response.status(), headers: response.headers().clone(), body })
    }

    async fn small_body(
        &self,
        url: &Url,
        response: &mut Response,
        max: u64,
    ) -> Result<Vec<u8>, DownloadError> {
        let stall = self.shared.options.stall;
        let mut body = Vec::new();
        loop {
            let got = body.len() as u64;
            let chunk = tokio::time::timeout(stall, response.chunk())
                .await
                .map_err(|_| DownloadError::Stalled { url: shown(url), after: stall, got })?
                .map_err(|_| DownloadError::ShortBody { url: shown(url), got, expected: None })?;
            match chunk {
                Some(bytes) if got + bytes.len() as u64 > max => {
                    return Err(DownloadError::TooLarge { url: shown(url), max });
                }
                Some(bytes) => body.extend_from_slice(&bytes),
                None => return Ok(body),
            }
        }
    }
}
