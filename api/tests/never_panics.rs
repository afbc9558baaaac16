//! Whatever comes in, the readers answer with a value or an error, and soon. (The fuzz targets go deeper.)
#![allow(clippy::unwrap_used)]

use amphipod_api::client::WatchEvent;
use amphipod_api::patch::{
    NoSchema, apply_json_patch, apply_merge_patch, apply_strategic_merge_patch,
};
use amphipod_api::selector::NodeSelector;
use amphipod_api::{FieldSelector, LabelSelector, Quantity, ip, jwt, meta, names, pki, time};
use serde_json::Value;

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }

    /// Pieces that the grammars care about, in any order.
    fn text(&mut self, pieces: &[&str]) -> String {
        (0..self.roll(12))
            .map(|_| pieces[self.roll(pieces.len())])
            .collect()
    }

    fn value(&mut self, depth: usize) -> Value {
        const KEYS: [&str; 14] = [
            "op",
            "path",
            "value",
            "from",
            "a",
            "b",
            "name",
            "metadata",
            "$patch",
            "$retainKeys",
            "$setElementOrder/a",
            "$deleteFromPrimitiveList/a",
            "matchExpressions",
            "operator",
        ];
        const TEXTS: [&str; 12] = [
            "add", "remove", "move", "copy", "/a", "/a/0", "/a/-", "", "delete", "replace", "In",
            "~",
        ];
        match self.roll(if depth == 0 { 4 } else { 7 }) {
            0 => Value::Null,
            1 => TEXTS[self.roll(TEXTS.len())].into(),
            2 => (self.roll(5) as i64 - 2).into(),
            3 => true.into(),
            4 => (0..self.roll(4)).map(|_| self.value(depth - 1)).collect(),
            _ => (0..self.roll(5))
                .map(|_| {
                    (
                        KEYS[self.roll(KEYS.len())].to_string(),
                        self.value(depth - 1),
                    )
                })
                .collect(),
        }
    }
}

#[test]
fn texts_of_all_kinds_are_answered() {
    let pieces = [
        "a",
        "b.c/d",
        "=",
        "!=",
        "==",
        "!",
        ",",
        "(",
        ")",
        " in ",
        "notin",
        ">",
        "<",
        "\\",
        " ",
        "\0",
        "é",
        "0",
        "19",
        ".",
        "-",
        "+",
        "e",
        "E",
        "Ki",
        "m",
        "n",
        "Gi",
        "::",
        ":",
        "/",
        "%",
        "T",
        "Z",
        "2026-01-02",
        "03:04:05",
        "s",
        "h",
        "ms",
        "µs",
        "e+9",
        "\n",
    ];
    let keys = jwt::TokenKeys::load(&pki::generate_key().unwrap()).unwrap();
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    for _ in 0..50_000 {
        let text = dice.text(&pieces);
        if let Ok(quantity) = text.parse::<Quantity>() {
            let printed = quantity.to_string();
            assert_eq!(
                printed.parse::<Quantity>().map(|q| q.to_string()),
                Ok(printed),
                "{text}"
            );
            let _ = (
                quantity.value(),
                quantity.milli_value(),
                (quantity + quantity).to_string(),
            );
        }
        if let Ok(selector) = LabelSelector::parse(&text) {
            let printed = selector.to_string();
            assert_eq!(
                LabelSelector::parse(&printed).unwrap().to_string(),
                printed,
                "{text}"
            );
        }
        if let Ok(selector) = FieldSelector::parse(&text) {
            assert_eq!(
                FieldSelector::parse(&selector.to_string()),
                Ok(selector),
                "{text}"
            );
        }
        for check in [
            names::dns1123_label,
            names::dns1123_subdomain,
            names::dns1035_label,
            names::qualified_name,
            names::label_value,
            names::path_segment,
            names::port_name,
            names::env_var_name,
            names::c_identifier,
            names::config_map_key,
            names::http_header_name,
            names::percent,
            names::ip_address,
            names::cidr,
            names::wildcard_dns1123_subdomain,
        ] {
            let _ = check(&text);
        }
        let _ = (
            ip::parse_cidr(&text),
            time::parse_time(&text),
            names::generate_name(&text),
            names::mask_trailing_dash(&text),
        );
        if let Some(duration) = time::parse_duration(&text) {
            let _ = time::human_duration(duration);
        }
        let _ = keys.verify(&text, "", &[], 0);
        let _ = (
            pki::CertInfo::from_pem(&text),
            WatchEvent::parse(text.as_bytes()),
        );
    }
}

#[test]
fn patches_of_all_kinds_are_answered() {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for _ in 0..50_000 {
        let (document, patch) = (dice.value(4), dice.value(4));
        apply_merge_patch(&mut document.clone(), &patch);
        let _ = apply_json_patch(&mut document.clone(), &patch);
        let _ = apply_strategic_merge_patch(&mut document.clone(), &patch, &NoSchema);
        let _ = (
            LabelSelector::from_object(&patch),
            NodeSelector::from_object(&patch),
        );
        let _ = (
            meta::key(&patch),
            meta::controller_of(&patch),
            Quantity::from_value(&patch),
        );
    }
}
