//! The parameters of resource requests as the registry's options, with upstream's refusals.

use std::time::Duration;

use amphipod_api::{FieldError, FieldSelector, GroupKind, LabelSelector, Status};
use http::HeaderMap;
use http::header::USER_AGENT;

use super::query::Query;
use crate::registry::{DeleteOptions, FieldValidation, ListOptions, PatchType};

/// Reads the options of list, watch and deletecollection.
///
/// # Errors
/// 400 for selectors and numbers that do not parse.
pub fn list(query: &Query) -> Result<ListOptions, Status> {
    let text = |name: &str| query.get(name).unwrap_or_default().to_owned();
    let label_selector = match query.text("labelSelector") {
        None => LabelSelector::everything(),
        Some(selector) => LabelSelector::parse(selector).map_err(|error| {
            Status::bad_request(format!("unable to parse requirement: {}", error.0))
        })?,
    };
    let field_selector = match query.text("fieldSelector") {
        None => FieldSelector::everything(),
        Some(selector) => {
            FieldSelector::parse(selector).map_err(|error| Status::bad_request(error.0))?
        }
    };
    Ok(ListOptions {
        label_selector,
        field_selector,
        resource_version: text("resourceVersion"),
        resource_version_match: text("resourceVersionMatch"),
        limit: integer(query, "limit")?.unwrap_or(0),
        continue_token: text("continue"),
        timeout: integer(query, "timeoutSeconds")?
            .and_then(|seconds| u64::try_from(seconds).ok())
            .filter(|seconds| *seconds > 0)
            .map(Duration::from_secs),
        allow_watch_bookmarks: query.flag("allowWatchBookmarks"),
        send_initial_events: query.optional_flag("sendInitialEvents"),
    })
}

/// Reads the options of delete from the parameters, for requests without a body.
///
/// # Errors
/// 400 and 422 as for the body.
pub fn delete(query: &Query) -> Result<DeleteOptions, Status> {
    let mut options = DeleteOptions {
        grace_period_seconds: integer(query, "gracePeriodSeconds")?,
        orphan_dependents: query.optional_flag("orphanDependents"),
        dry_run: dry_run(query, "DeleteOptions")?,
        ..DeleteOptions::default()
    };
    options.set_propagation(query.text("propagationPolicy"))?;
    options.check()?;
    Ok(options)
}

/// `dryRun=All`.
///
/// # Errors
/// 422 for another word.
pub fn dry_run(query: &Query, kind: &str) -> Result<bool, Status> {
    let mut dry = false;
    for word in query.all("dryRun").filter(|word| !word.is_empty()) {
        if word != "All" {
            let words: Vec<&str> = query.all("dryRun").collect();
            return Err(invalid(
                kind,
                FieldError::not_supported("dryRun", words, &["All"]),
            ));
        }
        dry = true;
    }
    Ok(dry)
}

/// How strict to be with unknown fields.
///
/// # Errors
/// 422 for an unknown word.
pub fn field_validation(query: &Query, kind: &str) -> Result<FieldValidation, Status> {
    FieldValidation::parse(query.text("fieldValidation"), kind)
}

/// Who changes the fields: the parameter, or the client program's name.
///
/// # Errors
/// 422 for names that are too long.
pub fn field_manager(query: &Query, headers: &HeaderMap, kind: &str) -> Result<String, Status> {
    const MAX: usize = 128;
    if let Some(manager) = query.text("fieldManager") {
        if manager.len() > MAX {
            return Err(invalid(kind, FieldError::too_long("fieldManager", MAX)));
        }
        if manager.chars().any(char::is_control) {
            let why = "should only contain printable characters";
            return Err(invalid(
                kind,
                FieldError::invalid("fieldManager", manager, why),
            ));
        }
        return Ok(manager.to_owned());
    }
    let agent = headers
        .get(USER_AGENT)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    let program = agent.split('/').next().unwrap_or_default();
    Ok(program.chars().take(MAX).collect())
}

/// `force` of a patch: an apply takes over what others own.
///
/// # Errors
/// 422 for another patch with it, and for an apply that does not say who applies.
pub fn force(query: &Query, kind: PatchType) -> Result<bool, Status> {
    let error = match (kind, query.optional_flag("force")) {
        (PatchType::Apply, _) if query.text("fieldManager").is_none() => {
            FieldError::required("fieldManager", "is required for apply patch")
        }
        (PatchType::Apply, force) => return Ok(force.unwrap_or(false)),
        (_, Some(_)) => FieldError::forbidden("force", "may not be specified for non-apply patch"),
        (_, None) => return Ok(false),
    };
    Err(invalid("PatchOptions", error))
}

fn integer(query: &Query, name: &str) -> Result<Option<i64>, Status> {
    query.integer(name).map_err(Status::bad_request)
}

fn invalid(kind: &str, error: FieldError) -> Status {
    Status::invalid(&GroupKind::new("meta.k8s.io", kind), "", &[error])
}
