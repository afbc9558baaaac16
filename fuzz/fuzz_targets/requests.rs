//! What stands before a body: method, path and query of a request, and the headers that choose the form of the answer. One line each.
#![no_main]

use amphipod_server::http::negotiate::{Form, Offers, accepts_gzip};
use amphipod_server::http::query::Query;
use amphipod_server::http::{RequestInfo, options};
use http::{HeaderMap, HeaderValue, Method, header};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &str| {
    let mut lines = data.splitn(4, '\n');
    let mut line = || lines.next().unwrap_or_default();
    let (method, path, query, accept) = (line(), line(), line(), line());
    let method = Method::from_bytes(method.as_bytes()).unwrap_or(Method::GET);
    let query = Query::parse(query);
    if let Ok(info) = RequestInfo::parse(&method, path, &query) {
        assert!(info.is_resource || info.resource.is_empty());
        let _ = info.resource_path();
    }
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(accept) {
        headers.insert(header::ACCEPT, value.clone());
        headers.insert(header::ACCEPT_ENCODING, value.clone());
        headers.insert(header::USER_AGENT, value);
    }
    for offers in [Offers::Views, Offers::Whole] {
        let _ = Form::negotiate(&headers, &query, offers);
    }
    let _ = accepts_gzip(&headers);
    let _ = options::list(&query);
    let _ = options::delete(&query);
    let _ = options::dry_run(&query, "CreateOptions");
    let _ = options::field_validation(&query, "CreateOptions");
    let _ = options::field_manager(&query, &headers, "CreateOptions");
});
