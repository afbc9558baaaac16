//! How lists merge: what `k8s-openapi`'s schemas do not carry.
//!
//! Source: `patchStrategy`/`patchMergeKey` tags and `+listType`/`+listMapKey` markers of the v1.36 API types, as the
//! published OpenAPI documents show them (`x-kubernetes-patch-*`, `x-kubernetes-list-*`).

/// The merge facts of one list or struct field.
#[derive(Debug, PartialEq, Eq)]
pub struct Merge {
    /// `x-kubernetes-patch-strategy`: `merge`, `replace`, `retainKeys`, `merge,retainKeys`, or empty.
    pub patch_strategy: &'static str,
    /// `x-kubernetes-patch-merge-key`, or empty (lists of scalars merge as sets).
    pub patch_key: &'static str,
    /// `x-kubernetes-list-type` (of a map field `x-kubernetes-map-type`): `map`, `set`, `atomic`, or empty.
    pub list_type: &'static str,
    /// `x-kubernetes-list-map-keys`.
    pub map_keys: &'static [&'static str],
}

/// `atomic` without a patch strategy: what lists are unless the table says otherwise, and maps if it says so.
pub const ATOMIC: Merge = Merge {
    patch_strategy: "",
    patch_key: "",
    list_type: "atomic",
    map_keys: &[],
};

const fn map(patch_key: &'static str, map_keys: &'static [&'static str]) -> Merge {
    Merge {
        patch_strategy: "merge",
        patch_key,
        list_type: "map",
        map_keys,
    }
}

const fn patch_only(patch_key: &'static str) -> Merge {
    Merge {
        patch_strategy: "merge",
        patch_key,
        list_type: "atomic",
        map_keys: &[],
    }
}

const fn map_only(map_keys: &'static [&'static str]) -> Merge {
    Merge {
        patch_strategy: "",
        patch_key: "",
        list_type: "map",
        map_keys,
    }
}

const fn set(patch_strategy: &'static str) -> Merge {
    Merge {
        patch_strategy,
        patch_key: "",
        list_type: "set",
        map_keys: &[],
    }
}

const fn retain_keys() -> Merge {
    Merge {
        patch_strategy: "retainKeys",
        patch_key: "",
        list_type: "",
        map_keys: &[],
    }
}

const BY_TYPE: Merge = map("type", &["type"]);
const BY_NAME: Merge = map("name", &["name"]);
const CONTAINER_PORTS: Merge = map("containerPort", &["containerPort", "protocol"]);
const CLAIMS: Merge = Merge {
    patch_strategy: "merge,retainKeys",
    patch_key: "name",
    list_type: "map",
    map_keys: &["name"],
};

/// `(struct without the io.k8s. prefix, field, facts)`, sorted.
static FACTS: &[(&str, &str, Merge)] = &[
    ("api.apps.v1.DaemonSetStatus", "conditions", BY_TYPE),
    ("api.apps.v1.DeploymentSpec", "strategy", retain_keys()),
    ("api.apps.v1.DeploymentStatus", "conditions", BY_TYPE),
    ("api.apps.v1.ReplicaSetStatus", "conditions", BY_TYPE),
    ("api.apps.v1.StatefulSetStatus", "conditions", BY_TYPE),
    (
        "api.autoscaling.v2.HorizontalPodAutoscalerStatus",
        "conditions",
        BY_TYPE,
    ),
    ("api.batch.v1.JobStatus", "conditions", patch_only("type")),
    (
        "api.batch.v1.PodFailurePolicyOnExitCodesRequirement",
        "values",
        set(""),
    ),
    ("api.batch.v1.UncountedTerminatedPods", "failed", set("")),
    ("api.batch.v1.UncountedTerminatedPods", "succeeded", set("")),
    (
        "api.certificates.v1.CertificateSigningRequestStatus",
        "conditions",
        map_only(&["type"]),
    ),
    ("api.core.v1.Container", "env", BY_NAME),
    ("api.core.v1.Container", "ports", CONTAINER_PORTS),
    (
        "api.core.v1.Container",
        "volumeDevices",
        map("devicePath", &["devicePath"]),
    ),
    (
        "api.core.v1.Container",
        "volumeMounts",
        map("mountPath", &["mountPath"]),
    ),
    (
        "api.core.v1.ContainerRestartRuleOnExitCodes",
        "values",
        set(""),
    ),
    (
        "api.core.v1.ContainerStatus",
        "allocatedResourcesStatus",
        BY_NAME,
    ),
    (
        "api.core.v1.ContainerStatus",
        "volumeMounts",
        map("mountPath", &["mountPath"]),
    ),
    ("api.core.v1.EphemeralContainer", "env", BY_NAME),
    ("api.core.v1.EphemeralContainer", "ports", CONTAINER_PORTS),
    (
        "api.core.v1.EphemeralContainer",
        "volumeDevices",
        map("devicePath", &["devicePath"]),
    ),
    (
        "api.core.v1.EphemeralContainer",
        "volumeMounts",
        map("mountPath", &["mountPath"]),
    ),
    ("api.core.v1.NamespaceStatus", "conditions", BY_TYPE),
    ("api.core.v1.NodeSpec", "podCIDRs", set("merge")),
    (
        "api.core.v1.NodeStatus",
        "addresses",
        map("type", &["type"]),
    ),
    ("api.core.v1.NodeStatus", "conditions", BY_TYPE),
    (
        "api.core.v1.PersistentVolumeClaimStatus",
        "conditions",
        BY_TYPE,
    ),
    ("api.core.v1.PodSpec", "containers", BY_NAME),
    ("api.core.v1.PodSpec", "ephemeralContainers", BY_NAME),
    ("api.core.v1.PodSpec", "hostAliases", map("ip", &["ip"])),
    ("api.core.v1.PodSpec", "imagePullSecrets", BY_NAME),
    ("api.core.v1.PodSpec", "initContainers", BY_NAME),
    ("api.core.v1.PodSpec", "nodeSelector", ATOMIC),
    ("api.core.v1.PodSpec", "resourceClaims", CLAIMS),
    ("api.core.v1.PodSpec", "schedulingGates", BY_NAME),
    (
        "api.core.v1.PodSpec",
        "topologySpreadConstraints",
        map("topologyKey", &["topologyKey", "whenUnsatisfiable"]),
    ),
    ("api.core.v1.PodSpec", "volumes", CLAIMS),
    ("api.core.v1.PodStatus", "conditions", BY_TYPE),
    ("api.core.v1.PodStatus", "hostIPs", patch_only("ip")),
    ("api.core.v1.PodStatus", "podIPs", map("ip", &["ip"])),
    ("api.core.v1.PodStatus", "resourceClaimStatuses", CLAIMS),
    ("api.core.v1.ReplicationControllerSpec", "selector", ATOMIC),
    (
        "api.core.v1.ReplicationControllerStatus",
        "conditions",
        BY_TYPE,
    ),
    (
        "api.core.v1.ResourceRequirements",
        "claims",
        map_only(&["name"]),
    ),
    (
        "api.core.v1.ResourceStatus",
        "resources",
        map_only(&["resourceID"]),
    ),
    ("api.core.v1.ServiceAccount", "secrets", BY_NAME),
    (
        "api.core.v1.ServiceSpec",
        "ports",
        map("port", &["port", "protocol"]),
    ),
    ("api.core.v1.ServiceSpec", "selector", ATOMIC),
    ("api.core.v1.ServiceStatus", "conditions", BY_TYPE),
    ("api.discovery.v1.Endpoint", "addresses", set("")),
    ("api.flowcontrol.v1.FlowSchemaStatus", "conditions", BY_TYPE),
    (
        "api.flowcontrol.v1.PriorityLevelConfigurationStatus",
        "conditions",
        BY_TYPE,
    ),
    ("api.networking.v1.ServiceCIDRStatus", "conditions", BY_TYPE),
    (
        "api.policy.v1.PodDisruptionBudgetStatus",
        "conditions",
        BY_TYPE,
    ),
    ("api.storage.v1.CSINodeSpec", "drivers", BY_NAME),
    (
        "apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionStatus",
        "conditions",
        map_only(&["type"]),
    ),
    (
        "apimachinery.pkg.apis.meta.v1.ObjectMeta",
        "finalizers",
        set("merge"),
    ),
    (
        "apimachinery.pkg.apis.meta.v1.ObjectMeta",
        "ownerReferences",
        map("uid", &["uid"]),
    ),
    (
        "kube-aggregator.pkg.apis.apiregistration.v1.APIServiceStatus",
        "conditions",
        BY_TYPE,
    ),
];

/// The facts of a field; `owner` is the struct's full name.
pub fn merge_of(owner: &str, field: &str) -> Option<&'static Merge> {
    let owner = owner.strip_prefix("io.k8s.").unwrap_or(owner);
    let at = FACTS
        .binary_search_by(|(o, f, _)| (*o, *f).cmp(&(owner, field)))
        .ok()?;
    Some(&FACTS[at].2)
}

/// Structs, sorted, that are compared and replaced as a whole.
static ATOMIC_TYPES: &[&str] = &[
    "api.core.v1.ConfigMapKeySelector",
    "api.core.v1.EndpointAddress",
    "api.core.v1.EndpointPort",
    "api.core.v1.FileKeySelector",
    "api.core.v1.LocalObjectReference",
    "api.core.v1.NodeSelector",
    "api.core.v1.NodeSelectorTerm",
    "api.core.v1.ObjectFieldSelector",
    "api.core.v1.ObjectReference",
    "api.core.v1.ResourceFieldSelector",
    "api.core.v1.ScopeSelector",
    "api.core.v1.ScopedResourceSelectorRequirement",
    "api.core.v1.SecretKeySelector",
    "api.core.v1.SecretReference",
    "api.core.v1.TopologySelectorTerm",
    "api.core.v1.TypedLocalObjectReference",
    "api.discovery.v1.EndpointPort",
    "api.rbac.v1.RoleRef",
    "api.rbac.v1.Subject",
    "apimachinery.pkg.apis.meta.v1.LabelSelector",
    "apimachinery.pkg.apis.meta.v1.OwnerReference",
];

/// Whether objects of a struct are compared and replaced as a whole (`x-kubernetes-map-type: atomic`); its full name.
pub fn is_atomic(name: &str) -> bool {
    let name = name.strip_prefix("io.k8s.").unwrap_or(name);
    ATOMIC_TYPES.binary_search(&name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_so_that_every_row_is_found() {
        for pair in FACTS.windows(2) {
            assert!(
                (pair[0].0, pair[0].1) < (pair[1].0, pair[1].1),
                "{} {}",
                pair[1].0,
                pair[1].1
            );
        }
        assert!(ATOMIC_TYPES.is_sorted());
        assert_eq!(
            merge_of("io.k8s.api.core.v1.Container", "env").map(|m| m.patch_key),
            Some("name")
        );
        assert_eq!(merge_of("io.k8s.api.core.v1.PodSpec", "tolerations"), None);
    }
}
