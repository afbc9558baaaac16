#![allow(clippy::unwrap_used)]
use serde_json::json;

use super::*;
use crate::resources::Catalog;

fn catalog() -> Catalog {
    Catalog::builtin()
}

#[test]
fn discovery_names_groups_resources_and_subresources() {
    let catalog = catalog();
    let core = discovery::document(&catalog, &["api", "v1"]).unwrap();
    let resources = core["resources"].as_array().unwrap();
    let find = |name: &str| {
        resources
            .iter()
            .find(|r| r["name"] == name)
            .cloned()
            .unwrap()
    };
    assert_eq!(
        find("pods"),
        json!({"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "shortNames": ["po"],
            "categories": ["all"], "storageVersionHash": "xPOwRZ+Yhw8=",
            "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]})
    );
    assert_eq!(
        find("pods/eviction"),
        json!({"name": "pods/eviction", "singularName": "", "namespaced": true, "kind": "Eviction",
            "group": "policy", "version": "v1", "verbs": ["create"]})
    );
    assert_eq!(find("pods/exec")["kind"], "PodExecOptions");
    let apps = discovery::document(&catalog, &["apis", "apps"]).unwrap();
    assert_eq!(
        apps["preferredVersion"],
        json!({"groupVersion": "apps/v1", "version": "v1"})
    );
    assert!(discovery::document(&catalog, &["apis", "nope"]).is_none());
    assert!(
        discovery::document(&catalog, &["apis"]).unwrap()["groups"]
            .as_array()
            .unwrap()
            .len()
            > 8
    );
}

#[test]
fn aggregated_discovery_says_the_same_in_one_answer() {
    let list = discovery::aggregated(&catalog(), false, "v2");
    assert_eq!(list["apiVersion"], "apidiscovery.k8s.io/v2");
    let items = list["items"].as_array().unwrap();
    let apps = items
        .iter()
        .find(|i| i["metadata"]["name"] == "apps")
        .unwrap();
    let resources = apps["versions"][0]["resources"].as_array().unwrap();
    let deployments = resources
        .iter()
        .find(|r| r["resource"] == "deployments")
        .unwrap();
    assert_eq!(
        deployments["responseKind"],
        json!({"group": "apps", "version": "v1", "kind": "Deployment"})
    );
    assert_eq!(
        deployments["subresources"][0],
        json!({"subresource": "scale", "responseKind": {"group": "autoscaling", "version": "v1", "kind": "Scale"},
            "verbs": ["get", "patch", "update"]})
    );
    assert!(
        discovery::aggregated(&catalog(), true, "v2")["items"][0]["metadata"]
            .get("name")
            .is_none()
    );
}

#[test]
fn v3_documents_hold_every_type_they_refer_to() {
    let catalog = catalog();
    let index = v3_index(&catalog);
    for path in index["paths"].as_object().unwrap().keys() {
        let (document, hash) = v3_document(&catalog, path).unwrap();
        let url = index["paths"][path]["serverRelativeURL"].as_str().unwrap();
        assert!(url.ends_with(&format!("?hash={hash}")), "{url}");
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "{path}: {name}");
        }
        assert!(!text.contains("$defs"), "{path}");
    }
    assert!(v3_document(&catalog, "apis/nope/v1").is_none());
}

#[test]
fn v3_says_how_lists_merge_and_what_patch_takes() {
    let (apps, _) = v3_document(&catalog(), "apis/apps/v1").unwrap();
    let schemas = &apps["components"]["schemas"];
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    assert_eq!(
        schemas["io.k8s.api.apps.v1.Deployment"]["x-kubernetes-group-version-kind"],
        json!([{"group": "apps", "version": "v1", "kind": "Deployment"}])
    );
    let patch = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
    assert!(
        patch["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .any(|p| p["name"] == "fieldValidation" && p["in"] == "query")
    );
}

/// Enough of a protobuf reader to walk down `(field number, index)` steps.
fn walk(mut bytes: &[u8], path: &[(u64, usize)]) -> Vec<u8> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut n = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            n |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        n
    }
    for (field, index) in path {
        let mut rest = bytes;
        let mut seen = 0;
        loop {
            let key = varint(&mut rest);
            if key & 7 == 0 {
                varint(&mut rest);
                continue;
            }
            let len = varint(&mut rest) as usize;
            let (value, after) = rest.split_at(len);
            rest = after;
            if key >> 3 == *field {
                if seen == *index {
                    bytes = value;
                    break;
                }
                seen += 1;
            }
        }
    }
    bytes.to_vec()
}

#[test]
fn the_protobuf_document_says_what_the_json_document_says() {
    let catalog = catalog();
    let json = v2_json(&catalog);
    let bytes = v2_protobuf(&catalog);
    assert_eq!(walk(&bytes, &[(1, 0)]), b"2.0");
    assert_eq!(walk(&bytes, &[(2, 0), (1, 0)]), b"Kubernetes");
    let first = json["definitions"]
        .as_object()
        .unwrap()
        .keys()
        .next()
        .unwrap();
    assert_eq!(walk(&bytes, &[(9, 0), (1, 0), (1, 0)]), first.as_bytes());
    let path = json["paths"].as_object().unwrap().keys().next().unwrap();
    assert_eq!(walk(&bytes, &[(8, 0), (2, 0), (1, 0)]), path.as_bytes());
}

#[test]
fn the_version_is_one_that_clients_can_compare() {
    let version = version();
    assert_eq!(
        (&version["major"], &version["minor"]),
        (&json!("1"), &json!("36"))
    );
    assert!(
        version["gitCommit"]
            .as_str()
            .unwrap()
            .bytes()
            .all(|b| b.is_ascii_hexdigit())
    );
}
