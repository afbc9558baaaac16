//! Discovery: which groups, versions and resources there are, in the plain and in the aggregated form.
//! <https://kubernetes.io/docs/concepts/overview/kubernetes-api/#discovery-api>.

use base64::Engine;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::resources::{Catalog, Descriptor, Str, Subresource};

/// The answer at a path under `/api` or `/apis`, given by its parts; None if there is none.
pub fn document(catalog: &Catalog, parts: &[&str]) -> Option<Value> {
    match parts {
        ["api"] => Some(json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}],
        })),
        ["api", version] => resources(catalog, "", version),
        ["apis"] => {
            let groups: Vec<Value> = groups(catalog)
                .iter()
                .filter(|g| !g.name.is_empty())
                .map(group)
                .collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", name] if !name.is_empty() => {
            let groups = groups(catalog);
            let mut found = group(groups.iter().find(|g| g.name == *name)?);
            found["kind"] = "APIGroup".into();
            found["apiVersion"] = "v1".into();
            Some(found)
        }
        ["apis", group, version] if !group.is_empty() => resources(catalog, group, version),
        _ => None,
    }
}

/// `apidiscovery.k8s.io APIGroupDiscoveryList` of the core group (at `/api`) or of all others (at `/apis`);
/// `version` is `v2` or `v2beta1`.
pub fn aggregated(catalog: &Catalog, core: bool, version: &str) -> Value {
    let all = catalog.snapshot();
    let items = groups(catalog)
        .into_iter()
        .filter(|g| g.name.is_empty() == core)
        .map(|g| {
            let versions = g.versions.iter().map(|version| {
                let here = all
                    .iter()
                    .filter(|d| d.group == g.name && d.version == *version);
                json!({
                    "version": version,
                    "freshness": "Current",
                    "resources": here.map(|d| aggregated_resource(d)).collect::<Vec<_>>(),
                })
            });
            let mut metadata = json!({"creationTimestamp": null});
            if !core {
                metadata["name"] = g.name.to_string().into();
            }
            json!({"metadata": metadata, "versions": versions.collect::<Vec<_>>()})
        });
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items.collect::<Vec<_>>(),
    })
}

struct Group {
    name: Str,
    /// The preferred one first.
    versions: Vec<Str>,
}

fn groups(catalog: &Catalog) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for d in catalog.snapshot().iter() {
        let at = match groups.iter().position(|g| g.name == d.group) {
            Some(at) => at,
            None => {
                groups.push(Group {
                    name: d.group.clone(),
                    versions: Vec::new(),
                });
                groups.len() - 1
            }
        };
        let versions = &mut groups[at].versions;
        if !versions.contains(&d.version) {
            versions.push(d.version.clone());
        }
    }
    for group in &mut groups {
        group
            .versions
            .sort_by_key(|version| std::cmp::Reverse(rank(version)));
    }
    groups
}

/// How versions compare: `v2` before `v1` before `v1beta2` before `v1alpha1`, before anything else.
fn rank(version: &str) -> (u8, u32, u32) {
    let parse = || -> Option<(u8, u32, u32)> {
        let rest = version.strip_prefix('v')?;
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let major = rest[..digits].parse().ok()?;
        let rest = &rest[digits..];
        if rest.is_empty() {
            return Some((3, major, 0));
        }
        let (stage, minor) = if let Some(minor) = rest.strip_prefix("beta") {
            (2, minor)
        } else {
            (1, rest.strip_prefix("alpha")?)
        };
        Some((stage, major, minor.parse().ok()?))
    };
    parse().unwrap_or_default()
}

fn group(group: &Group) -> Value {
    let version = |v: &Str| json!({"groupVersion": format!("{}/{v}", group.name), "version": v});
    json!({
        "name": group.name,
        "versions": group.versions.iter().map(version).collect::<Vec<_>>(),
        "preferredVersion": group.versions.first().map(version),
    })
}

fn resources(catalog: &Catalog, group: &str, version: &str) -> Option<Value> {
    let all = catalog.snapshot();
    let mut list = Vec::new();
    for d in all
        .iter()
        .filter(|d| d.group == group && d.version == version)
    {
        list.push(resource(d));
        list.extend(d.subresources.iter().map(|s| subresource(d, s)));
    }
    let group_version = amphipod_api::gvk::api_version(group, version);
    (!list.is_empty()).then(
        || json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list}),
    )
}

fn resource(d: &Descriptor) -> Value {
    let mut out = Map::new();
    out.insert("name".into(), json!(d.plural));
    out.insert("singularName".into(), json!(d.singular));
    out.insert("namespaced".into(), d.namespaced().into());
    out.insert("kind".into(), json!(d.kind));
    out.insert("verbs".into(), d.verbs.iter().map(|v| v.as_str()).collect());
    if !d.short_names.is_empty() {
        out.insert("shortNames".into(), json!(d.short_names));
    }
    if !d.categories.is_empty() {
        out.insert("categories".into(), json!(d.categories));
    }
    if d.stored {
        out.insert("storageVersionHash".into(), storage_hash(d).into());
    }
    Value::Object(out)
}

/// Tells clients when the stored version of a kind changes.
fn storage_hash(d: &Descriptor) -> String {
    let digest = Sha256::digest(format!("{}/{}/{}", d.group, d.version, d.kind));
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

fn subresource(d: &Descriptor, s: &Subresource) -> Value {
    let mut out = json!({
        "name": format!("{}/{}", d.plural, s.name),
        "singularName": "",
        "namespaced": d.namespaced(),
        "kind": s.body.as_ref().map_or(&d.kind, |(_, _, kind)| kind),
        "verbs": s.verbs.iter().map(|v| v.as_str()).collect::<Vec<_>>(),
    });
    if let Some((group, version, _)) = &s.body
        && (*group != d.group || *version != d.version)
    {
        out["group"] = json!(group);
        out["version"] = json!(version);
    }
    out
}

fn aggregated_resource(d: &Descriptor) -> Value {
    let mut out = json!({
        "resource": d.plural,
        "responseKind": {"group": d.group, "version": d.version, "kind": d.kind},
        "scope": if d.namespaced() { "Namespaced" } else { "Cluster" },
        "singularResource": d.singular,
        "verbs": d.verbs.iter().map(|v| v.as_str()).collect::<Vec<_>>(),
    });
    if !d.short_names.is_empty() {
        out["shortNames"] = json!(d.short_names);
    }
    if !d.categories.is_empty() {
        out["categories"] = json!(d.categories);
    }
    let subresources = d.subresources.iter().map(|s| {
        let (group, version, kind) = s
            .body
            .as_ref()
            .map_or((&d.group, &d.version, &d.kind), |(g, v, k)| (g, v, k));
        json!({
            "subresource": s.name,
            "responseKind": {"group": group, "version": version, "kind": kind},
            "verbs": s.verbs.iter().map(|v| v.as_str()).collect::<Vec<_>>(),
        })
    });
    if !d.subresources.is_empty() {
        out["subresources"] = subresources.collect();
    }
    out
}
