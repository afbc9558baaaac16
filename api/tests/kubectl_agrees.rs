//! Our patches against those of the real kubectl (`kubectl patch --local` applies them with upstream's code, offline).
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::process::{Command, Stdio};

use amphipod_api::patch::{
    Field, PatchSchema, apply_json_patch, apply_merge_patch, apply_strategic_merge_patch,
};
use serde_json::{Value, json};

/// The corner of a Pod's type that the cases use.
#[derive(Clone, Copy)]
struct Pod;

impl PatchSchema for Pod {
    fn field(&self, name: &str) -> Field<Pod> {
        let key = match name {
            "containers" | "env" | "volumes" => Some("name"),
            "ports" => Some("containerPort"),
            "volumeMounts" => Some("mountPath"),
            "ownerReferences" => Some("uid"),
            _ => None,
        };
        Field {
            merge: key.is_some() || name == "finalizers",
            merge_key: key.map(Into::into),
            schema: Some(Pod),
            ..Field::default()
        }
    }
}

/// A small, seeded source of choices: a failure prints its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.roll(100) < percent
    }

    /// Some of the names, each once, in any order.
    fn some(&mut self, names: &[&'static str]) -> Vec<&'static str> {
        let mut picked: Vec<_> = names.iter().copied().filter(|_| self.chance(50)).collect();
        for i in (1..picked.len()).rev() {
            picked.swap(i, self.roll(i + 1));
        }
        picked
    }

    fn container(&mut self, name: &str, patch: bool) -> Value {
        let mut container = json!({"name": name});
        if self.chance(60) {
            container["image"] = format!("i{}", self.roll(3)).into();
        }
        if self.chance(30) {
            container["args"] = json!(self.some(&["x", "y", "z"]));
        }
        if self.chance(50) {
            let env = self.some(&["A", "B", "C"]);
            container["env"] = env
                .iter()
                .map(|n| json!({"name": n, "value": format!("{}", self.roll(5))}))
                .collect();
        }
        if self.chance(30) {
            let ports = self.some(&["80", "81", "82"]);
            container["ports"] =
                ports.iter().map(|p| json!({"containerPort": p.parse::<u16>().unwrap(), "name": format!("n{}", self.roll(3))})).collect();
        }
        if patch && self.chance(15) {
            container["$patch"] = "delete".into();
        }
        if patch && self.chance(15) {
            container["image"] = Value::Null;
        }
        container
    }

    fn pod(&mut self) -> Value {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"nodeName": "n"}});
        if self.chance(80) {
            let names = self.some(&["a", "b", "c", "d", "e"]);
            pod["spec"]["containers"] = names.iter().map(|n| self.container(n, false)).collect();
        }
        if self.chance(60) {
            pod["metadata"]["finalizers"] = json!(self.some(&["x/1", "x/2", "x/3", "x/4"]));
        }
        // Always there: kubectl 1.32 lets a $retainKeys that meets nothing into the document.
        pod["metadata"]["labels"] = json!({"l1": "1", "l2": "2"});
        pod
    }

    fn strategic_patch(&mut self) -> Value {
        let mut patch = json!({"metadata": {}, "spec": {}});
        let names = self.some(&["a", "b", "c", "d", "e", "f"]);
        if self.chance(80) {
            let mut containers: Vec<Value> =
                names.iter().map(|n| self.container(n, true)).collect();
            if self.chance(10) {
                containers.insert(
                    self.roll(containers.len() + 1),
                    json!({"$patch": "replace"}),
                );
            }
            patch["spec"]["containers"] = containers.into();
        }
        if self.chance(40) {
            // The names of the patch in their order, with others among them, as kubectl apply writes it.
            let mut order: Vec<Value> = Vec::new();
            for name in names {
                if self.chance(30) {
                    order.push(json!({"name": format!("o{}", self.roll(100))}));
                }
                order.push(json!({"name": name}));
            }
            if !order.is_empty() {
                patch["spec"]["$setElementOrder/containers"] = order.into();
            }
        }
        let finalizers = self.some(&["x/1", "x/2", "x/3", "x/4", "x/5"]);
        if self.chance(50) {
            patch["metadata"]["finalizers"] = json!(finalizers);
            if self.chance(50) && !finalizers.is_empty() {
                patch["metadata"]["$setElementOrder/finalizers"] = json!(finalizers);
            }
        }
        if self.chance(30) {
            // What is added is not deleted: upstream does both in random order.
            let mut gone = self.some(&["x/1", "x/2", "x/3"]);
            gone.retain(|name| !finalizers.contains(name));
            patch["metadata"]["$deleteFromPrimitiveList/finalizers"] = json!(gone);
        }
        if self.chance(30) {
            patch["metadata"]["labels"] = json!({"l1": null, "l3": "3", "l4": null});
        }
        if self.chance(10) {
            patch["metadata"]["labels"] = json!({"$patch": "replace", "l5": "5"});
        }
        if self.chance(10) {
            patch["metadata"]["labels"] = json!({"$retainKeys": ["l2", "l6"], "l6": "6"});
        }
        patch
    }

    fn json_patch(&mut self) -> Value {
        let paths = [
            "/spec/containers/0",
            "/spec/containers/-",
            "/spec/containers/1/image",
            "/metadata/labels/l1",
            "/metadata/labels/l~19",
            "/spec/securityContext/runAsUser",
            "/spec/containers/9/image",
            "/metadata/finalizers/0",
            "/metadata/finalizers/-1",
            "/metadata/annotations",
            "/metadata/finalizers",
            "/spec/containers/0/env/1",
        ];
        let operations = (0..=self.roll(3)).map(|_| {
            let path = paths[self.roll(paths.len())];
            let value = match path {
                "/spec/containers/0" | "/spec/containers/-" => json!({"name": "new"}),
                "/metadata/annotations" => json!({"k": "v"}),
                "/metadata/finalizers" => json!(["x/9"]),
                "/spec/containers/0/env/1" => json!({"name": "E"}),
                "/spec/securityContext/runAsUser" => json!(5),
                _ => json!("x/0"),
            };
            match self.roll(6) {
                0 | 1 => json!({"op": "add", "path": path, "value": value}),
                2 => json!({"op": "remove", "path": path}),
                3 => json!({"op": "replace", "path": path, "value": value}),
                4 => json!({"op": "test", "path": "/metadata/labels/l1", "value": "1"}),
                _ => json!({"op": "copy", "from": "/metadata/labels/l2", "path": "/metadata/labels/l7"}),
            }
        });
        operations.collect()
    }
}

/// What kubectl makes of it; `Err` with its complaint.
fn kubectl(kind: &str, document: &Value, patch: &Value) -> Result<Value, String> {
    let mut child = Command::new("kubectl")
        .args([
            "patch",
            "--local",
            "-f",
            "-",
            "-o",
            "json",
            "--type",
            kind,
            "-p",
            &patch.to_string(),
        ])
        .env("HOME", "/nonexistent")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl runs");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(document.to_string().as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_string());
    }
    Ok(serde_json::from_slice(&output.stdout).unwrap())
}

/// Without what typed Go structs drop or add: nulls, empty lists and objects.
fn plain(value: Value) -> Value {
    let empty = |v: &Value| {
        v.is_null()
            || v.as_array().is_some_and(Vec::is_empty)
            || v.as_object().is_some_and(|m| m.is_empty())
    };
    match value {
        Value::Object(map) => map
            .into_iter()
            .map(|(k, v)| (k, plain(v)))
            .filter(|(_, v)| !empty(v))
            .collect(),
        Value::Array(items) => items.into_iter().map(plain).collect(),
        other => other,
    }
}

fn have_kubectl() -> bool {
    let there = Command::new("kubectl")
        .args(["version", "--client"])
        .output()
        .is_ok();
    if !there {
        eprintln!("skipped: no kubectl on this machine");
    }
    there
}

/// Whether kubectl refuses to replace what is not there. Upstream (json-patch v4) adds it, as we do; Debian builds kubectl with v5.
fn refuses_to_replace_nothing() -> bool {
    let document = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}});
    let patch = json!([{"op": "replace", "path": "/metadata/finalizers", "value": ["a/b"]}]);
    kubectl("json", &document, &patch).is_err_and(|why| why.contains("missing field"))
}

/// Compares both on many cases. Where kubectl refuses, we must, and the other way round.
fn agree(
    kind: &str,
    cases: u64,
    make: fn(&mut Dice) -> Value,
    apply: fn(&mut Value, &Value) -> Result<(), String>,
) {
    if !have_kubectl() {
        return;
    }
    let strict = refuses_to_replace_nothing();
    let mut applied = 0;
    for seed in 1..=cases {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (document, patch) = (dice.pod(), make(&mut dice));
        let mut ours = document.clone();
        let result = apply(&mut ours, &patch);
        let theirs = kubectl(kind, &document, &patch);
        let context = format!("seed {seed}\ndocument {document}\npatch {patch}");
        match (result, theirs) {
            (_, Err(theirs)) if strict && theirs.contains("missing field") => {}
            (Ok(()), Ok(theirs)) => {
                applied += 1;
                assert_eq!(plain(ours), plain(theirs), "{context}");
            }
            (Err(ours), Err(theirs)) => assert!(
                // v5 begins it in lower case.
                theirs.to_lowercase().contains(&ours.trim().to_lowercase())
                    // kubectl has words of its own for this one.
                    || theirs.contains("missing field") && ours.contains("missing value"),
                "{context}\nours: {ours}\nkubectl: {theirs}"
            ),
            (ours, theirs) => panic!("{context}\nours: {ours:?}\nkubectl: {theirs:?}"),
        }
    }
    assert!(
        applied > cases / 4,
        "too few of the cases apply to mean much: {applied}"
    );
}

#[test]
fn strategic_merge_patches_do_what_kubectl_does() {
    agree(
        "strategic",
        150,
        Dice::strategic_patch,
        |document, patch| {
            apply_strategic_merge_patch(document, patch, &Pod).map_err(|e| e.to_string())
        },
    );
}

#[test]
fn merge_patches_do_what_kubectl_does() {
    let make = |dice: &mut Dice| {
        let mut patch = dice.pod();
        patch["metadata"]["labels"] = json!({"l1": null, "l9": "9"});
        patch
    };
    agree("merge", 30, make, |document, patch| {
        apply_merge_patch(document, patch);
        Ok(())
    });
}

#[test]
fn json_patches_do_what_kubectl_does() {
    agree("json", 100, Dice::json_patch, |document, patch| {
        apply_json_patch(document, patch).map_err(|e| e.to_string())
    });
}
