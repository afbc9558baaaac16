//! Continue tokens and the other options of a list: the first byte is the limit, the rest the token, as it is and in base64.
#![no_main]

use amphipod_fuzz::server;
use amphipod_server::registry::ListOptions;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((limit, token)) = data.split_first() else {
        return;
    };
    page(i64::from(*limit), URL_SAFE_NO_PAD.encode(token));
    if let Ok(token) = std::str::from_utf8(token) {
        page(i64::from(*limit), token.to_owned());
    }
});

/// Pages that begin with a token hold what comes after it, in order, and come to an end.
fn page(limit: i64, token: String) {
    let server = server();
    let Some(descriptor) = server.registry.catalog().by_resource("configmaps") else {
        return;
    };
    let context = server.context(&descriptor);
    let mut options = ListOptions {
        limit,
        continue_token: token,
        ..ListOptions::default()
    };
    let mut seen: Vec<String> = Vec::new();
    for _ in 0..10 {
        let listed = match server.block_on(server.registry.list(&context, &options)) {
            Ok(listed) => listed,
            Err(status) => {
                assert!(seen.is_empty(), "our own token is refused: {status:?}");
                assert!(status.code == 400 || status.code == 410, "{status:?}");
                // 410 comes with a token that goes on.
                if status.metadata.continue_token.is_empty() {
                    return;
                }
                options.continue_token = status.metadata.continue_token.clone();
                continue;
            }
        };
        seen.extend(listed.items.iter().map(|item| item.meta.name.to_string()));
        if listed.continue_token.is_empty() {
            assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "{seen:?}");
            return;
        }
        assert!(limit > 0 && !listed.items.is_empty());
        options.continue_token = listed.continue_token;
    }
    panic!("a list of six without an end: {seen:?}");
}
