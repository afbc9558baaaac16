//! get and list, with the semantics of resourceVersion.
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>

use std::sync::Arc;
use std::time::Duration;

use amphipod_api::{FieldError, FieldSelector, Status};
use base64::Engine;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::options::invalid_options;
use super::{Context, GetOptions, ListOptions, Registry, shown};
use crate::cache::{Gone, Object, Snapshot, Table};
use crate::resources::Descriptor;

/// How long a request for a revision of the future waits for it, as upstream's cacher does.
const PATIENCE: Duration = Duration::from_secs(3);

/// A list, or a page of one.
#[derive(Debug)]
pub struct Listed {
    pub items: Vec<Arc<Object>>,
    pub revision: u64,
    /// Where the next page begins; empty on the last.
    pub continue_token: String,
    /// How many items follow this page; `None` if there are none, or selectors make it unknown.
    pub remaining: Option<u64>,
}

impl Listed {
    /// The list document in pieces that share the objects' bytes.
    pub fn chunks(&self, descriptor: &Descriptor) -> Vec<Bytes> {
        let head = format!(
            "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{},\"items\":[",
            json!(descriptor.list_kind),
            json!(descriptor.api_version()),
            self.metadata()
        );
        let mut chunks = Vec::with_capacity(2 * self.items.len() + 2);
        chunks.push(Bytes::from(head));
        for (index, object) in self.items.iter().enumerate() {
            if index > 0 {
                chunks.push(Bytes::from_static(b","));
            }
            chunks.push(object.bytes.clone());
        }
        chunks.push(Bytes::from_static(b"]}\n"));
        chunks
    }

    /// `metadata` of the list.
    pub fn metadata(&self) -> Value {
        let mut metadata = json!({"resourceVersion": self.revision.to_string()});
        if !self.continue_token.is_empty() {
            metadata["continue"] = json!(self.continue_token);
        }
        if let Some(remaining) = self.remaining {
            metadata["remainingItemCount"] = json!(remaining);
        }
        metadata
    }
}

/// What a continue token holds: base64 of this in JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Continue {
    v: String,
    /// The revision of the first page; -1: whatever is now.
    rv: i64,
    /// The last object of the page before, as `namespace/name`.
    start: String,
}

const CONTINUE_VERSION: &str = "meta.k8s.io/v1";

impl Continue {
    fn encode(&self) -> String {
        base64::engine::general_purpose::URL_SAFE_NO_PAD
            .encode(serde_json::to_vec(self).unwrap_or_default())
    }

    fn decode(token: &str) -> Result<Continue, Status> {
        let bad = |why: String| Status::bad_request(format!("continue key is not valid: {why}"));
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(token.trim_end_matches('='))
            .map_err(|error| bad(error.to_string()))?;
        let read: Continue =
            serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        if read.v != CONTINUE_VERSION || read.rv < -1 || read.rv == 0 || !read.start.contains('/') {
            return Err(bad(format!(
                "server does not recognize this encoded version {:?}",
                read.v
            )));
        }
        Ok(read)
    }
}

impl Registry {
    /// One object.
    ///
    /// # Errors
    /// 404; 504 for a resourceVersion that is not reached in time.
    pub async fn get(
        &self,
        cx: &Context,
        name: &str,
        options: &GetOptions,
    ) -> Result<Arc<Object>, Status> {
        let revision = parse_revision(&options.resource_version)?;
        self.reach(revision).await?;
        let object = self
            .table(&cx.descriptor)
            .get(&cx.namespace, name)
            .ok_or_else(|| Status::not_found(&cx.group_resource(), name))?;
        let object = shown(&cx.descriptor, object);
        match &cx.subresource {
            None => Ok(object),
            Some(subresource) => self.part(cx, subresource, object),
        }
    }

    /// A list, or a page of one.
    ///
    /// # Errors
    /// 400 and 422 for options that do not fit together, 410 for a resourceVersion or token of the past, 504 for the future.
    pub async fn list(&self, cx: &Context, options: &ListOptions) -> Result<Listed, Status> {
        check_options(options, false)?;
        check_fields(&cx.descriptor, &options.field_selector)?;
        let table = self.table(&cx.descriptor);
        let namespace = Some(cx.namespace.as_str()).filter(|namespace| !namespace.is_empty());
        let page = match options.continue_token.as_str() {
            "" => None,
            _ if !options.resource_version.is_empty() && options.resource_version != "0" => {
                return Err(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            token => Some(Continue::decode(token)?),
        };
        let mut start = None;
        let snapshot = match page {
            Some(page) => {
                let found = match u64::try_from(page.rv) {
                    Ok(revision) => table
                        .list_at(namespace, revision)
                        .map_err(|_| expired_continue(&page))?,
                    Err(_) => table.list(namespace),
                };
                start = Some(page.start);
                found
            }
            None => self.snapshot(cx, &table, namespace, options).await?,
        };
        let mut listed = select(snapshot, start.as_deref(), &table, options);
        if cx.descriptor.conversion.is_some() {
            listed
                .items
                .iter_mut()
                .for_each(|item| *item = shown(&cx.descriptor, item.clone()));
        }
        Ok(listed)
    }

    /// The objects that a first page is made of.
    async fn snapshot(
        &self,
        cx: &Context,
        table: &Arc<Table>,
        namespace: Option<&str>,
        options: &ListOptions,
    ) -> Result<Snapshot, Status> {
        let revision = parse_revision(&options.resource_version)?;
        self.reach(revision).await?;
        let exact = options.resource_version_match == "Exact"
            || (options.resource_version_match.is_empty() && options.limit > 0);
        if let Some(revision) = revision.filter(|revision| exact && *revision > 0) {
            return table
                .list_at(namespace, revision)
                .map_err(|gone| gone_status(&gone));
        }
        // Questions that an index answers: revision first, so that the answer is at least that new.
        if let Some(name) = options.field_selector.requires("metadata.name") {
            let named = |namespace: &str| {
                let revision = table.revision();
                Snapshot {
                    items: table.get(namespace, name).into_iter().collect(),
                    revision,
                }
            };
            match namespace {
                Some(namespace) => return Ok(named(namespace)),
                None if !cx.descriptor.namespaced() => return Ok(named("")),
                None => {}
            }
        }
        if namespace.is_none()
            && options.limit == 0
            && let Some(indexed) = table.spec().indexed.first()
            && let Some(value) = options.field_selector.requires(indexed)
        {
            let revision = table.revision();
            return Ok(Snapshot {
                items: table.by_field(indexed, value),
                revision,
            });
        }
        Ok(table.list(namespace))
    }

    /// Waits for a revision that a client has seen, at most for [`PATIENCE`].
    pub(super) async fn reach(&self, revision: Option<u64>) -> Result<(), Status> {
        let Some(revision) = revision else {
            return Ok(());
        };
        if self.cache.reach(revision, PATIENCE).await {
            Ok(())
        } else {
            Err(Status::too_large_resource_version(
                revision,
                self.cache.revision(),
                1,
            ))
        }
    }
}

/// Applies selectors and the limit.
fn select(snapshot: Snapshot, start: Option<&str>, table: &Table, options: &ListOptions) -> Listed {
    let Snapshot {
        mut items,
        revision,
    } = snapshot;
    if let Some((namespace, name)) = start.and_then(|start| start.split_once('/')) {
        let first = items.partition_point(|object| {
            (&*object.meta.namespace, &*object.meta.name) <= (namespace, name)
        });
        items.drain(..first);
    }
    let everything =
        options.label_selector.is_everything() && options.field_selector.is_everything();
    if !everything {
        items.retain(|object| matches(object, table, options));
    }
    let limit = usize::try_from(options.limit).unwrap_or(0);
    if limit == 0 || items.len() <= limit {
        return Listed {
            items,
            revision,
            continue_token: String::new(),
            remaining: None,
        };
    }
    let remaining = everything.then_some((items.len() - limit) as u64);
    items.truncate(limit);
    let continue_token = items.last().map_or(String::new(), |last| {
        let start = format!("{}/{}", last.meta.namespace, last.meta.name);
        Continue {
            v: CONTINUE_VERSION.to_owned(),
            rv: revision as i64,
            start,
        }
        .encode()
    });
    Listed {
        items,
        revision,
        continue_token,
        remaining,
    }
}

/// Whether an object matches the selectors.
pub(super) fn matches(object: &Object, table: &Table, options: &ListOptions) -> bool {
    (options.label_selector.is_everything() || options.label_selector.matches(&object.meta.labels))
        && (options.field_selector.is_everything()
            || options.field_selector.matches(|field| {
                object
                    .field(table.fields(), field)
                    .unwrap_or_default()
                    .into()
            }))
}

/// `None` for absent; 0 is a revision that everything has reached.
pub(super) fn parse_revision(text: &str) -> Result<Option<u64>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|error: std::num::ParseIntError| {
            let why = match error.kind() {
                std::num::IntErrorKind::PosOverflow => "value out of range",
                _ => "invalid syntax",
            };
            let why = format!("strconv.ParseUint: parsing {text:?}: {why}");
            Status::bad_request(FieldError::invalid("resourceVersion", text, why).to_string())
        })
}

/// Refuses options that do not fit together, as upstream's `ValidateListOptions`.
pub(super) fn check_options(options: &ListOptions, watch: bool) -> Result<(), Status> {
    let refuse = |error: FieldError| Err(invalid_options("ListOptions", error));
    let forbidden = |field: &str, why: &str| refuse(FieldError::forbidden(field, why));
    let matching = options.resource_version_match.as_str();
    if options.limit < 0 {
        return refuse(FieldError::invalid(
            "limit",
            options.limit,
            "must be greater than or equal to 0",
        ));
    }
    match options.send_initial_events {
        Some(_) if !watch => {
            return forbidden(
                "sendInitialEvents",
                "sendInitialEvents is forbidden for list",
            );
        }
        Some(_) => {
            if matching != "NotOlderThan" {
                return forbidden(
                    "resourceVersionMatch",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                );
            }
            if !options.continue_token.is_empty() {
                return forbidden("continue", "continue is forbidden for watch");
            }
            return Ok(());
        }
        None => {}
    }
    if matching.is_empty() {
        return Ok(());
    }
    if watch {
        return forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        );
    }
    if options.resource_version.is_empty() {
        return forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        );
    }
    if !options.continue_token.is_empty() {
        return forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden when continue is provided",
        );
    }
    match matching {
        "NotOlderThan" => Ok(()),
        "Exact" if options.resource_version == "0" => forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        ),
        "Exact" => Ok(()),
        other => refuse(FieldError::not_supported(
            "resourceVersionMatch",
            other,
            &["Exact", "NotOlderThan", ""],
        )),
    }
}

/// Refuses fields that the resource does not offer to selectors.
pub(super) fn check_fields(
    descriptor: &Descriptor,
    selector: &FieldSelector,
) -> Result<(), Status> {
    for requirement in selector.requirements() {
        let field = requirement.field.as_str();
        let known = match field {
            "metadata.name" => true,
            "metadata.namespace" => descriptor.namespaced(),
            _ => descriptor
                .selectable_fields
                .iter()
                .any(|have| have.public && have.name == field),
        };
        if known {
            continue;
        }
        let special = descriptor.selectable_fields.iter().any(|have| have.public);
        return Err(Status::bad_request(if special {
            format!("field label not supported: {field}")
        } else {
            format!(
                "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
            )
        }));
    }
    Ok(())
}

pub(super) fn gone_status(gone: &Gone) -> Status {
    Status::too_old_resource_version(gone.requested, gone.oldest)
}

/// 410 with a token that goes on with whatever is now.
fn expired_continue(page: &Continue) -> Status {
    let mut status = Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without \
         the continue parameter, or use the continue token in this response to retrieve the remainder of the results. \
         Continuing with the provided token results in an inconsistent list - objects that were created, modified, or \
         deleted between the time the first chunk was returned and now may show up in the list.",
    );
    let again = Continue {
        v: CONTINUE_VERSION.to_owned(),
        rv: -1,
        start: page.start.clone(),
    };
    status.metadata.continue_token = again.encode();
    status
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn continue_tokens_are_read_back_and_rubbish_is_refused() {
        let token = Continue {
            v: CONTINUE_VERSION.into(),
            rv: 7,
            start: "a/b".into(),
        }
        .encode();
        let read = Continue::decode(&token).unwrap();
        assert_eq!((read.rv, read.start.as_str()), (7, "a/b"));
        for rubbish in ["x", "!!", "e30", "eyJ2IjoieCIsInJ2IjoxLCJzdGFydCI6ImEvYiJ9"] {
            assert_eq!(
                Continue::decode(rubbish).unwrap_err().code,
                400,
                "{rubbish}"
            );
        }
    }

    #[test]
    fn options_that_do_not_fit_are_refused_in_upstreams_words() {
        let options = ListOptions {
            resource_version_match: "Exact".into(),
            ..ListOptions::default()
        };
        assert_eq!(
            check_options(&options, false).unwrap_err().message,
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
        );
        let options = ListOptions {
            send_initial_events: Some(true),
            ..ListOptions::default()
        };
        assert_eq!(check_options(&options, true).unwrap_err().code, 422);
        assert_eq!(parse_revision("x").unwrap_err().code, 400);
    }
}
