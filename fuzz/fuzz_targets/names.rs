//! Small texts that clients write into fields: times, durations, addresses, names. What prints reads the same.
#![no_main]

use amphipod_api::{ip, names, time};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &str| {
    if let Some(at) = time::parse_time(data) {
        let text = time::format_time(at);
        let again =
            time::parse_time(&text).unwrap_or_else(|| panic!("{data:?} prints as {text:?}"));
        // Seconds before 1970 are cut the other way than text.
        assert_eq!(
            time::format_time(again),
            text,
            "{data:?} prints as {text:?}"
        );
        let _ = time::age(Some(at), jiff::Timestamp::UNIX_EPOCH);
        let _ = (time::format_micro_time(at), time::format_nano_time(at));
    }
    if let Some(duration) = time::parse_duration(data) {
        let _ = time::human_duration(duration);
        if let Ok(positive) = duration.try_into() {
            let text = time::format_duration(positive);
            assert_eq!(
                time::parse_duration(&text),
                Some(duration),
                "{data:?} prints as {text:?}"
            );
        }
    }
    if let Some(address) = ip::parse_ip(data) {
        assert_eq!(ip::parse_ip(&address.to_string()), Some(address));
    }
    if let Some((address, prefix)) = ip::parse_cidr(data) {
        assert!(ip::contains(address, prefix, address));
        assert_eq!(
            ip::parse_cidr(&format!("{address}/{prefix}")),
            Some((address, prefix))
        );
    }
    for rule in [
        names::dns1123_label,
        names::dns1123_subdomain,
        names::dns1035_label,
        names::wildcard_dns1123_subdomain,
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
    ] {
        let _ = rule(data);
    }
    let generated = names::generate_name(data);
    assert!(
        !names::dns1123_subdomain(data).is_empty()
            || names::dns1123_subdomain(&generated).is_empty(),
        "{generated}"
    );
    let _ = names::mask_trailing_dash(data);
});
