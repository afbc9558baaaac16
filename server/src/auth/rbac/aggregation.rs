//! Aggregated ClusterRoles: a role with an `aggregationRule` holds the rules of all roles that its selectors choose.
//! <https://kubernetes.io/docs/reference/access-authn-authz/rbac/#aggregated-clusterroles>

use amphipod_api::LabelSelector;
use serde_json::Value;

/// The rules that an aggregated role should have, each once, in the order of `others`. Null if it aggregates nothing.
pub fn rules_of<'a>(role: &Value, others: impl Iterator<Item = &'a Value>) -> Value {
    let Some(selectors) = role["aggregationRule"]["clusterRoleSelectors"].as_array() else {
        return Value::Null;
    };
    let selectors: Vec<LabelSelector> = selectors
        .iter()
        .filter_map(|s| LabelSelector::from_object(s).ok())
        .collect();
    let mut rules: Vec<Value> = Vec::new();
    for other in others {
        if !selectors.iter().any(|s| s.matches_object(other)) {
            continue;
        }
        for rule in other["rules"].as_array().into_iter().flatten() {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    Value::Array(rules)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_role_gathers_the_rules_of_the_roles_it_selects() {
        let role =
            json!({"aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "true"}}]}});
        let one = json!({"metadata": {"labels": {"a": "true"}}, "rules": [{"verbs": ["get"]}, {"verbs": ["list"]}]});
        let two = json!({"metadata": {"labels": {"b": "true"}}, "rules": [{"verbs": ["watch"]}]});
        let three = json!({"metadata": {"labels": {"a": "true"}}, "rules": [{"verbs": ["list"]}]});
        assert_eq!(
            rules_of(&role, [&one, &two, &three].into_iter()),
            json!([{"verbs": ["get"]}, {"verbs": ["list"]}])
        );
        assert_eq!(rules_of(&one, [&two].into_iter()), Value::Null);
    }
}
