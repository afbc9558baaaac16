//! What registries and images say about themselves: manifests, indexes, configurations, references, challenges, users. JSON is read
//! as the former; other text as a reference, a challenge, or `user NUL passwd NUL group`.
#![no_main]

use amphipod_runtime::image::challenge::challenges;
use amphipod_runtime::image::manifest::{
    Document, chain_ids, parse_config, parse_document, parse_manifest,
};
use amphipod_runtime::image::{Digest, Platform, Reference, user};
use libfuzzer_sys::fuzz_target;

const MANIFEST: &[u8] = br#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":2,
"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},"layers":[{
"mediaType":"application/vnd.oci.image.layer.v1.tar","size":0,
"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}]}"#;

fuzz_target!(|data: &[u8]| {
    for media_type in [
        "",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ] {
        match parse_document(data, media_type) {
            Ok(Document::Index(index)) => {
                let _ = index.choose(&Platform::host());
            }
            Ok(Document::Manifest(manifest)) => {
                let bytes = serde_json::to_vec(&manifest).expect("a manifest prints");
                assert_eq!(parse_manifest(&bytes).expect("and reads again"), manifest);
            }
            Err(_) => {}
        }
    }
    let manifest = parse_manifest(MANIFEST).expect("the manifest is valid");
    if let Ok(config) = parse_config(data, &manifest) {
        let chain = chain_ids(&config.rootfs.diff_ids);
        assert_eq!(chain.len(), 1);
        let bytes = serde_json::to_vec(&config).expect("a configuration prints");
        assert_eq!(
            parse_config(&bytes, &manifest).expect("and reads again"),
            config
        );
    }
    let mut parts = data.splitn(3, |byte| *byte == 0);
    if let Some(Ok(spec)) = parts.next().map(std::str::from_utf8) {
        let (passwd, group) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        if let Ok(user) = user::resolve_in(passwd, group, spec) {
            assert!(
                user.uid != u32::MAX && user.gid != u32::MAX,
                "-1 is nobody: {user:?}"
            );
            assert!(!user.additional_gids.contains(&u32::MAX), "{user:?}");
        }
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = challenges(text.lines());
        if let Ok(digest) = text.parse::<Digest>() {
            assert_eq!(digest.to_string(), text);
        }
        if let Ok(reference) = text.parse::<Reference>() {
            let printed = reference.to_string();
            assert_eq!(
                printed
                    .parse::<Reference>()
                    .expect("a reference reads again"),
                reference,
                "{text:?}"
            );
        }
    }
});
