//! Why a request failed.

use bytes::BytesMut;
use futures_util::StreamExt as _;
use http::StatusCode;

use crate::status::{Reason, Status};

/// Why a request did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server answered with a failure.
    #[error("{0}")]
    Status(#[from] Status),
    /// The server was not reached, or the connection broke. Worth trying again.
    #[error("talking to the API server: {}", chain(.0))]
    Transport(#[source] reqwest::Error),
    /// The answer makes no sense.
    #[error("reading the API server's answer: {0}")]
    Decode(String),
    /// The client cannot be made as configured.
    #[error("configuring the API client: {0}")]
    Config(String),
}

/// reqwest's messages leave out their sources, which hold what an operator needs.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

impl ClientError {
    /// The server's Status, if it answered with one.
    pub fn status(&self) -> Option<&Status> {
        match self {
            ClientError::Status(status) => Some(status),
            _ => None,
        }
    }

    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(Status::is_not_found)
    }

    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(Status::is_conflict)
    }

    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(Status::is_already_exists)
    }

    /// Whether the server could not be reached (as opposed to: it refused).
    pub fn is_unreachable(&self) -> bool {
        matches!(self, ClientError::Transport(_))
    }

    /// Whether the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            ClientError::Transport(_) => true,
            ClientError::Status(status) => matches!(status.code, 429 | 500 | 502 | 503 | 504 | 507),
            ClientError::Decode(_) | ClientError::Config(_) => false,
        }
    }
}

/// The error that a failed response tells: its Status, or one made up from code and body.
pub(super) async fn failure(response: reqwest::Response) -> ClientError {
    let code = response.status();
    let mut body = BytesMut::new();
    let mut stream = response.bytes_stream();
    while let Some(Ok(chunk)) = stream.next().await {
        body.extend_from_slice(&chunk);
        if body.len() > 1024 * 1024 {
            break;
        }
    }
    status_from(code, &body).into()
}

fn status_from(code: StatusCode, body: &[u8]) -> Status {
    match serde_json::from_slice::<Status>(body) {
        Ok(mut status) if status.kind == "Status" => {
            if status.code == 0 {
                status.code = code.as_u16();
            }
            return status;
        }
        _ => {}
    }
    let text = String::from_utf8_lossy(&body[..body.len().min(2048)]);
    let reason = match code.as_u16() {
        400 => Reason::BAD_REQUEST,
        401 => Reason::UNAUTHORIZED,
        403 => Reason::FORBIDDEN,
        404 => Reason::NOT_FOUND,
        409 => Reason::CONFLICT,
        410 => Reason::GONE,
        429 => Reason::TOO_MANY_REQUESTS,
        503 => Reason::SERVICE_UNAVAILABLE,
        _ => Reason::UNKNOWN,
    };
    Status::failure(
        code.as_u16(),
        reason,
        format!("the server answered {code}: {}", text.trim()),
    )
}
