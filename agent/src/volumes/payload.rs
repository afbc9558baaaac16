//! The files of configMap, secret, downwardAPI and projected volumes, computed from objects. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ConfigMapProjection, DownwardAPIVolumeFile, KeyToPath, SecretProjection,
    ServiceAccountTokenProjection,
};

use super::Context;
use crate::env::downward;

/// One file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Owner, when it must not be root (tokens of pods that run as one user).
    pub owner: Option<u32>,
}

/// Files by path relative to the volume.
pub type Payload = BTreeMap<String, File>;

/// Default mode of files (`defaultMode`).
pub const MODE: i32 = 0o644;

fn pick(
    data: impl Iterator<Item = (String, Vec<u8>)>,
    items: Option<&Vec<KeyToPath>>,
    optional: bool,
    mode: i32,
    what: &str,
) -> Result<Payload, String> {
    let file = |data, mode: i32| File {
        data,
        mode: mode as u32 & 0o7777,
        owner: None,
    };
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        return Ok(data.map(|(k, v)| (k, file(v, mode))).collect());
    };
    let all: BTreeMap<String, Vec<u8>> = data.collect();
    let mut out = Payload::new();
    for item in items {
        match all.get(&item.key) {
            Some(v) => {
                out.insert(
                    clean(&item.path)?,
                    file(v.clone(), item.mode.unwrap_or(mode)),
                );
            }
            None if optional => {}
            None => return Err(format!("references non-existent {what} key: {}", item.key)),
        }
    }
    Ok(out)
}

/// A relative path inside the volume; what leaves it is refused.
fn clean(path: &str) -> Result<String, String> {
    let mut parts = Vec::new();
    if path.is_empty() || path.starts_with('/') {
        return Err(format!("invalid path: must be relative path: {path}"));
    }
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(format!("invalid path: must not contain '..': {path}")),
            part => parts.push(part),
        }
    }
    if parts.first().is_none_or(|p| p.starts_with("..")) {
        return Err(format!("invalid path: must not start with '..': {path}"));
    }
    Ok(parts.join("/"))
}

pub fn config_map(cx: &Context, p: &ConfigMapProjection, mode: i32) -> Result<Payload, String> {
    let optional = p.optional == Some(true);
    let Some(cm) = cx.objects.config_map(cx.namespace(), &p.name)? else {
        return if optional {
            Ok(Payload::new())
        } else {
            Err(format!("configmap \"{}\" not found", p.name))
        };
    };
    let text = cm
        .data
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = cm
        .binary_data
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.0.clone()));
    pick(
        text.chain(binary),
        p.items.as_ref(),
        optional,
        mode,
        "config",
    )
}

pub fn secret(cx: &Context, p: &SecretProjection, mode: i32) -> Result<Payload, String> {
    let optional = p.optional == Some(true);
    let Some(secret) = cx.objects.secret(cx.namespace(), &p.name)? else {
        return if optional {
            Ok(Payload::new())
        } else {
            Err(format!("secret \"{}\" not found", p.name))
        };
    };
    let data = secret
        .data
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.0.clone()));
    pick(data, p.items.as_ref(), optional, mode, "secret")
}

pub fn downward_api(
    cx: &Context,
    items: Option<&Vec<DownwardAPIVolumeFile>>,
    mode: i32,
) -> Result<Payload, String> {
    let mut out = Payload::new();
    for item in items.into_iter().flatten() {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(f), _) => downward::field(cx.pod, cx.facts, f)?,
            (None, Some(r)) => downward::resource(cx.pod, None, cx.facts, r)?,
            (None, None) => {
                return Err(format!("downward API item {:?} names no field", item.path));
            }
        };
        let mode = item.mode.unwrap_or(mode) as u32 & 0o7777;
        out.insert(
            clean(&item.path)?,
            File {
                data: text.into_bytes(),
                mode,
                owner: None,
            },
        );
    }
    Ok(out)
}

/// The token that `p` asks for, as [`Context::tokens`] keys it.
pub fn token_key(p: &ServiceAccountTokenProjection) -> super::TokenKey {
    (
        p.audience.clone().unwrap_or_default(),
        p.expiration_seconds.unwrap_or(3600),
    )
}

pub fn token(
    cx: &Context,
    p: &ServiceAccountTokenProjection,
    mode: i32,
) -> Result<Payload, String> {
    let token = cx
        .tokens
        .get(&token_key(p))
        .ok_or_else(|| "failed to fetch token: not yet issued".to_string())?;
    let owned = cx.fs_user().is_some() || cx.fs_group().is_some();
    let mode = if owned { 0o600 } else { mode as u32 & 0o7777 };
    Ok([(
        clean(&p.path)?,
        File {
            data: token.clone().into_bytes(),
            mode,
            owner: cx.fs_user(),
        },
    )]
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside_the_volume() {
        assert_eq!(clean("a/./b//c"), Ok("a/b/c".into()));
        for bad in ["", "/a", "../a", "a/../b", "..data", "..x/y"] {
            assert!(clean(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn items_choose_keys_and_modes() {
        let data = || {
            [
                ("a".to_string(), b"1".to_vec()),
                ("b".to_string(), b"2".to_vec()),
            ]
            .into_iter()
        };
        let item = |key: &str, mode| KeyToPath {
            key: key.into(),
            path: format!("d/{key}"),
            mode,
        };
        let all = pick(data(), None, false, 0o644, "config");
        assert_eq!(all.map(|p| p.len()), Ok(2));
        let one = pick(
            data(),
            Some(&vec![item("b", Some(0o400))]),
            false,
            0o644,
            "config",
        );
        assert_eq!(
            one,
            Ok([(
                "d/b".to_string(),
                File {
                    data: b"2".to_vec(),
                    mode: 0o400,
                    owner: None
                }
            )]
            .into())
        );
        let none = pick(data(), Some(&vec![item("x", None)]), false, 0o644, "config");
        assert_eq!(none, Err("references non-existent config key: x".into()));
        assert_eq!(
            pick(data(), Some(&vec![item("x", None)]), true, 0o644, "config"),
            Ok(Payload::new())
        );
    }
}
