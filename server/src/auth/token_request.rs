//! `serviceaccounts/NAME/token`: mints a token for a service account, bound to a pod, secret or node if the request says so.
//! <https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-request-v1/>

use amphipod_api::jwt::{BoundRef, Claims};
use amphipod_api::{FieldError, GroupKind, GroupResource, Status, time};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::authn::TokenAuthenticator;
use crate::cache::Cache;

/// Tokens live at least this long, as upstream.
const LEAST_SECONDS: i64 = 600;
const MOST_SECONDS: i64 = 1 << 32;
/// What agents ask for with the default volume of pods: such tokens live longer than they say, for programs that do
/// not read them again; users of a token past its time would be warned.
const DEFAULT_VOLUME_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Spec {
    audiences: Option<Vec<String>>,
    expiration_seconds: Option<i64>,
    bound_object_ref: Option<Bound>,
}

#[derive(Clone, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Bound {
    kind: String,
    api_version: String,
    name: String,
    uid: String,
}

/// Answers a TokenRequest.
///
/// # Errors
/// 404 without the account, 422 for bad lifetimes, 404 and 409 for objects to bind to that are not there.
pub fn create(
    tokens: &TokenAuthenticator,
    cache: &Cache,
    namespace: &str,
    name: &str,
    mut request: Value,
    dry_run: bool,
) -> Result<Value, Status> {
    let spec: Spec = match request.get("spec") {
        None | Some(Value::Null) => Spec::default(),
        Some(spec) => serde_json::from_value(spec.clone()).map_err(|error| {
            Status::bad_request(format!(
                "TokenRequest in version \"v1\" cannot be handled as a TokenRequest: {error}"
            ))
        })?,
    };
    let accounts = GroupResource::new("", "serviceaccounts");
    let account = cache
        .table("serviceaccounts")
        .and_then(|table| table.get(namespace, name))
        .ok_or_else(|| Status::not_found(&accounts, name))?;
    let seconds = spec.expiration_seconds.unwrap_or(3600);
    check_seconds(seconds)?;
    let audiences = match spec.audiences {
        Some(audiences) if !audiences.is_empty() => audiences,
        _ => vec![tokens.issuer.clone()],
    };
    let bound = spec.bound_object_ref;
    let now = Timestamp::now().as_second();
    let own = BoundRef {
        name: name.to_owned(),
        uid: account.meta.uid.to_string(),
    };
    let for_us = audiences.iter().any(|a| tokens.api_audiences.contains(a));
    let extended = seconds == DEFAULT_VOLUME_SECONDS
        && for_us
        && bound.as_ref().is_some_and(|b| b.kind == "Pod");
    let lifetime = if extended { EXTENDED_SECONDS } else { seconds };
    let mut claims = Claims::new(
        &tokens.issuer,
        audiences.clone(),
        namespace,
        own,
        now,
        lifetime,
    );
    if extended {
        claims.kubernetes.warnafter = Some(now + seconds);
    }
    if let Some(bound) = &bound {
        bind(&mut claims, cache, namespace, bound)?;
    }
    let token = if dry_run {
        String::new()
    } else {
        tokens
            .keys()
            .sign(&claims)
            .map_err(Status::internal_error)?
    };
    let expires = Timestamp::from_second(now + seconds).unwrap_or(Timestamp::MAX);
    request["kind"] = "TokenRequest".into();
    request["apiVersion"] = "authentication.k8s.io/v1".into();
    request["metadata"]["name"] = name.into();
    request["metadata"]["namespace"] = namespace.into();
    request["metadata"]["creationTimestamp"] = time::now().into();
    request["spec"]["audiences"] = json!(audiences);
    request["spec"]["expirationSeconds"] = seconds.into();
    request["spec"]["boundObjectRef"] = bound.map_or(Value::Null, |bound| {
        json!({"kind": bound.kind, "apiVersion": bound.api_version, "name": bound.name, "uid": bound.uid})
    });
    request["status"] = json!({"token": token, "expirationTimestamp": time::format_time(expires)});
    Ok(request)
}

fn check_seconds(seconds: i64) -> Result<(), Status> {
    let why = if seconds < LEAST_SECONDS {
        "may not specify a duration less than 10 minutes"
    } else if seconds > MOST_SECONDS {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(());
    };
    let error = FieldError::invalid("spec.expirationSeconds", seconds, why);
    Err(Status::invalid(
        &GroupKind::new("authentication.k8s.io", "TokenRequest"),
        "",
        &[error],
    ))
}

/// Adds what the token is bound to.
fn bind(claims: &mut Claims, cache: &Cache, namespace: &str, bound: &Bound) -> Result<(), Status> {
    let find = |resource: &str, namespace: &str| {
        let group_resource = GroupResource::new("", resource);
        let object = cache
            .table(resource)
            .and_then(|table| table.get(namespace, &bound.name))
            .ok_or_else(|| Status::not_found(&group_resource, &bound.name))?;
        if !bound.uid.is_empty() && bound.uid != *object.meta.uid {
            let why = format!(
                "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
                bound.uid
            );
            return Err(Status::conflict(&group_resource, &bound.name, why));
        }
        Ok(object)
    };
    let reference = |object: &crate::cache::Object| BoundRef {
        name: object.meta.name.to_string(),
        uid: object.meta.uid.to_string(),
    };
    match bound.kind.as_str() {
        "Pod" => {
            let pod = find("pods", namespace)?;
            let value = pod.value();
            let account = value["spec"]["serviceAccountName"]
                .as_str()
                .unwrap_or_default();
            if account != claims.kubernetes.serviceaccount.name {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    claims.kubernetes.serviceaccount.name
                )));
            }
            claims.kubernetes.pod = Some(reference(&pod));
            if let Some(node) = value["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
                let uid = cache
                    .table("nodes")
                    .and_then(|t| t.get("", node))
                    .map(|n| n.meta.uid.to_string());
                claims.kubernetes.node = Some(BoundRef {
                    name: node.to_owned(),
                    uid: uid.unwrap_or_default(),
                });
            }
        }
        "Secret" => claims.kubernetes.secret = Some(reference(&*find("secrets", namespace)?)),
        "Node" => claims.kubernetes.node = Some(reference(&*find("nodes", "")?)),
        kind => {
            return Err(Status::bad_request(format!(
                "cannot bind token to object of type {kind}, {}",
                bound.api_version
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use amphipod_api::jwt::TokenKeys;
    use bytes::Bytes;

    use super::*;
    use crate::store::{Key, Record};

    struct World {
        cache: Arc<Cache>,
        tokens: TokenAuthenticator,
        revision: u64,
    }

    impl World {
        fn new() -> World {
            let cache = Cache::empty();
            let keys = TokenKeys::load(&amphipod_api::pki::generate_key().unwrap()).unwrap();
            let issuer = "https://kubernetes.default.svc.cluster.local".to_owned();
            let tokens = TokenAuthenticator::new(Arc::new(keys), cache.clone(), issuer);
            let mut world = World {
                cache,
                tokens,
                revision: 0,
            };
            world.put(
                "serviceaccounts",
                json!({"metadata": {"name": "app", "namespace": "a", "uid": "sa-1"}}),
            );
            world.put(
                "pods",
                json!({"metadata": {"name": "web", "namespace": "a", "uid": "pod-1"},
                       "spec": {"serviceAccountName": "app", "nodeName": "n1"}}),
            );
            world
        }

        fn put(&mut self, resource: &str, object: Value) {
            let meta = &object["metadata"];
            let key = Key::new(
                resource,
                meta["namespace"].as_str().unwrap_or_default(),
                meta["name"].as_str().unwrap(),
            );
            self.apply(key, Some(Bytes::from(object.to_string())));
        }

        fn apply(&mut self, key: Key, value: Option<Bytes>) {
            self.revision += 1;
            self.cache.apply(&[Record {
                revision: self.revision,
                key,
                value,
            }]);
        }

        fn request(&self, spec: Value) -> Result<Value, Status> {
            create(
                &self.tokens,
                &self.cache,
                "a",
                "app",
                json!({"spec": spec}),
                false,
            )
        }

        fn user(&self, answer: &Value) -> Result<super::super::UserInfo, String> {
            let token = answer["status"]["token"].as_str().unwrap();
            self.tokens.authenticate(token, &[]).map(|(user, _)| user)
        }
    }

    #[test]
    fn a_token_proves_its_account_and_pod() {
        let world = World::new();
        let answer = world.request(json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "web", "uid": "pod-1"}}));
        let user = world.user(&answer.unwrap()).unwrap();
        assert_eq!(user.name, "system:serviceaccount:a:app");
        assert_eq!(user.uid, "sa-1");
        assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["web"]);
        assert_eq!(user.extra["authentication.kubernetes.io/node-name"], ["n1"]);
    }

    #[test]
    fn a_token_dies_with_its_pod_and_with_its_account() {
        let mut world = World::new();
        let bound = world
            .request(json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "web"}}))
            .unwrap();
        let free = world.request(json!({})).unwrap();
        world.apply(Key::new("pods", "a", "web"), None);
        assert!(
            world
                .user(&bound)
                .unwrap_err()
                .contains("its pod \"web\" is gone")
        );
        assert!(world.user(&free).is_ok());
        world.put(
            "serviceaccounts",
            json!({"metadata": {"name": "app", "namespace": "a", "uid": "sa-2"}}),
        );
        assert!(
            world
                .user(&free)
                .unwrap_err()
                .contains("its service account")
        );
    }

    #[test]
    fn tokens_for_others_do_not_open_the_api() {
        let world = World::new();
        let answer = world.request(json!({"audiences": ["vault"]})).unwrap();
        assert!(world.user(&answer).is_err());
        let token = answer["status"]["token"].as_str().unwrap();
        let (_, matched) = world
            .tokens
            .authenticate(token, &["vault".to_owned(), "x".to_owned()])
            .unwrap();
        assert_eq!(matched, ["vault"]);
    }

    #[test]
    fn requests_that_do_not_fit_are_refused() {
        let world = World::new();
        assert_eq!(
            world
                .request(json!({"expirationSeconds": 5}))
                .unwrap_err()
                .code,
            422
        );
        let other = world
            .request(json!({"boundObjectRef": {"kind": "Pod", "name": "web", "uid": "x"}}))
            .unwrap_err();
        assert_eq!(other.code, 409);
        assert_eq!(
            world
                .request(json!({"boundObjectRef": {"kind": "Pod", "name": "no"}}))
                .unwrap_err()
                .code,
            404
        );
        assert_eq!(
            world
                .request(json!({"boundObjectRef": {"kind": "Chair", "name": "no"}}))
                .unwrap_err()
                .code,
            400
        );
    }

    #[test]
    fn tokens_of_the_default_volume_outlive_what_they_say() {
        let world = World::new();
        let answer = world
            .request(json!({"expirationSeconds": 3607, "boundObjectRef": {"kind": "Pod", "name": "web"}}))
            .unwrap();
        let token = answer["status"]["token"].as_str().unwrap();
        let claims = world
            .tokens
            .keys()
            .verify(token, &world.tokens.issuer, &[], 0)
            .err();
        assert_eq!(
            claims.unwrap().to_string(),
            "service account token is not valid yet"
        );
        let later = Timestamp::now().as_second() + 24 * 3600;
        let claims = world
            .tokens
            .keys()
            .verify(token, &world.tokens.issuer, &[], later)
            .unwrap();
        assert_eq!(claims.exp - claims.iat, EXTENDED_SECONDS);
    }
}
