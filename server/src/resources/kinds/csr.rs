//! CertificateSigningRequest: <https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/>.

use std::collections::HashSet;

use amphipod_api::meta::{array_at, i64_at, str_at};
use amphipod_api::time::human_duration;
use amphipod_api::{FieldError, FieldPath, GroupResource, Status, names};
use base64::Engine;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1;
use serde_json::{Map, Value, json};

use super::Kind;
use crate::resources::common::{keep, spec_mut};
use crate::resources::table::{NONE, age_cell, name};
use crate::resources::validate::{immutable, problems};
use crate::resources::{Column, Descriptor, SelectableField, Strategy, StrategyContext};

pub fn descriptor() -> Descriptor {
    Kind::new::<v1::CertificateSigningRequest>(
        "certificates.k8s.io",
        "v1",
        "CertificateSigningRequest",
        "certificatesigningrequests",
    )
    .cluster()
    .short(&["csr"])
    .part("approval")
    .status()
    .fields(vec![SelectableField::new("spec.signerName")])
    .columns(vec![
        Column::name(),
        Column::age(),
        Column::new("SignerName", "Who is asked to sign."),
        Column::new("Requestor", "Who asks."),
        Column::new(
            "RequestedDuration",
            "How long the certificate should be good.",
        ),
        Column::new("Condition", "What has happened so far."),
    ])
    .strategy(Csr)
    .build()
}

struct Csr;

impl Strategy for Csr {
    fn prepare_for_create(&self, cx: &StrategyContext, obj: &mut Value) -> Result<(), Status> {
        obj["status"] = json!({});
        // Who asks is what the request says, not what its body says.
        let spec = spec_mut(obj);
        for field in ["uid", "extra", "groups"] {
            spec.remove(field);
        }
        spec.insert("username".into(), cx.user.name.clone().into());
        spec.insert("groups".into(), json!(cx.user.groups));
        if !cx.user.uid.is_empty() {
            spec.insert("uid".into(), cx.user.uid.clone().into());
        }
        if !cx.user.extra.is_empty() {
            spec.insert("extra".into(), json!(cx.user.extra));
        }
        Ok(())
    }

    fn prepare_for_update(
        &self,
        cx: &StrategyContext,
        new: &mut Value,
        old: &Value,
        sub: Option<&str>,
    ) -> Result<(), Status> {
        keep(new, old, "spec");
        match sub {
            None => keep(new, old, "status"),
            Some("approval") => {
                let conditions = new.pointer("/status/conditions").cloned();
                keep(new, old, "status");
                if let Some(conditions) = conditions {
                    new["status"]["conditions"] = conditions;
                }
            }
            Some(_) => {}
        }
        may_decide(cx, new, old, sub)?;
        let now = amphipod_api::time::format_time(cx.now);
        if let Some(conditions) = new
            .pointer_mut("/status/conditions")
            .and_then(Value::as_array_mut)
        {
            for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
                stamp(condition, &now);
            }
        }
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let spec = FieldPath::new("spec");
        if let Err(why) = request(str_at(obj, &["spec", "request"])) {
            errors.push(FieldError::invalid(
                spec.child("request"),
                str_at(obj, &["spec", "request"]),
                why,
            ));
        }
        let usages = array_at(obj, &["spec", "usages"]);
        if usages.is_empty() {
            errors.push(FieldError::required(
                spec.child("usages"),
                "usages is required",
            ));
        }
        let mut seen = HashSet::new();
        for (index, usage) in usages.iter().enumerate() {
            let usage = usage.as_str().unwrap_or_default();
            let path = spec.child("usages");
            if !USAGES.contains(&usage) {
                errors.push(FieldError::not_supported(path.index(index), usage, USAGES));
            } else if !seen.insert(usage) {
                errors.push(FieldError::duplicate(path.index(index), usage));
            }
        }
        let signer = str_at(obj, &["spec", "signerName"]);
        let path = spec.child("signerName");
        match signer.split_once('/') {
            _ if signer.is_empty() => errors.push(FieldError::required(path, "")),
            None => {
                let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
                errors.push(FieldError::invalid(path, signer, why));
            }
            Some((domain, _)) => {
                problems(&path, signer, names::dns1123_subdomain(domain), &mut errors)
            }
        }
        if let Some(seconds) = i64_at(obj, &["spec", "expirationSeconds"])
            && seconds < 600
        {
            let why = "may not specify a duration less than 600 seconds (10 minutes)";
            errors.push(FieldError::invalid(
                spec.child("expirationSeconds"),
                seconds,
                why,
            ));
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value, sub: Option<&str>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let path = FieldPath::new("status.conditions");
        let find = |obj: &Value, kind: &str| {
            array_at(obj, &["status", "conditions"])
                .iter()
                .any(|c| str_at(c, &["type"]) == kind)
        };
        if sub.is_some() {
            for kind in ["Approved", "Denied", "Failed"] {
                if find(old, kind) && !find(new, kind) {
                    let why = format!("updates may not remove a condition of type {kind:?}");
                    errors.push(FieldError::forbidden(path, why));
                }
            }
            if find(new, "Approved") && find(new, "Denied") {
                let why = "Approved and Denied conditions are mutually exclusive";
                errors.push(FieldError::invalid(path, "Denied", why));
            }
        }
        if sub == Some("status") {
            let certificate = |v: &Value| v.pointer("/status/certificate").cloned();
            if let Some(before) = certificate(old) {
                let path = FieldPath::new("status.certificate");
                immutable(&path, certificate(new).as_ref(), Some(&before), &mut errors);
            }
        }
        errors
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let duration = match i64_at(obj, &["spec", "expirationSeconds"]) {
            Some(seconds) => human_duration(SignedDuration::from_secs(seconds)),
            None => NONE.to_owned(),
        };
        vec![
            name(obj),
            age_cell(obj, now),
            str_at(obj, &["spec", "signerName"]).into(),
            str_at(obj, &["spec", "username"]).into(),
            duration.into(),
            condition(obj).into(),
        ]
    }
}

/// Deciding needs the verb `approve`, and issuing the verb `sign`, on the signer.
fn may_decide(
    cx: &StrategyContext,
    new: &Value,
    old: &Value,
    sub: Option<&str>,
) -> Result<(), Status> {
    let changed = |field: &str| {
        let path = ["", "status", field].join("/");
        new.pointer(&path) != old.pointer(&path)
    };
    let verb = match sub {
        Some("approval") if changed("conditions") => "approve",
        Some("status") if changed("conditions") || changed("certificate") => "sign",
        _ => return Ok(()),
    };
    let signer = str_at(old, &["spec", "signerName"]);
    let domain = signer.split('/').next().unwrap_or_default();
    let may = |name: &str| {
        cx.privileges
            .may(cx.user, verb, "certificates.k8s.io", "signers", "", name)
    };
    if may(signer) || may(&format!("{domain}/*")) {
        return Ok(());
    }
    Err(Status::forbidden(
        &GroupResource::new("certificates.k8s.io", "certificatesigningrequests"),
        str_at(old, &["metadata", "name"]),
        format!("user not permitted to {verb} requests with signerName {signer:?}"),
    ))
}

/// `Pending`, or `Approved,Issued` and the like.
fn condition(obj: &Value) -> String {
    let has = |kind: &str| {
        array_at(obj, &["status", "conditions"])
            .iter()
            .any(|c| str_at(c, &["type"]) == kind)
    };
    let mut text = if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if has("Failed") {
        text.push_str(",Failed");
    }
    if !str_at(obj, &["status", "certificate"]).is_empty() {
        text.push_str(",Issued");
    }
    text
}

fn stamp(condition: &mut Map<String, Value>, now: &str) {
    for field in ["lastUpdateTime", "lastTransitionTime"] {
        condition.entry(field).or_insert_with(|| now.into());
    }
}

fn request(text: &str) -> Result<(), &'static str> {
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap_or_default();
    let wrong = "PEM block type must be CERTIFICATE REQUEST";
    let (_, pem) = x509_parser::pem::parse_x509_pem(&decoded).map_err(|_| wrong)?;
    if pem.label != "CERTIFICATE REQUEST" {
        return Err(wrong);
    }
    use x509_parser::prelude::FromDer;
    x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents)
        .map(|_| ())
        .map_err(|_| "asn1: structure error: not a certificate request")
}

const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
