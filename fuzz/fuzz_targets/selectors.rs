//! Label and field selectors, as texts and as objects: what was read prints as something that reads the same.
#![no_main]

use std::borrow::Cow;
use std::collections::BTreeMap;

use amphipod_api::selector::NodeSelector;
use amphipod_api::{FieldSelector, LabelSelector};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &str| {
    let labels = BTreeMap::from([
        ("a".to_owned(), "1".to_owned()),
        ("b".to_owned(), String::new()),
        ("example.com/c".to_owned(), "x".to_owned()),
    ]);
    if let Ok(selector) = LabelSelector::parse(data) {
        let text = selector.to_string();
        let again = LabelSelector::parse(&text)
            .unwrap_or_else(|e| panic!("{data:?} prints as {text:?}: {e:?}"));
        assert_eq!(again, selector, "{data:?} prints as {text:?}");
        assert_eq!(again.matches(&labels), selector.matches(&labels));
    }
    if let Ok(selector) = FieldSelector::parse(data) {
        let text = selector.to_string();
        let again = FieldSelector::parse(&text)
            .unwrap_or_else(|e| panic!("{data:?} prints as {text:?}: {e:?}"));
        let sorted = |selector: &FieldSelector| {
            let mut all = selector.requirements().to_vec();
            all.sort_by(|a, b| {
                (&a.field, &a.value, a.negated).cmp(&(&b.field, &b.value, b.negated))
            });
            all
        };
        assert_eq!(
            sorted(&again),
            sorted(&selector),
            "{data:?} prints as {text:?}"
        );
        selector.matches(|_| Cow::Borrowed("x"));
    }
    if let Ok(object) = serde_json::from_str::<Value>(data) {
        if let Ok(selector) = LabelSelector::from_object(&object)
            && !selector.is_nothing()
        {
            let text = selector.to_string();
            let again = LabelSelector::parse(&text)
                .unwrap_or_else(|e| panic!("{data:?} prints as {text:?}: {e:?}"));
            assert_eq!(
                again.matches(&labels),
                selector.matches(&labels),
                "{data:?} prints as {text:?}"
            );
        }
        if let Ok(selector) = NodeSelector::from_object(&object) {
            selector.matches("a", &labels);
        }
    }
});
