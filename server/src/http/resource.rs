//! Requests for resources: the path's resource and verb become a verb of the registry.

use std::sync::Arc;

use amphipod_api::Status;
use bytes::Bytes;
use http::{Response, StatusCode};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde_json::Value;

use super::app::Call;
use super::body::Body;
use super::negotiate::{Encoding, Form, Offers, View};
use super::respond::{self, Answer};
use super::view::{IncludeObject, Viewer};
use super::{connect, options, request_body, watch};
use crate::auth::{reviews, token_request};
use crate::cache::Object;
use crate::registry::{Context, DeleteOptions, GetOptions, Input, PatchType};
use crate::resources::{Descriptor, SubresourceKind, Verb, Verbs};

/// Whether the answer streams, so that no timeout applies.
pub fn is_long(call: &Call) -> bool {
    let info = &call.info;
    info.is_resource
        && (info.verb == "watch"
            || matches!(
                info.subresource.as_str(),
                "log" | "exec" | "attach" | "portforward" | "proxy"
            )
            || (info.resource == "nodes" && info.verb == "proxy"))
}

/// The resource of the path, if its scope and the path's namespace fit.
fn descriptor(call: &Call) -> Result<Arc<Descriptor>, Status> {
    let info = &call.info;
    let found = call
        .app
        .registry
        .catalog()
        .by_plural(&info.group, &info.version, &info.resource)
        .ok_or_else(Status::no_such_resource)?;
    let fits = match (found.namespaced(), info.namespace.is_empty()) {
        (true, false) => true,
        // Over all namespaces there are only lists and watches.
        (true, true) => {
            if !info.name.is_empty() && !info.name_from_selector && !info.watch_path {
                return Err(Status::no_such_resource());
            }
            let answers_questions = info.verb == "create" && !found.stored;
            if !matches!(info.verb, "list" | "watch") && !answers_questions {
                return Err(Status::method_not_allowed());
            }
            true
        }
        (false, true) => true,
        (false, false) => info.resource == "namespaces" && info.namespace == info.name,
    };
    if fits {
        Ok(found)
    } else {
        Err(Status::no_such_resource())
    }
}

/// The registry's context of a request.
fn context(call: &Call, descriptor: Arc<Descriptor>) -> Context {
    let namespace = if descriptor.namespaced() {
        call.info.namespace.clone()
    } else {
        String::new()
    };
    let mut cx = Context::new(call.user.clone(), descriptor, namespace);
    if !call.info.subresource.is_empty() {
        cx.subresource = Some(call.info.subresource.clone());
    }
    cx
}

/// The same for writes: dry run, field manager, field validation.
fn write_context(
    call: &Call,
    descriptor: Arc<Descriptor>,
    options_kind: &str,
) -> Result<Context, Status> {
    let mut cx = context(call, descriptor);
    cx.dry_run = options::dry_run(&call.query, options_kind)?;
    cx.field_manager = options::field_manager(&call.query, &call.headers, options_kind)?;
    cx.field_validation = options::field_validation(&call.query, options_kind)?;
    Ok(cx)
}

/// Watches and the streams to nodes.
///
/// # Errors
/// Whatever is refused before the stream begins.
pub async fn serve_long(call: Call, mut extensions: http::Extensions, body: Incoming) -> Answer {
    let descriptor = descriptor(&call)?;
    if call.info.verb != "watch" {
        return match subresource(&descriptor, &call.info.subresource)?.what {
            SubresourceKind::Connect(what) => connect::serve(&call, what, extensions, body).await,
            _ => Err(Status::no_such_resource()),
        };
    }
    if !descriptor.verbs.contains(Verb::Watch) {
        return Err(Status::method_not_allowed());
    }
    let form = call.form(Offers::Views)?;
    let mut list = options::list(&call.query)?;
    if call.info.watch_path && !call.info.name.is_empty() {
        list.field_selector = amphipod_api::FieldSelector::equals("metadata.name", &call.info.name);
    }
    let cx = context(&call, descriptor);
    watch::serve(&call, cx, list, form, &mut extensions).await
}

/// Everything else.
///
/// # Errors
/// Whatever is refused.
pub async fn serve(call: Call, body: Bytes) -> Answer {
    let descriptor = descriptor(&call)?;
    if !call.info.subresource.is_empty() {
        return part(&call, descriptor, body).await;
    }
    let allowed = |verb| descriptor.verbs.contains(verb);
    match call.info.verb {
        "get" if allowed(Verb::Get) => get(&call, descriptor).await,
        "list" if allowed(Verb::List) => list(&call, descriptor).await,
        "create" if allowed(Verb::Create) => create(&call, descriptor, body).await,
        "update" if allowed(Verb::Update) => update(&call, descriptor, body).await,
        "patch" if allowed(Verb::Patch) => patch(&call, descriptor, body).await,
        "delete" if allowed(Verb::Delete) => delete(&call, descriptor, body).await,
        "deletecollection" if allowed(Verb::DeleteCollection) => {
            delete_collection(&call, descriptor, body).await
        }
        _ => Err(Status::method_not_allowed()),
    }
}

fn subresource<'a>(
    descriptor: &'a Descriptor,
    name: &str,
) -> Result<&'a crate::resources::Subresource, Status> {
    descriptor
        .subresource(name)
        .ok_or_else(Status::no_such_resource)
}

/// A subresource that is not a stream.
async fn part(call: &Call, descriptor: Arc<Descriptor>, body: Bytes) -> Answer {
    let found = subresource(&descriptor, &call.info.subresource)?;
    let (what, verbs): (SubresourceKind, Verbs) = (found.what.clone(), found.verbs);
    let allowed = |verb| verbs.contains(verb);
    match (what, call.info.verb) {
        (SubresourceKind::Connect(_), _) => Err(Status::no_such_resource()),
        (SubresourceKind::Binding, "create") => {
            let cx = write_context(call, descriptor, "CreateOptions")?;
            let binding =
                request_body::value(&call.headers, body, "Binding", call.app.registry.catalog())?;
            let status = call
                .app
                .registry
                .bind(&cx, &call.info.name, &binding)
                .await?;
            Ok(respond::status(call.form(Offers::Whole)?, &status))
        }
        (SubresourceKind::Eviction, "create") => {
            let cx = write_context(call, descriptor, "CreateOptions")?;
            let eviction =
                request_body::value(&call.headers, body, "Eviction", call.app.registry.catalog())?;
            let status = call
                .app
                .registry
                .evict(&cx, &call.info.name, &eviction)
                .await?;
            Ok(respond::status(call.form(Offers::Whole)?, &status))
        }
        (SubresourceKind::Token, "create") => {
            let request = request_body::value(
                &call.headers,
                body,
                "TokenRequest",
                call.app.registry.catalog(),
            )?;
            let (namespace, name) = (&call.info.namespace, &call.info.name);
            let dry_run = options::dry_run(&call.query, "CreateOptions")?;
            let app = &call.app;
            let answer = token_request::create(
                &app.tokens,
                app.registry.cache(),
                namespace,
                name,
                request,
                dry_run,
            )?;
            Ok(respond::document(
                StatusCode::CREATED,
                call.form(Offers::Whole)?,
                &answer,
            ))
        }
        (_, "get") if allowed(Verb::Get) => get(call, descriptor).await,
        (_, "update") if allowed(Verb::Update) => update(call, descriptor, body).await,
        (_, "patch") if allowed(Verb::Patch) => patch(call, descriptor, body).await,
        (_, "create") if allowed(Verb::Create) => create(call, descriptor, body).await,
        _ => Err(Status::method_not_allowed()),
    }
}

async fn get(call: &Call, descriptor: Arc<Descriptor>) -> Answer {
    let form = call.form(Offers::Views)?;
    let cx = context(call, descriptor);
    let options = GetOptions {
        resource_version: call
            .query
            .get("resourceVersion")
            .unwrap_or_default()
            .to_owned(),
    };
    let object = call
        .app
        .registry
        .get(&cx, &call.info.name, &options)
        .await?;
    answer_object(call, &cx, form, StatusCode::OK, &object)
}

async fn list(call: &Call, descriptor: Arc<Descriptor>) -> Answer {
    let form = call.form(Offers::Views)?;
    let include = IncludeObject::read(&call.query)?;
    let options = options::list(&call.query)?;
    let cx = context(call, descriptor);
    let listed = call.app.registry.list(&cx, &options).await?;
    let count = listed.items.len();
    if form.view == View::Whole && form.encoding == Encoding::Json && !form.pretty {
        return Ok(whole_list(form, listed.chunks(&cx.descriptor)));
    }
    let bytes: usize = listed.items.iter().map(|object| object.size()).sum();
    let write = move || {
        if form.view == View::Whole {
            return whole_list(form, listed.chunks(&cx.descriptor));
        }
        let viewer = Viewer {
            descriptor: &cx.descriptor,
            view: form.view,
            include,
            now: Timestamp::now(),
        };
        let list = viewer.list(&listed.items, &listed.metadata());
        respond::json_bytes(StatusCode::OK, form, list)
    };
    if bytes < LONG_TO_WRITE {
        return Ok(write());
    }
    // Tables and metadata are smaller than their objects, most of all when these are large.
    let held = match (form.view, include) {
        (View::Whole, _) | (_, IncludeObject::Object) => bytes,
        _ => bytes.min(count << 10),
    };
    let held = Arc::new(call.app.answers.take(held as u64)?);
    let _turn = call.app.writing.acquire().await;
    let written = tokio::task::spawn_blocking(write).await;
    let mut response = written.map_err(|error| Status::internal_error(error.to_string()))?;
    response.extensions_mut().insert(held);
    Ok(response)
}

/// Objects of so many bytes are written for one client beside other work, and one client after the other.
const LONG_TO_WRITE: usize = 512 << 10;

/// A list as pieces that share the objects' bytes.
fn whole_list(form: Form, chunks: Vec<Bytes>) -> Response<Body> {
    if form.encoding == Encoding::Json && !form.pretty {
        return respond::with_body(StatusCode::OK, "application/json", Body::chunks(chunks));
    }
    respond::json_bytes(StatusCode::OK, form, Bytes::from(chunks.concat()))
}

async fn create(call: &Call, descriptor: Arc<Descriptor>, body: Bytes) -> Answer {
    let form = call.form(Offers::Views)?;
    let cx = write_context(call, descriptor, "CreateOptions")?;
    if !cx.descriptor.stored {
        return review(call, &cx, body).await;
    }
    let input = request_body::input(&call.headers, body, call.app.registry.catalog())?;
    let object = call.app.registry.create(&cx, input).await?;
    answer_object(call, &cx, form, StatusCode::CREATED, &object)
}

/// Kinds whose create computes an answer.
async fn review(call: &Call, cx: &Context, body: Bytes) -> Answer {
    let form = call.form(Offers::Whole)?;
    let descriptor = &cx.descriptor;
    if descriptor.group.is_empty() && descriptor.plural == "bindings" {
        let binding =
            request_body::value(&call.headers, body, "Binding", call.app.registry.catalog())?;
        let pods = call
            .app
            .registry
            .context(&call.user, "pods", &cx.namespace)?
            .with_subresource("binding");
        let name = amphipod_api::meta::name(&binding).to_owned();
        let status = call.app.registry.bind(&pods, &name, &binding).await?;
        return Ok(respond::status(form, &status));
    }
    let decoded = match request_body::input(&call.headers, body, call.app.registry.catalog())? {
        Input::Json(bytes) => descriptor.schema().decode_json(&bytes),
        Input::Yaml(bytes) => descriptor.schema().decode_yaml(&bytes),
        Input::Value(value) => descriptor.schema().decode_value(value),
    };
    let decoded =
        decoded.map_err(|error| error.status(&descriptor.api_version(), &descriptor.kind))?;
    decoded.strict.iter().for_each(|text| cx.warn(text.clone()));
    let app = &call.app;
    let answer = reviews::create(
        &app.authorizer,
        &app.tokens,
        &call.user,
        descriptor,
        &cx.namespace,
        decoded.value,
    )?;
    let mut response = respond::document(StatusCode::CREATED, form, &answer);
    respond::warn(&mut response, &cx.take_warnings());
    Ok(response)
}

async fn update(call: &Call, descriptor: Arc<Descriptor>, body: Bytes) -> Answer {
    let form = call.form(Offers::Views)?;
    let cx = write_context(call, descriptor, "UpdateOptions")?;
    let input = request_body::input(&call.headers, body, call.app.registry.catalog())?;
    let (object, created) = call
        .app
        .registry
        .update(&cx, &call.info.name, input)
        .await?;
    answer_object(call, &cx, form, written(created), &object)
}

async fn patch(call: &Call, descriptor: Arc<Descriptor>, body: Bytes) -> Answer {
    let form = call.form(Offers::Views)?;
    let content_type = call
        .headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok());
    let kind = PatchType::from_content_type(content_type.unwrap_or_default()).ok_or_else(|| {
        Status::unsupported_media_type(&PatchType::ALL.map(PatchType::content_type))
    })?;
    let mut cx = write_context(call, descriptor, "PatchOptions")?;
    cx.force = options::force(&call.query, kind)?;
    let (object, created) = call
        .app
        .registry
        .patch(&cx, &call.info.name, kind, &body)
        .await?;
    answer_object(call, &cx, form, written(created), &object)
}

fn written(created: bool) -> StatusCode {
    if created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    }
}

/// Options of a delete: the body if there is one, else the parameters.
fn delete_options(call: &Call, body: Bytes) -> Result<DeleteOptions, Status> {
    let value = request_body::value(
        &call.headers,
        body,
        "DeleteOptions",
        call.app.registry.catalog(),
    )?;
    match value {
        Value::Null => options::delete(&call.query),
        value => {
            let mut options = DeleteOptions::from_value(&value)?;
            options.dry_run |= options::dry_run(&call.query, "DeleteOptions")?;
            Ok(options)
        }
    }
}

async fn delete(call: &Call, descriptor: Arc<Descriptor>, body: Bytes) -> Answer {
    let form = call.form(Offers::Views)?;
    let options = delete_options(call, body)?;
    let mut cx = context(call, descriptor);
    cx.dry_run = options.dry_run;
    let deleted = call
        .app
        .registry
        .delete(&cx, &call.info.name, &options)
        .await?;
    if deleted.gone && !deleted.answer_object {
        let mut response = respond::status(form, &deleted.status);
        respond::warn(&mut response, &cx.take_warnings());
        return Ok(response);
    }
    answer_object(call, &cx, form, StatusCode::OK, &deleted.object)
}

async fn delete_collection(call: &Call, descriptor: Arc<Descriptor>, body: Bytes) -> Answer {
    let form = call.form(Offers::Views)?;
    let options = delete_options(call, body)?;
    let list = options::list(&call.query)?;
    let mut cx = context(call, descriptor);
    cx.dry_run = options.dry_run;
    let listed = call
        .app
        .registry
        .delete_collection(&cx, &options, &list)
        .await?;
    let mut response = whole_list(form, listed.chunks(&cx.descriptor));
    respond::warn(&mut response, &cx.take_warnings());
    Ok(response)
}

/// An object, in the form that was asked for.
fn answer_object(
    call: &Call,
    cx: &Context,
    form: Form,
    code: StatusCode,
    object: &Object,
) -> Answer {
    let bytes = match form.view {
        View::Whole => object.bytes.clone(),
        view => {
            let include = IncludeObject::read(&call.query)?;
            Viewer {
                descriptor: &cx.descriptor,
                view,
                include,
                now: Timestamp::now(),
            }
            .object(object)
        }
    };
    let mut response = respond::json_bytes(code, form, bytes);
    respond::warn(&mut response, &cx.take_warnings());
    Ok(response)
}
