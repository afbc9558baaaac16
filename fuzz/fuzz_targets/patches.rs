//! Patches of stored objects: one letter for the object, one for the kind of patch, then the patch.
#![no_main]

use amphipod_api::patch::{
    NoSchema, PatchType, apply_json_patch, apply_merge_patch, apply_strategic_merge_patch,
};
use amphipod_fuzz::{objects, server};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let [object, kind, body @ ..] = data else {
        return;
    };
    let server = server();
    let resource = match object {
        b'd' => "deployments.apps",
        b's' => "services",
        b'c' => "configmaps",
        b'n' => "nodes",
        b'r' => "roles.rbac.authorization.k8s.io",
        _ => "pods",
    };
    let kind = match kind {
        b'j' => PatchType::Json,
        b'm' => PatchType::Merge,
        _ => PatchType::StrategicMerge,
    };
    let Some(descriptor) = server.registry.catalog().by_resource(resource) else {
        return;
    };
    for part in [None, Some("status"), Some("scale")] {
        let mut context = server.dry_run(&descriptor);
        if let Some(part) = part {
            if descriptor.subresource(part).is_none() {
                continue;
            }
            context = context.with_subresource(part);
        }
        if let Err(status) = server.block_on(server.registry.patch(&context, "a", kind, body)) {
            assert!(status.code >= 400, "{status:?}");
        }
    }
    if let Ok(patch) = serde_json::from_slice::<Value>(body)
        && let Some(document) = objects().into_iter().nth(usize::from(*object) % 8)
    {
        pure(document, &patch);
    }
});

/// What holds of patches whatever the document is.
fn pure(document: Value, patch: &Value) {
    let mut once = document.clone();
    apply_merge_patch(&mut once, patch);
    let mut twice = once.clone();
    apply_merge_patch(&mut twice, patch);
    assert_eq!(once, twice, "a merge patch applied again changes something");

    let mut patched = document.clone();
    if apply_json_patch(&mut patched, patch).is_ok() && patch.as_array().is_some_and(Vec::is_empty)
    {
        assert_eq!(patched, document, "an empty JSON patch changes something");
    }
    // Without a schema a strategic merge patch without directives is a merge patch, but for what it leaves out of new lists.
    let mut merged = document;
    let _ = apply_strategic_merge_patch(&mut merged, patch, &NoSchema);
}
