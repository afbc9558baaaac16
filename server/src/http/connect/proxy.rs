//! `proxy` of pods, services and nodes: HTTP or HTTPS to where the object lives.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};

use amphipod_api::Status;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName,
    HeaderValue, LOCATION,
};
use http::{HeaderMap, Method, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use serde_json::Value;
use tokio_rustls::TlsConnector;

use super::dial::DIAL_TIMEOUT;
use super::links::Links;
use super::pipe::{self, Onward};
use super::{BoxStream, Place, dial_error, stored};
use crate::http::app::Call;
use crate::http::body::Body;
use crate::http::respond::{self, Answer};

/// `scheme:name:port`, of which only the name must be.
#[derive(Debug, PartialEq, Eq)]
struct Named<'a> {
    scheme: &'a str,
    name: &'a str,
    port: &'a str,
}

fn split(text: &str) -> Option<Named<'_>> {
    let named = match *text.split(':').collect::<Vec<_>>().as_slice() {
        [name] => Named {
            scheme: "",
            name,
            port: "",
        },
        [name, port] => Named {
            scheme: "",
            name,
            port,
        },
        [scheme, name, port] => Named { scheme, name, port },
        _ => return None,
    };
    (!named.name.is_empty()).then_some(named)
}

/// Passes the request on to what the object stands for.
pub(super) async fn serve(call: &Call, upgrade: Option<OnUpgrade>, body: Incoming) -> Answer {
    let info = &call.info;
    let rest = raw_rest(call.uri.path(), !info.namespace.is_empty());
    if rest.is_empty() && matches!(call.method, Method::GET | Method::HEAD) && upgrade.is_none() {
        // Relative links in the page work only below the directory.
        let mut response = respond::with_body(StatusCode::MOVED_PERMANENTLY, "text/plain", "");
        if let Ok(location) = HeaderValue::from_str(&format!("{}/", call.uri.path())) {
            response.headers_mut().insert(LOCATION, location);
        }
        return Ok(response);
    }
    let named = split(&info.name).ok_or_else(|| {
        Status::bad_request(format!("invalid {} request {:?}", info.resource, info.name))
    })?;
    let mut host = named.name.to_owned();
    let target_node;
    let place = match info.resource.as_str() {
        "nodes" => Place::NodeApi { node: named.name },
        "pods" => {
            let pod = stored(call, "pods", &info.namespace, named.name)?;
            let address = pod_address(&pod, named.port)?;
            host = address.to_string();
            target_node = pod["spec"]["nodeName"].as_str().map(str::to_owned);
            Place::PodNetwork {
                node: target_node.as_deref(),
                address,
            }
        }
        _ => {
            let service = stored(call, "services", &info.namespace, named.name)?;
            let endpoint = service_address(call, &service, named.port)?;
            target_node = endpoint.node;
            Place::PodNetwork {
                node: target_node.as_deref(),
                address: endpoint.address,
            }
        }
    };
    let unreachable =
        |why: String| Status::service_unavailable(format!("error trying to reach service: {why}"));
    let mut stream = call
        .app
        .dialer
        .dial(place)
        .await
        .map_err(|why| match place {
            Place::NodeApi { .. } => dial_error(why),
            Place::PodNetwork { .. } => unreachable(why),
        })?;
    if let Place::PodNetwork { address, .. } = place
        && named.scheme == "https"
    {
        stream = tls(stream, address).await.map_err(unreachable)?;
    }
    let mut target = if rest.is_empty() {
        "/".to_owned()
    } else {
        rest.to_owned()
    };
    if let Some(query) = call.uri.query() {
        target.push('?');
        target.push_str(query);
    }
    let mut headers = call.headers.clone();
    let links = Links {
        prefix: call.uri.path()[..call.uri.path().len() - rest.len()].to_owned(),
        hosts: [
            host.clone(),
            text(&headers, &HOST).unwrap_or_default().to_owned(),
        ],
    };
    // Links are changed in pages that are not compressed.
    if text(&headers, &ACCEPT).is_some_and(|types| types.contains("text/html")) {
        headers.remove(ACCEPT_ENCODING);
    }
    if let Ok(uri) = HeaderValue::from_str(call.uri.path()) {
        headers.insert(HeaderName::from_static("x-forwarded-uri"), uri);
    }
    let onward = Onward {
        method: call.method.clone(),
        target,
        host,
        headers,
        body: Some(body),
        upgrade,
    };
    let answer = pipe::pass(stream, onward, call.stop()).await?;
    Ok(relink(answer, links))
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Makes redirections, or the links of a page, lead through the proxy again.
fn relink(answer: Response<Body>, links: Links) -> Response<Body> {
    let (mut parts, body) = answer.into_parts();
    if let Some(location) = text(&parts.headers, &LOCATION) {
        if let Some(location) = links.link(location)
            && let Ok(location) = HeaderValue::from_str(&location)
        {
            parts.headers.insert(LOCATION, location);
        }
        return Response::from_parts(parts, body);
    }
    let media_type = text(&parts.headers, &CONTENT_TYPE)
        .and_then(|t| t.split(';').next())
        .unwrap_or_default();
    let page = media_type.trim().eq_ignore_ascii_case("text/html")
        && !parts.headers.contains_key(CONTENT_ENCODING);
    let body = match body {
        Body::Proxied(incoming) if page => {
            parts.headers.remove(CONTENT_LENGTH);
            links.page(incoming)
        }
        body => body,
    };
    Response::from_parts(parts, body)
}

/// TLS to a pod. Its certificate is not verified, as Kubernetes has it: pods sign their own.
async fn tls(stream: BoxStream, address: SocketAddr) -> Result<BoxStream, String> {
    static CONFIG: LazyLock<Result<Arc<rustls::ClientConfig>, String>> = LazyLock::new(|| {
        amphipod_api::tls::unverified_client_config()
            .map(Arc::new)
            .map_err(|error| error.to_string())
    });
    let connect = TlsConnector::from(CONFIG.clone()?).connect(address.ip().into(), stream);
    match tokio::time::timeout(DIAL_TIMEOUT, connect).await {
        Ok(Ok(tls)) => Ok(Box::new(tls)),
        Ok(Err(error)) => Err(format!("{address}: {error}")),
        Err(_) => Err(format!("dial tcp {address}: TLS handshake timeout")),
    }
}

/// What stands behind `.../proxy` in the path as it came, with its leading slash. Counted by parts: namespaces and pods
/// may be called `proxy`, too.
fn raw_rest(path: &str, namespaced: bool) -> &str {
    // api, v1, namespaces, NAMESPACE, RESOURCE, NAME, proxy; or api, v1, nodes, NAME, proxy
    let parts = if namespaced { 7 } else { 5 };
    match path.match_indices('/').nth(parts) {
        Some((at, _)) => &path[at..],
        None => "",
    }
}

fn pod_address(pod: &Value, port: &str) -> Result<SocketAddr, Status> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let ip = pod["status"]["podIP"]
        .as_str()
        .and_then(|ip| ip.parse::<IpAddr>().ok())
        .ok_or_else(|| Status::bad_request("address not allowed"))?;
    let port = match port {
        "" => {
            let containers = pod["spec"]["containers"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let first = containers
                .iter()
                .find_map(|c| c["ports"][0]["containerPort"].as_u64());
            first.and_then(|p| u16::try_from(p).ok()).unwrap_or(80)
        }
        port => port
            .parse()
            .map_err(|_| Status::bad_request(format!("invalid port {port:?} for pod {name}")))?,
    };
    Ok(SocketAddr::new(ip, port))
}

/// One address behind a service, and the node it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Endpoint {
    address: SocketAddr,
    node: Option<String>,
}

/// A ready endpoint of the service's port, by number, name, or the only one.
fn service_address(call: &Call, service: &Value, port: &str) -> Result<Endpoint, Status> {
    let name = service["metadata"]["name"].as_str().unwrap_or_default();
    let none = |why: String| Status::service_unavailable(why);
    let ports = service["spec"]["ports"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let chosen = ports.iter().find(|p| {
        port.is_empty()
            || p["name"].as_str() == Some(port)
            || p["port"].as_u64().is_some_and(|n| n.to_string() == port)
    });
    let Some(chosen) = chosen else {
        return Err(none(format!(
            "no service port {port:?} found for service {name:?}"
        )));
    };
    let port_name = chosen["name"].as_str().unwrap_or_default();
    let table = call
        .app
        .registry
        .cache()
        .table("endpointslices.discovery.k8s.io");
    let mut found: Vec<Endpoint> = Vec::new();
    if let Some(table) = table {
        table.for_each(Some(&call.info.namespace), |slice| {
            if slice
                .meta
                .labels
                .get("kubernetes.io/service-name")
                .is_none_or(|owner| owner != name)
            {
                return;
            }
            collect(&slice.value(), port_name, &mut found);
        });
    }
    if found.is_empty() {
        return Err(none(format!("no endpoints available for service {name:?}")));
    }
    let at = usize::from(uuid::Uuid::new_v4().as_bytes()[0]) % found.len();
    Ok(found.swap_remove(at))
}

fn collect(slice: &Value, port_name: &str, found: &mut Vec<Endpoint>) {
    let port = slice["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|p| p["name"].as_str().unwrap_or_default() == port_name)
        .and_then(|p| u16::try_from(p["port"].as_u64()?).ok());
    let Some(port) = port else { return };
    for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
        if endpoint["conditions"]["ready"].as_bool() == Some(false) {
            continue;
        }
        let addresses = endpoint["addresses"].as_array().into_iter().flatten();
        let ips = addresses.filter_map(|a| a.as_str()?.parse::<IpAddr>().ok());
        found.extend(ips.map(|ip| Endpoint {
            address: SocketAddr::new(ip, port),
            node: endpoint["nodeName"].as_str().map(str::to_owned),
        }));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn names_carry_scheme_and_port() {
        assert_eq!(
            split("web"),
            Some(Named {
                scheme: "",
                name: "web",
                port: ""
            })
        );
        assert_eq!(
            split("web:80"),
            Some(Named {
                scheme: "",
                name: "web",
                port: "80"
            })
        );
        assert_eq!(
            split("http:web:main"),
            Some(Named {
                scheme: "http",
                name: "web",
                port: "main"
            })
        );
        assert_eq!(split(":80"), None);
        assert_eq!(split("a:b:c:d"), None);
    }

    #[test]
    fn the_proxied_path_is_passed_on_as_it_came() {
        let rest = |path| raw_rest(path, true);
        assert_eq!(rest("/api/v1/namespaces/a/pods/x/proxy/a%2Fb/"), "/a%2Fb/");
        assert_eq!(
            rest("/api/v1/namespaces/proxy/pods/proxy/proxy/proxy"),
            "/proxy"
        );
        assert_eq!(rest("/api/v1/namespaces/a/pods/x/proxy"), "");
        assert_eq!(
            raw_rest("/api/v1/nodes/box-1/proxy/metrics", false),
            "/metrics"
        );
    }

    #[test]
    fn only_ready_endpoints_of_the_port_are_chosen() {
        let slice = json!({
            "ports": [{"name": "web", "port": 8080}, {"name": "admin", "port": 9}],
            "endpoints": [
                {"addresses": ["10.42.0.2"], "conditions": {"ready": true}, "nodeName": "box-1"},
                {"addresses": ["10.42.0.3"], "conditions": {"ready": false}},
                {"addresses": ["10.42.0.4"]}
            ]
        });
        let mut found = Vec::new();
        collect(&slice, "web", &mut found);
        let wanted = [("10.42.0.2:8080", Some("box-1")), ("10.42.0.4:8080", None)];
        let wanted = wanted.map(|(address, node)| Endpoint {
            address: address.parse().unwrap(),
            node: node.map(str::to_owned),
        });
        assert_eq!(found, wanted);
    }
}
