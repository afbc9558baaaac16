//! How many pods more and fewer than asked for a rollout may have, and how a change of size is shared among sets. Pure.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/deployment/#rolling-update-deployment>

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// `spec.replicas`
pub fn replicas(d: &Deployment) -> i32 {
    d.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub fn is_rolling(d: &Deployment) -> bool {
    let strategy = d.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("Recreate")
}

/// A number, or a percentage of `of`.
pub fn resolve(value: Option<&IntOrString>, of: i32, up: bool) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let hundredths = percent.saturating_mul(i64::from(of));
            let number = if up {
                hundredths.saturating_add(99) / 100
            } else {
                hundredths / 100
            };
            i32::try_from(number).unwrap_or(i32::MAX)
        }
    }
}

/// Surge and unavailability in pods; not both zero, or nothing would ever move.
fn fenceposts(d: &Deployment) -> (i32, i32) {
    let strategy = d.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let surge = resolve(
        rolling.and_then(|r| r.max_surge.as_ref()),
        replicas(d),
        true,
    );
    let unavailable = resolve(
        rolling.and_then(|r| r.max_unavailable.as_ref()),
        replicas(d),
        false,
    );
    if surge == 0 && unavailable == 0 {
        (0, 1)
    } else {
        (surge, unavailable)
    }
}

/// Pods that there may be beyond those asked for.
pub fn max_surge(d: &Deployment) -> i32 {
    if is_rolling(d) { fenceposts(d).0 } else { 0 }
}

/// Pods that may be missing.
pub fn max_unavailable(d: &Deployment) -> i32 {
    if !is_rolling(d) || replicas(d) == 0 {
        0
    } else {
        fenceposts(d).1.min(replicas(d))
    }
}

/// The share of a set in a change of the deployment's size. `most`, `most_before`: replicas and surge of the deployment now, and
/// when the set was last sized.
pub fn proportion(have: i32, wanted: i32, most: i32, most_before: i32, left: i32) -> i32 {
    if have == 0 || left == 0 {
        return 0;
    }
    let fraction = if wanted == 0 {
        -have
    } else if most_before <= 0 {
        return 0;
    } else {
        let size = f64::from(have) * f64::from(most) / f64::from(most_before);
        // Rounded halves go up, as sizes are positive.
        (size + 0.5).floor() as i32 - have
    };
    if left > 0 {
        fraction.min(left)
    } else {
        fraction.max(left)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn rolling(replicas: i32, surge: Value, unavailable: Value) -> (i32, i32) {
        let d: Deployment = serde_json::from_value(json!({"spec": {"replicas": replicas, "selector": {}, "template": {},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}}))
        .unwrap();
        (max_surge(&d), max_unavailable(&d))
    }

    #[test]
    fn surge_rounds_up_unavailability_down_and_something_always_moves() {
        assert_eq!(rolling(10, json!("25%"), json!("25%")), (3, 2));
        assert_eq!(rolling(1, json!("25%"), json!("25%")), (1, 0));
        assert_eq!(rolling(3, json!(0), json!("25%")), (0, 1));
        assert_eq!(rolling(2, json!(0), json!(5)), (0, 2));
        assert_eq!(rolling(0, json!(1), json!(1)), (1, 0));
    }

    #[test]
    fn shares_are_proportional_and_never_more_than_is_left() {
        assert_eq!(proportion(5, 20, 20, 10, 10), 5);
        assert_eq!(proportion(5, 20, 20, 10, 3), 3);
        assert_eq!(proportion(10, 5, 5, 10, -5), -5);
        assert_eq!(proportion(10, 5, 5, 10, -2), -2);
        assert_eq!(proportion(4, 0, 0, 10, -10), -4);
        assert_eq!(proportion(0, 20, 20, 10, 10), 0);
    }
}
