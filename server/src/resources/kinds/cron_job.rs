//! CronJob: <https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/cron-job-v1/>.

use amphipod_api::meta::{array_at, at, bool_at, child, name as name_of, str_at};
use amphipod_api::{FieldError, FieldPath, Status};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1;
use serde_json::{Value, json};

use super::Kind;
use super::job;
use super::workload::{SPEC, default_template};
use crate::resources::common::{create_with_status, fill, fill_text, spec_mut, update_with_status};
use crate::resources::schedule::{Schedule, time_zone};
use crate::resources::table::{
    NONE, age_cell, containers_and_images, name, or_none, selector, since,
};
use crate::resources::validate::{Errors, non_negative, one_of, pod};
use crate::resources::{Column, Descriptor, Strategy, StrategyContext};

/// A job has the name of its CronJob, a dash and ten digits, and no more than 63 characters.
const LONGEST_NAME: usize = 52;
const TEMPLATE: FieldPath = FieldPath::new("spec.jobTemplate.spec");

pub fn descriptor() -> Descriptor {
    Kind::new::<v1::CronJob>("batch", "v1", "CronJob", "cronjobs")
        .short(&["cj"])
        .in_all()
        .status()
        .columns(vec![
            Column::name(),
            Column::new("Schedule", "When jobs are made."),
            Column::new("Timezone", "Where that time is meant."),
            Column::new("Suspend", "Whether none are made for now.").of_type("boolean"),
            Column::new("Active", "Jobs that run.").of_type("integer"),
            Column::new("Last Schedule", "When the last job was due."),
            Column::age(),
            Column::new("Containers", "Names of the containers in the template.").wide(),
            Column::new("Images", "Images of the containers in the template.").wide(),
            Column::new("Selector", "Label selector of the pods.").wide(),
        ])
        .strategy(CronJob)
        .build()
}

struct CronJob;

impl Strategy for CronJob {
    fn default(&self, obj: &mut Value) {
        let spec = spec_mut(obj);
        fill_text(spec, "concurrencyPolicy", "Allow");
        fill(spec, "suspend", false);
        fill(spec, "successfulJobsHistoryLimit", 3);
        fill(spec, "failedJobsHistoryLimit", 1);
        let template = spec.entry("jobTemplate").or_insert_with(|| json!({}));
        // The rest is filled in when a job is made of it.
        default_template(child(template, "spec"));
    }

    fn prepare_for_create(&self, _: &StrategyContext, obj: &mut Value) -> Result<(), Status> {
        create_with_status(obj, json!({}));
        Ok(())
    }

    fn prepare_for_update(
        &self,
        _: &StrategyContext,
        new: &mut Value,
        old: &Value,
        sub: Option<&str>,
    ) -> Result<(), Status> {
        update_with_status(new, old, sub, &["spec"]);
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        validate(&obj["spec"], None, &mut errors);
        let name = name_of(obj);
        if name.len() > LONGEST_NAME {
            let why = format!("must be no more than {LONGEST_NAME} characters");
            errors.push(FieldError::invalid("metadata.name", name, why));
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value, sub: Option<&str>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if sub.is_none() {
            validate(&new["spec"], Some(&old["spec"]), &mut errors);
        }
        errors
    }

    fn warnings(&self, obj: &Value) -> Vec<String> {
        let spec = &obj["spec"]["jobTemplate"]["spec"];
        let mut warnings = job::warnings(obj, spec, &TEMPLATE);
        warnings.extend(pod::warnings(
            &spec["template"]["spec"],
            &TEMPLATE.child("template.spec"),
        ));
        warnings
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let template = at(obj, &["spec", "jobTemplate", "spec", "template", "spec"]);
        let [containers, images] = containers_and_images(template);
        let suspended = match bool_at(obj, &["spec", "suspend"]) {
            Some(true) => "True",
            Some(false) => "False",
            None => "<unset>",
        };
        let last = match str_at(obj, &["status", "lastScheduleTime"]) {
            "" => NONE.to_owned(),
            time => since(time, now),
        };
        vec![
            name(obj),
            str_at(obj, &["spec", "schedule"]).into(),
            or_none(str_at(obj, &["spec", "timeZone"])),
            suspended.into(),
            array_at(obj, &["status", "active"]).len().into(),
            last.into(),
            age_cell(obj, now),
            containers,
            images,
            selector(at(obj, &["spec", "jobTemplate", "spec", "selector"])).into(),
        ]
    }
}

/// Source: `validateCronJobSpec` in `pkg/apis/batch/validation` (v1.36).
fn validate(spec: &Value, old: Option<&Value>, errors: &mut Errors) {
    schedule(str_at(spec, &["schedule"]), errors);
    // A zone that was known once may be unknown after an update of the program; that is for the controller to tell.
    let zone = spec.get("timeZone");
    if old.is_none_or(|old| old.get("timeZone") != zone)
        && let Some(zone) = zone.and_then(Value::as_str)
    {
        zone_name(zone, errors);
    }
    for field in [
        "startingDeadlineSeconds",
        "successfulJobsHistoryLimit",
        "failedJobsHistoryLimit",
    ] {
        non_negative(&SPEC.child(field), spec.get(field), errors);
    }
    one_of(
        &SPEC.child("concurrencyPolicy"),
        str_at(spec, &["concurrencyPolicy"]),
        &["Allow", "Forbid", "Replace"],
        errors,
    );
    let template = &spec["jobTemplate"]["spec"];
    job::validate_spec(template, &TEMPLATE, errors);
    if let Some(selector) = template.get("selector") {
        let why = "`selector` will be auto-generated";
        errors.push(FieldError::invalid(
            TEMPLATE.child("selector"),
            selector.clone(),
            why,
        ));
    }
    if bool_at(template, &["manualSelector"]) == Some(true) {
        errors.push(FieldError::not_supported(
            TEMPLATE.child("manualSelector"),
            true,
            &["nil", "false"],
        ));
    }
}

fn schedule(schedule: &str, errors: &mut Errors) {
    let path = SPEC.child("schedule");
    if schedule.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    let named = schedule.starts_with("TZ=") || schedule.starts_with("CRON_TZ=");
    let fields = match schedule.split_once(' ') {
        Some((_, fields)) if named => fields.trim(),
        _ => schedule,
    };
    if let Err(why) = Schedule::parse(fields) {
        errors.push(FieldError::invalid(path, schedule, why));
    }
    if schedule.contains("TZ") {
        let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.push(FieldError::invalid(path, schedule, why));
    }
}

fn zone_name(zone: &str, errors: &mut Errors) {
    let path = SPEC.child("timeZone");
    let wrong = if zone.is_empty() {
        "timeZone must be nil or non-empty string".to_owned()
    } else if zone.eq_ignore_ascii_case("Local") {
        "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones"
            .to_owned()
    } else if time_zone(zone).is_none() {
        format!("unknown time zone {zone}")
    } else {
        return;
    };
    errors.push(FieldError::invalid(path, zone, wrong));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use amphipod_api::patch::apply_merge_patch;

    use super::*;

    fn cron_job(more: Value) -> Value {
        let template = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "i"}]}});
        let mut made = json!({
            "metadata": {"name": "tidy", "namespace": "ns"},
            "spec": {"schedule": "*/5 * * * *", "jobTemplate": {"spec": {"template": template}}},
        });
        apply_merge_patch(&mut made, &more);
        CronJob.default(&mut made);
        made
    }

    fn errors(spec: Value) -> Vec<String> {
        let errors = CronJob.validate_create(&cron_job(json!({"spec": spec})));
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_are_upstreams() {
        let made = cron_job(json!({}));
        for (field, value) in [
            ("concurrencyPolicy", json!("Allow")),
            ("suspend", json!(false)),
            ("successfulJobsHistoryLimit", json!(3)),
            ("failedJobsHistoryLimit", json!(1)),
        ] {
            assert_eq!(made["spec"][field], value, "{field}");
        }
        let template = &made["spec"]["jobTemplate"]["spec"];
        assert_eq!(template["template"]["spec"]["dnsPolicy"], "ClusterFirst");
        assert_eq!(template.get("backoffLimit"), None);
        assert_eq!(errors(json!({})), [""; 0]);
    }

    #[test]
    fn what_is_wrong_is_told_in_upstreams_words() {
        for (spec, wrong) in [
            (json!({"schedule": ""}), "spec.schedule: Required value"),
            (
                json!({"schedule": "60 * * * *"}),
                "spec.schedule: Invalid value: \"60 * * * *\": end of range (60) above maximum (59): 60",
            ),
            (
                json!({"schedule": "TZ=UTC 0 * * * *"}),
                "spec.schedule: Invalid value: \"TZ=UTC 0 * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
            ),
            (
                json!({"timeZone": "Mars/Olympus"}),
                "spec.timeZone: Invalid value: \"Mars/Olympus\": unknown time zone Mars/Olympus",
            ),
            (
                json!({"timeZone": "Local"}),
                "spec.timeZone: Invalid value: \"Local\": timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
            ),
            (
                json!({"concurrencyPolicy": "Maybe"}),
                "spec.concurrencyPolicy: Unsupported value: \"Maybe\": supported values: \"Allow\", \"Forbid\", \"Replace\"",
            ),
            (
                json!({"startingDeadlineSeconds": -1}),
                "spec.startingDeadlineSeconds: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                json!({"jobTemplate": {"spec": {"manualSelector": true}}}),
                "spec.jobTemplate.spec.manualSelector: Unsupported value: true: supported values: \"nil\", \"false\"",
            ),
            (
                json!({"jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": null}}}}}),
                "spec.jobTemplate.spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
            ),
        ] {
            assert_eq!(errors(spec), [wrong]);
        }
        assert_eq!(errors(json!({"timeZone": "Asia/Kolkata"})), [""; 0]);
        let long = "x".repeat(53);
        let errors = CronJob.validate_create(&cron_job(json!({"metadata": {"name": long}})));
        let wrong =
            format!("metadata.name: Invalid value: \"{long}\": must be no more than 52 characters");
        assert_eq!(errors[0].to_string(), wrong);
    }

    #[test]
    fn rows_tell_when_it_ran_last() {
        let now: Timestamp = "2026-01-01T00:02:00Z".parse().unwrap();
        let row = CronJob.row(&cron_job(json!({})), now);
        assert_eq!(
            row[1..6],
            [
                "*/5 * * * *".into(),
                NONE.into(),
                "False".into(),
                json!(0),
                NONE.into()
            ]
        );
        let status = json!({"lastScheduleTime": "2026-01-01T00:00:00Z", "active": [{}]});
        let busy =
            cron_job(json!({"spec": {"timeZone": "UTC", "suspend": true}, "status": status}));
        assert_eq!(
            CronJob.row(&busy, now)[2..6],
            ["UTC".into(), "True".into(), json!(1), "2m".into()]
        );
    }
}
