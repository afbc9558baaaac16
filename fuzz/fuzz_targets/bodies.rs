//! Request bodies in JSON, YAML and protobuf, from the bytes to the object that would be stored: decoding, defaults, admission,
//! preparation, validation; and the row that kubectl would show.
#![no_main]

use amphipod_fuzz::server;
use amphipod_server::http::request_body;
use amphipod_server::registry::Input;
use amphipod_server::resources::schema::yaml;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fn headers(body: &[u8]) -> HeaderMap {
    let media_type = match body.trim_ascii_start().first() {
        _ if body.starts_with(b"k8s\0") => "application/vnd.kubernetes.protobuf",
        Some(b'{') => "application/json",
        _ => "application/yaml",
    };
    HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(media_type))])
}

/// What the body says it is; the URL would say it in a real request.
fn document(input: &Input) -> Option<Value> {
    match input {
        Input::Json(bytes) => serde_json::from_slice(bytes).ok(),
        Input::Yaml(bytes) => {
            yaml::check(bytes).ok()?;
            serde_yaml_ng::from_slice(bytes).ok()
        }
        Input::Value(value) => Some(value.clone()),
    }
}

fuzz_target!(|data: &[u8]| {
    let server = server();
    let (headers, bytes) = (headers(data), Bytes::copy_from_slice(data));
    let catalog = server.registry.catalog();
    let _ = request_body::value(&headers, bytes.clone(), "Binding", catalog);
    let Ok(input) = request_body::input(&headers, bytes, catalog) else {
        return;
    };
    let descriptor = document(&input)
        .and_then(|document| server.descriptor_of(&document))
        .or_else(|| catalog.by_kind("", "v1", "Pod"));
    let Some(descriptor) = descriptor.filter(|descriptor| descriptor.stored) else {
        return;
    };
    let context = server.dry_run(&descriptor);
    match server.block_on(server.registry.create(&context, input)) {
        Ok(object) => {
            let value = object.value();
            let mut again = value.clone();
            descriptor.strategy.default(&mut again);
            assert_eq!(value, again, "defaults change an object that has them");
            descriptor.strategy.row(&value, jiff::Timestamp::UNIX_EPOCH);
            descriptor.field_values(&value);
        }
        Err(status) => assert!(status.code >= 400, "{status:?}"),
    }
});
