//! One request from its head to its answer: who, what, may they, do it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use amphipod_api::join::ClusterFacts;
use amphipod_api::{GroupResource, Status};
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response};
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::body::Body;
use super::connect::NodeDialer;
use super::health::Health;
use super::holding::{Budget, Held, SMALL};
use super::metrics::Metrics;
use super::negotiate::{Form, Offers, accepts_gzip};
use super::query::Query;
use super::tunnel::{self, Tunnels};
use super::{RequestInfo, compress, paths, request_body, resource, respond};
use crate::auth::authn::{CertificateUser, Impersonation, TokenAuthenticator, bearer};
use crate::auth::removed::RemovedNodes;
use crate::auth::{Attributes, Authorizer, UserInfo};
use crate::registry::Registry;

static AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// What every request may need. One for the life of the server.
pub struct App {
    pub registry: Arc<Registry>,
    pub authorizer: Arc<Authorizer>,
    pub tokens: Arc<TokenAuthenticator>,
    pub dialer: Arc<dyn NodeDialer>,
    pub tunnels: Arc<Tunnels>,
    pub removed: Arc<RemovedNodes>,
    /// What agents are told of the cluster, and the node of this very box, which cannot be removed.
    pub cluster: ClusterFacts,
    pub own_node: String,
    pub health: Health,
    pub metrics: Metrics,
    /// Places for requests that do not stream; who finds none is told to come again.
    pub places: Semaphore,
    /// Large bodies that are coming, and large answers that are not yet taken.
    pub bodies: Budget,
    pub answers: Budget,
    /// Large answers are written one at a time, so that small ones are not kept waiting.
    pub writing: Semaphore,
    /// For a request that does not stream: to come, and then to be worked on.
    pub request_timeout: Duration,
    /// Ends streams when the server stops.
    pub stop: CancellationToken,
}

/// Requests worked on at once, as upstream's default for reads.
pub const PLACES: usize = 400;

/// One request under way: what handlers need beside the body.
pub struct Call {
    pub app: Arc<App>,
    pub user: Arc<UserInfo>,
    pub info: RequestInfo,
    pub query: Query,
    pub method: Method,
    pub headers: HeaderMap,
    /// Path and query as they came, percent-encoded.
    pub uri: http::Uri,
}

impl Call {
    /// The form in which to answer.
    ///
    /// # Errors
    /// 406
    pub fn form(&self, offers: Offers) -> Result<Form, Status> {
        Form::negotiate(&self.headers, &self.query, offers)
    }

    /// Ends streams of this caller: when the server stops, and those of a node also when it is removed.
    pub fn stop(&self) -> CancellationToken {
        match self.user.node_name() {
            Some(node) => self.app.removed.gate(node),
            None => self.app.stop.clone(),
        }
    }

    /// The question to the authorisers about this request.
    fn ask(&self) -> Attributes<'_> {
        let info = &self.info;
        Attributes {
            user: &self.user,
            verb: info.verb,
            group: &info.group,
            version: &info.version,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name: &info.name,
            field_selector: self.query.get("fieldSelector").unwrap_or_default(),
            path: if info.is_resource { "" } else { &info.path },
        }
    }
}

impl App {
    /// Answers a request. Never fails: what goes wrong is an answer, too.
    pub async fn handle(
        self: Arc<Self>,
        certificate: Option<Arc<CertificateUser>>,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let started = Instant::now();
        let (head, body) = request.into_parts();
        let query = Query::parse(head.uri.query().unwrap_or_default());
        let method = head.method.clone();
        let audit_id = audit_id(&head.headers);
        let gzip = accepts_gzip(&head.headers);
        let fallback = Form::negotiate(&head.headers, &query, Offers::Whole).unwrap_or(Form::JSON);
        let mut verb = "";
        let answer = match RequestInfo::parse(&head.method, head.uri.path(), &query) {
            Err(message) => Err(Status::bad_request(message)),
            Ok(info) => {
                verb = info.verb;
                self.clone()
                    .answer(certificate, info, query, head, body)
                    .await
            }
        };
        let (mut response, held) = answer
            .and_then(|mut response| {
                let holds = response.body().holds();
                let large = holds > SMALL;
                // What took long to write was counted before.
                let before = response.extensions_mut().remove::<Arc<Held>>();
                let held = match before {
                    Some(held) => Some(held),
                    None if large => Some(Arc::new(self.answers.take(holds)?)),
                    None => None,
                };
                Ok((response, held))
            })
            .unwrap_or_else(|status| (respond::status(fallback, &status), None));
        response.headers_mut().insert(AUDIT_ID.clone(), audit_id);
        self.metrics
            .request(verb, response.status(), started.elapsed());
        if method == Method::HEAD {
            let length = response.body().length();
            *response.body_mut() = Body::Empty;
            if let Some(length) = length {
                response
                    .headers_mut()
                    .insert(http::header::CONTENT_LENGTH, length.into());
            }
            return response;
        }
        let response = if gzip {
            compress::maybe(response)
        } else {
            response
        };
        match held {
            Some(held) => response.map(|body| Body::Counted(Box::new(body), held)),
            None => response,
        }
    }

    async fn answer(
        self: Arc<Self>,
        certificate: Option<Arc<CertificateUser>>,
        info: RequestInfo,
        query: Query,
        head: http::request::Parts,
        body: Incoming,
    ) -> respond::Answer {
        let user = self.authenticate(certificate.as_deref(), &info, &head.headers)?;
        let mut extensions = head.extensions;
        let call = Call {
            app: self,
            user,
            info,
            query,
            method: head.method,
            headers: head.headers,
            uri: head.uri,
        };
        let ask = call.ask();
        if let Err(reason) = call.app.authorizer.authorize(&ask) {
            return Err(forbidden(&ask, &reason));
        }
        if resource::is_long(&call) {
            return resource::serve_long(call, extensions, body).await;
        }
        if let Some(node) = paths::tunnel_of(&call.info) {
            return tunnel::serve(&call, node, &mut extensions);
        }
        let app = call.app.clone();
        // A body that comes slowly takes no place from others.
        let reading = request_body::read(&call.headers, body, &app.bodies);
        let (body, _held) = within(app.request_timeout, reading).await?;
        let Ok(_place) = app.places.try_acquire() else {
            return Err(Status::too_many_requests(
                "Too many requests, please try again later.",
                1,
            ));
        };
        let work = async move {
            if call.info.is_resource {
                resource::serve(call, body).await
            } else {
                paths::serve(call).await
            }
        };
        within(app.request_timeout, work).await
    }

    fn authenticate(
        &self,
        certificate: Option<&CertificateUser>,
        info: &RequestInfo,
        headers: &HeaderMap,
    ) -> Result<Arc<UserInfo>, Status> {
        let user = if let Some(shown) = certificate {
            let node = shown.user().node_name();
            if node.is_some_and(|node| self.removed.refuses(node, shown.made())) {
                tracing::debug!(node, "a certificate of a removed node was refused");
                return Err(Status::unauthorized());
            }
            // A box that was away for long, or whose clock or ours was set, gets a new certificate by its old one, and nothing else.
            let renews = node.is_some() && info.resource == "certificatesigningrequests";
            if shown.is_over() && !renews {
                tracing::debug!(user = shown.user().name, "a certificate is over");
                return Err(Status::unauthorized());
            }
            shown.user().clone()
        } else if let Some(token) = bearer(headers) {
            match self.tokens.authenticate(&token, &[]) {
                Ok((user, _)) => Arc::new(user),
                Err(why) => {
                    tracing::debug!(%why, "a token was refused");
                    return Err(Status::unauthorized());
                }
            }
        } else {
            Arc::new(UserInfo::anonymous())
        };
        match Impersonation::read(headers) {
            Ok(None) => Ok(user),
            Ok(Some(wanted)) => {
                self.authorizer
                    .may_impersonate(&user, &wanted)
                    .map_err(|message| {
                        Status::failure(403, amphipod_api::Reason::FORBIDDEN, message)
                    })?;
                Ok(Arc::new(wanted.user_info()))
            }
            Err(why) => Err(Status::internal_error(why)),
        }
    }
}

/// What is done in time.
///
/// # Errors
/// Its own, and 504.
async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Err(Status::timeout(
            "request did not complete within requested timeout - context deadline exceeded",
            0,
        )),
    }
}

/// The `Forbidden` status of a refused request.
pub fn forbidden(ask: &Attributes<'_>, reason: &str) -> Status {
    let mut why = ask.refusal();
    if !reason.is_empty() {
        why.push_str(": ");
        why.push_str(reason);
    }
    Status::forbidden(&GroupResource::new(ask.group, ask.resource), ask.name, why)
}

/// The client's id for the request, or a fresh one.
fn audit_id(headers: &HeaderMap) -> HeaderValue {
    if let Some(id) = headers.get(&AUDIT_ID)
        && (1..=64).contains(&id.len())
    {
        return id.clone();
    }
    let mut buffer = [0; uuid::fmt::Hyphenated::LENGTH];
    let id: &str = uuid::Uuid::new_v4().hyphenated().encode_lower(&mut buffer);
    HeaderValue::from_str(id).unwrap_or(HeaderValue::from_static("-"))
}
