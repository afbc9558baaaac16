//! The kinds that are questions: TokenReview, the SubjectAccessReview family, SelfSubjectRulesReview, SelfSubjectReview.
//! <https://kubernetes.io/docs/reference/kubernetes-api/authorization-resources/>

use std::collections::BTreeMap;

use amphipod_api::{FieldError, GroupKind, Status, time};
use k8s_openapi::api::rbac::v1::PolicyRule;
use serde::Deserialize;
use serde_json::{Value, json};

use super::authn::TokenAuthenticator;
use super::{Attributes, Authorizer, UserInfo};
use crate::resources::Descriptor;

/// Answers a review: the request with its status.
///
/// # Errors
/// 422 for questions that ask nothing.
pub fn create(
    authorizer: &Authorizer,
    tokens: &TokenAuthenticator,
    user: &UserInfo,
    descriptor: &Descriptor,
    namespace: &str,
    mut review: Value,
) -> Result<Value, Status> {
    let kind = GroupKind::new(&descriptor.group, &descriptor.kind);
    let status = match &*descriptor.plural {
        "tokenreviews" => token_review(tokens, &review, &kind)?,
        "selfsubjectreviews" => json!({"userInfo": user_info(user)}),
        "selfsubjectrulesreviews" => rules_review(authorizer, user, &review, &kind)?,
        "selfsubjectaccessreviews" => access(authorizer, user, &review["spec"], &kind)?,
        "subjectaccessreviews" => access(
            authorizer,
            &subject(&review["spec"], &kind)?,
            &review["spec"],
            &kind,
        )?,
        "localsubjectaccessreviews" => {
            let asked = review["spec"]["resourceAttributes"]["namespace"]
                .as_str()
                .unwrap_or_default();
            if asked != namespace {
                let why = format!("must match metadata.namespace: {namespace:?}");
                return Err(invalid(
                    &kind,
                    FieldError::invalid("spec.resourceAttributes.namespace", asked, why),
                ));
            }
            access(
                authorizer,
                &subject(&review["spec"], &kind)?,
                &review["spec"],
                &kind,
            )?
        }
        _ => return Err(Status::method_not_allowed()),
    };
    review["kind"] = (&*descriptor.kind).into();
    review["apiVersion"] = descriptor.api_version().into();
    if descriptor.plural == "selfsubjectreviews" {
        review["metadata"]["creationTimestamp"] = time::now().into();
    } else if review["metadata"].is_null() {
        review["metadata"] = json!({});
    }
    if !namespace.is_empty() {
        review["metadata"]["namespace"] = namespace.into();
    }
    review["status"] = status;
    Ok(review)
}

fn invalid(kind: &GroupKind, error: FieldError) -> Status {
    Status::invalid(kind, "", &[error])
}

fn user_info(user: &UserInfo) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.clone().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

fn token_review(
    tokens: &TokenAuthenticator,
    review: &Value,
    kind: &GroupKind,
) -> Result<Value, Status> {
    let token = review["spec"]["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(invalid(kind, FieldError::required("spec.token", "")));
    }
    let audiences: Vec<String> =
        serde_json::from_value(review["spec"]["audiences"].clone()).unwrap_or_default();
    Ok(match tokens.authenticate(token, &audiences) {
        Ok((user, matched)) => {
            json!({"authenticated": true, "user": user_info(&user), "audiences": matched})
        }
        Err(why) => json!({"user": {}, "error": format!("[invalid bearer token, {why}]")}),
    })
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Subject {
    user: String,
    groups: Vec<String>,
    uid: String,
    extra: BTreeMap<String, Vec<String>>,
}

/// Whom a SubjectAccessReview is about.
fn subject(spec: &Value, kind: &GroupKind) -> Result<UserInfo, Status> {
    let subject: Subject = serde_json::from_value(spec.clone())
        .map_err(|error| Status::bad_request(format!("reading the subject: {error}")))?;
    if subject.user.is_empty() && subject.groups.is_empty() {
        let why = "at least one of user or group must be specified";
        return Err(invalid(kind, FieldError::invalid("spec.user", "", why)));
    }
    Ok(UserInfo {
        name: subject.user,
        uid: subject.uid,
        groups: subject.groups,
        extra: subject.extra,
    })
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ResourceAttributes {
    namespace: String,
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    name: String,
    #[serde(rename = "fieldSelector")]
    field_selector: SelectorAttributes,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct SelectorAttributes {
    raw_selector: String,
    requirements: Vec<SelectorRequirement>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct SelectorRequirement {
    key: String,
    operator: String,
    values: Vec<String>,
}

impl SelectorAttributes {
    fn text(&self) -> String {
        if !self.raw_selector.is_empty() {
            return self.raw_selector.clone();
        }
        let terms: Vec<String> = self
            .requirements
            .iter()
            .filter(|r| r.operator == "In" && r.values.len() == 1)
            .map(|r| format!("{}={}", r.key, r.values[0]))
            .collect();
        terms.join(",")
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PathAttributes {
    path: String,
    verb: String,
}

/// The status of an access review: whether, and why.
fn access(
    authorizer: &Authorizer,
    user: &UserInfo,
    spec: &Value,
    kind: &GroupKind,
) -> Result<Value, Status> {
    let broken =
        |error: serde_json::Error| Status::bad_request(format!("reading the attributes: {error}"));
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let (allowed, reason) = match (resource.is_null(), path.is_null()) {
        (false, true) => {
            let r: ResourceAttributes = serde_json::from_value(resource.clone()).map_err(broken)?;
            let selector = r.field_selector.text();
            // "*" stands for all resources in `kubectl auth can-i '*' '*'`, as it does in rules.
            authorizer.explain(&Attributes {
                user,
                verb: &r.verb,
                group: &r.group,
                version: &r.version,
                resource: if r.resource.is_empty() {
                    "*"
                } else {
                    &r.resource
                },
                subresource: &r.subresource,
                namespace: &r.namespace,
                name: &r.name,
                field_selector: &selector,
                path: "",
            })
        }
        (true, false) => {
            let p: PathAttributes = serde_json::from_value(path.clone()).map_err(broken)?;
            authorizer.explain(&Attributes::path(user, &p.verb, &p.path))
        }
        (true, true) => {
            let why =
                "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            return Err(invalid(
                kind,
                FieldError::invalid("spec.resourceAttributes", Value::Null, why),
            ));
        }
        (false, false) => {
            let why = "cannot be specified in combination with resourceAttributes";
            return Err(invalid(
                kind,
                FieldError::invalid("spec.nonResourceAttributes", path.clone(), why),
            ));
        }
    };
    let mut status = json!({"allowed": allowed});
    if !reason.is_empty() {
        status["reason"] = reason.into();
    }
    Ok(status)
}

/// What the caller may do in a namespace: `kubectl auth can-i --list`.
fn rules_review(
    authorizer: &Authorizer,
    user: &UserInfo,
    review: &Value,
    kind: &GroupKind,
) -> Result<Value, Status> {
    let namespace = review["spec"]["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(invalid(
            kind,
            FieldError::required("spec.namespace", "no namespace on request"),
        ));
    }
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for PolicyRule {
        verbs,
        api_groups,
        resources: of,
        resource_names,
        non_resource_urls,
    } in authorizer.rules_for(user, namespace)
    {
        if let Some(urls) = non_resource_urls.filter(|urls| !urls.is_empty()) {
            paths.push(json!({"verbs": verbs, "nonResourceURLs": urls}));
            continue;
        }
        let mut rule = json!({
            "verbs": verbs,
            "apiGroups": api_groups.unwrap_or_default(),
            "resources": of.unwrap_or_default(),
        });
        if let Some(names) = resource_names.filter(|names| !names.is_empty()) {
            rule["resourceNames"] = json!(names);
        }
        resources.push(rule);
    }
    Ok(json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false}))
}
