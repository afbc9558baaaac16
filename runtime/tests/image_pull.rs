//! Pulling from a real registry.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod image_support;

use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};

use amphipod_runtime::image::{
    Digest, ErrorKind, ImageStore, Progress, PullOptions, Reference, RegistryAuth,
};
use image_support::*;
use serde_json::json;

#[tokio::test]
async fn a_pulled_image_has_every_layer_name_and_setting() {
    let registry = Registry::start().await;
    let layers = vec![
        TestLayer::gzip(
            Tar::new()
                .dir("bin/")
                .entry("bin/app", tar::EntryType::Regular, "", 0o4755, b"app")
                .done(),
        ),
        TestLayer::zstd(Tar::new().dir("etc/").file("etc/conf", b"one").done()),
        TestLayer::plain(Tar::new().dir("etc/").file("etc/conf", b"two").done()),
    ];
    let mut image = TestImage::new(layers);
    image.run = json!({ "Entrypoint": ["/bin/app"], "Cmd": ["-v"], "Env": ["A=b"], "WorkingDir": "/etc", "User": "1:2",
        "StopSignal": "SIGQUIT", "Volumes": { "/data": {} }, "ExposedPorts": { "80/tcp": {} }, "Labels": { "k": "v" } });
    let manifest_digest = registry.push("team/app", "v1", &image).await;
    let other = TestImage::new(vec![TestLayer::gzip(Tar::new().file("arm", b"").done())]);
    let other_digest = registry.push("team/app", "arm", &other).await;
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        { "mediaType": OCI_MANIFEST, "digest": other_digest, "size": other.manifest().to_string().len(),
          "platform": { "os": "linux", "architecture": "arm", "variant": "v7" } },
        { "mediaType": OCI_MANIFEST, "digest": manifest_digest, "size": image.manifest().to_string().len(),
          "platform": { "os": "linux", "architecture": "amd64" } } ] });
    let index_digest = registry
        .push_manifest("team/app", "multi", &index, OCI_INDEX)
        .await;

    let (_dir, store) = store();
    let repository = format!("{}/team/app", registry.address);
    let pulled = pull(&store, &format!("{repository}:multi")).await.unwrap();

    assert_eq!(pulled.id, image.id());
    assert_eq!(pulled.repo_tags, [format!("{repository}:multi")]);
    assert_eq!(
        pulled.repo_digests,
        [format!("{repository}@{index_digest}")]
    );
    let config = &pulled.config;
    assert_eq!(
        (config.entrypoint.as_slice(), config.cmd.as_slice()),
        (&["/bin/app".to_owned()][..], &["-v".to_owned()][..])
    );
    assert_eq!(
        (
            config.working_dir.as_str(),
            config.user.as_str(),
            config.stop_signal.as_str()
        ),
        ("/etc", "1:2", "SIGQUIT")
    );
    assert_eq!(
        (config.volumes.as_slice(), config.exposed_ports.as_slice()),
        (&["/data".to_owned()][..], &["80/tcp".to_owned()][..])
    );
    assert_eq!(
        (config.labels["k"].as_str(), config.env[0].as_str()),
        ("v", "A=b")
    );
    assert_eq!(pulled.layers.len(), 3);
    assert_eq!(
        std::fs::metadata(pulled.layers[0].join("bin/app"))
            .unwrap()
            .mode()
            & 0o7777,
        0o4755
    );
    assert_eq!(
        std::fs::read(pulled.layers[1].join("etc/conf")).unwrap(),
        b"one"
    );
    assert_eq!(
        std::fs::read(pulled.layers[2].join("etc/conf")).unwrap(),
        b"two"
    );
    let blobs: usize = image.layers.iter().map(|l| l.blob.len()).sum();
    let documents = image.config().to_string().len() + image.manifest().to_string().len();
    assert_eq!(pulled.size_bytes, (blobs + documents) as u64);

    for known in [&pulled.id, &manifest_digest, &index_digest] {
        assert_eq!(store.get(known).map(|i| i.id), Some(image.id()));
    }
    let by_digest: Reference = format!("{repository}@{index_digest}").parse().unwrap();
    assert_eq!(store.resolve(&by_digest).unwrap(), pulled);
    assert!(
        store
            .resolve(&format!("{repository}:v1").parse().unwrap())
            .is_none()
    );
}

#[tokio::test]
async fn an_image_survives_the_store_being_reopened() {
    let registry = Registry::start().await;
    let image = TestImage::new(vec![TestLayer::gzip(Tar::new().file("a", b"a").done())]);
    registry.push("app", "v1", &image).await;
    let (dir, store) = store();
    let pulled = pull(&store, &format!("{}/app:v1", registry.address))
        .await
        .unwrap();
    assert!(
        ImageStore::open(dir.path())
            .is_err_and(|e| e.to_string().contains("in use by another process"))
    );
    drop(store);
    drop(registry);
    let store = ImageStore::open(dir.path()).unwrap();
    assert_eq!(store.list(), [pulled]);
}

#[tokio::test]
async fn a_second_pull_of_an_unmoved_tag_costs_one_small_request() {
    let registry = Registry::start().await;
    let image = TestImage::new(vec![TestLayer::gzip(Tar::new().file("a", b"a").done())]);
    registry.push("app", "v1", &image).await;
    let proxy = Proxy::start(registry.address).await;
    let (_dir, store) = store();
    let name = format!("{}/app:v1", proxy.address);
    let first = pull(&store, &name).await.unwrap();
    proxy.forget_requests();
    assert_eq!(pull(&store, &name).await.unwrap(), first);
    let requests = proxy.requests();
    assert!(
        requests.len() == 1 && requests[0].starts_with("HEAD "),
        "{requests:?}"
    );

    let moved = TestImage::new(vec![TestLayer::gzip(Tar::new().file("a", b"b").done())]);
    registry.push("app", "v1", &moved).await;
    let second = pull(&store, &name).await.unwrap();
    assert_eq!((second.id.clone(), second.repo_tags.len()), (moved.id(), 1));
    assert_eq!(
        store.get(&first.id).unwrap().repo_tags,
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn images_share_the_layers_they_have_in_common() {
    let registry = Registry::start().await;
    let base = TestLayer::gzip(Tar::new().file("base", &noise(100_000, 1)).done());
    let one = TestImage::new(vec![
        base.clone(),
        TestLayer::gzip(Tar::new().file("one", b"1").done()),
    ]);
    let two = TestImage::new(vec![
        base.clone(),
        TestLayer::gzip(Tar::new().file("two", b"2").done()),
    ]);
    registry.push("one", "v1", &one).await;
    registry.push("two", "v1", &two).await;
    let proxy = Proxy::start(registry.address).await;
    let (dir, store) = store();
    let first = pull(&store, &format!("{}/one:v1", proxy.address))
        .await
        .unwrap();
    let second = pull(&store, &format!("{}/two:v1", proxy.address))
        .await
        .unwrap();
    assert_eq!(first.layers[0], second.layers[0]);
    assert_eq!(proxy.count(&base.digest().to_string()), 1);
    assert_eq!(layers_on_disk(dir.path()).len(), 3);
    let usage = store.disk_usage();
    assert!(
        usage.layer_bytes < first.disk_bytes + second.disk_bytes,
        "{usage:?}"
    );
    assert_eq!(usage.layer_inodes, 3);
}

#[tokio::test]
async fn concurrent_pulls_fetch_each_blob_once() {
    let registry = Registry::start().await;
    let base = TestLayer::gzip(Tar::new().file("base", &noise(3_000_000, 2)).done());
    let one = TestImage::new(vec![
        base.clone(),
        TestLayer::gzip(Tar::new().file("one", b"1").done()),
    ]);
    let two = TestImage::new(vec![
        base.clone(),
        TestLayer::gzip(Tar::new().file("two", b"2").done()),
    ]);
    registry.push("one", "v1", &one).await;
    registry.push("two", "v1", &two).await;
    let proxy = Proxy::start(registry.address).await;
    let (_dir, store) = store();
    let names: Vec<String> = (0..12)
        .map(|i| format!("{}/{}:v1", proxy.address, ["one", "two"][i % 2]))
        .collect();
    let pulls = names.iter().map(|name| pull(&store, name));
    for pulled in futures_util::future::join_all(pulls).await {
        pulled.unwrap();
    }
    assert_eq!(proxy.count(&base.digest().to_string()), 1);
    assert_eq!(proxy.count("GET /v2/one/manifests/v1"), 1);
    assert_eq!(store.list().len(), 2);
}

#[tokio::test]
async fn pulls_with_different_credentials_are_apart_and_do_not_disturb_each_other() {
    let registry = Registry::start().await;
    let layer = TestLayer::gzip(Tar::new().file("a", &noise(500_000, 7)).done());
    registry
        .push("app", "v1", &TestImage::new(vec![layer.clone()]))
        .await;
    let proxy = Proxy::start(registry.address).await;
    let (_dir, store) = store();
    let reference: Reference = format!("{}/app:v1", proxy.address).parse().unwrap();
    let pulls = (0..8).map(|number| {
        let (store, reference) = (store.clone(), reference.clone());
        let auth = RegistryAuth {
            username: format!("user{number}"),
            ..RegistryAuth::default()
        };
        let options = PullOptions {
            auth: vec![auth],
            ..PullOptions::default()
        };
        async move { store.pull(&reference, &options).await }
    });
    for pulled in futures_util::future::join_all(pulls).await {
        pulled.unwrap();
    }
    assert_eq!(proxy.count("GET /v2/app/manifests/v1"), 8);
    assert_eq!(proxy.count(&layer.digest().to_string()), 1);
}

#[tokio::test]
async fn a_download_that_breaks_off_goes_on_where_it_stopped() {
    let registry = Registry::start().await;
    let layer = TestLayer::gzip(Tar::new().file("big", &noise(4_000_000, 3)).done());
    let image = TestImage::new(vec![layer.clone()]);
    registry.push("app", "v1", &image).await;
    let proxy = Proxy::start(registry.address).await;
    let (dir, store) = store();
    let name = format!("{}/app:v1", proxy.address);

    // Nothing comes after the first megabyte: the pull gives up, and says where.
    proxy.allow(1_000_000);
    let error = pull(&store, &name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Network, "{error}");
    assert!(
        error.to_string().contains(&layer.digest().to_string()),
        "{error}"
    );
    assert!(store.list().is_empty() && layers_on_disk(dir.path()).is_empty());

    // Also after the agent was restarted.
    drop(store);
    let store = ImageStore::open(dir.path()).unwrap();
    proxy.forget_requests();
    proxy.allow(i64::MAX);
    let seen: Arc<Mutex<Vec<u64>>> = Arc::default();
    let told = seen.clone();
    let options = PullOptions {
        progress: Some(Arc::new(move |progress: &Progress| {
            if let Progress::Downloading { done, .. } = progress {
                told.lock().unwrap().push(*done);
            }
        })),
        ..PullOptions::default()
    };
    let pulled = store.pull(&name.parse().unwrap(), &options).await.unwrap();
    assert_eq!(
        std::fs::read(pulled.layers[0].join("big")).unwrap(),
        noise(4_000_000, 3)
    );
    let ranges = proxy.requests();
    let range = ranges
        .iter()
        .find(|line| line.contains(&layer.digest().to_string()))
        .unwrap();
    let from: u64 = range
        .rsplit_once("bytes=")
        .expect(range)
        .1
        .trim_end_matches('-')
        .parse()
        .unwrap();
    assert!(from > 500_000, "{range}");
    assert_eq!(
        seen.lock().unwrap().last(),
        Some(&(layer.blob.len() as u64))
    );
}

#[tokio::test]
async fn rubbish_from_an_earlier_run_is_not_resumed() {
    let registry = Registry::start().await;
    let layer = TestLayer::gzip(Tar::new().file("a", &noise(100_000, 6)).done());
    registry
        .push("app", "v1", &TestImage::new(vec![layer.clone()]))
        .await;
    let file = format!("sha256-{}", layer.digest().hex());
    // As after a power cut: half or all of it, zeros; downloaded whole but never unpacked.
    for (place, length) in [
        ("ingest", 50_000),
        ("ingest", layer.blob.len()),
        ("ingest", 200_000),
        ("blobs", layer.blob.len()),
    ] {
        let (dir, store) = store();
        drop(store);
        std::fs::write(dir.path().join(place).join(&file), vec![0; length]).unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        let pulled = pull(&store, &format!("{}/app:v1", registry.address))
            .await
            .unwrap();
        assert_eq!(
            std::fs::read(pulled.layers[0].join("a")).unwrap(),
            noise(100_000, 6),
            "{place} {length}"
        );
    }
}

#[tokio::test]
async fn content_that_does_not_match_its_digest_is_refused_and_not_kept() {
    let registry = Registry::start().await;
    let good = TestLayer::gzip(Tar::new().file("a", b"a").done());
    let bad = TestLayer::gzip(Tar::new().file("b", &noise(10_000, 4)).done());
    let image = TestImage::new(vec![good, bad.clone()]);
    registry.push("app", "v1", &image).await;
    let file = registry.blob_file(&bad.digest());
    let mut damaged = bad.blob.clone();
    damaged[5000] ^= 1;
    std::fs::write(&file, &damaged).unwrap();

    let (dir, store) = store();
    let name = format!("{}/app:v1", registry.address);
    let error = pull(&store, &name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(
        error
            .to_string()
            .contains(&format!("failed to pull and unpack image \"{name}\"")),
        "{error}"
    );
    assert!(
        error.to_string().contains(&bad.digest().to_string()),
        "{error}"
    );
    assert!(
        error.to_string().contains("failed to fetch layer"),
        "{error}"
    );
    assert!(store.resolve(&name.parse().unwrap()).is_none());
    // Half of the good layer may be there, to be resumed.
    let kept = dir
        .path()
        .join("ingest")
        .join(format!("sha256-{}", bad.digest().hex()));
    assert!(!kept.exists());

    // Repaired on the registry, the same pull succeeds.
    std::fs::write(&file, &bad.blob).unwrap();
    pull(&store, &name).await.unwrap();
}

#[tokio::test]
async fn a_layer_that_is_not_what_the_config_says_is_refused() {
    let registry = Registry::start().await;
    let mut layer = TestLayer::gzip(Tar::new().file("a", b"a").done());
    layer.diff = Digest::sha256(b"something else");
    registry
        .push("app", "v1", &TestImage::new(vec![layer.clone()]))
        .await;
    let (dir, store) = store();
    let error = pull(&store, &format!("{}/app:v1", registry.address))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(
        error
            .to_string()
            .contains(&format!("failed to extract layer {}", layer.digest())),
        "{error}"
    );
    assert!(layers_on_disk(dir.path()).is_empty());
}

#[tokio::test]
async fn what_the_registry_does_not_have_is_not_found() {
    let registry = Registry::start().await;
    let image = TestImage::new(vec![]);
    let digest = registry.push("app", "v1", &image).await;
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        { "mediaType": OCI_MANIFEST, "digest": digest, "size": image.manifest().to_string().len(),
          "platform": { "os": "linux", "architecture": "s390x" } } ] });
    registry
        .push_manifest("app", "mainframe", &index, OCI_INDEX)
        .await;
    let (_dir, store) = store();
    let missing = Digest::sha256(b"missing");
    for (name, words) in [
        ("none:v1".to_owned(), "none:v1: not found"),
        ("app:v2".to_owned(), "app:v2: not found"),
        (format!("app@{missing}"), "not found"),
        ("app:mainframe".to_owned(), "no match for platform linux/"),
    ] {
        let error = pull(&store, &format!("{}/{name}", registry.address))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert!(
            error
                .to_string()
                .contains("failed to pull and unpack image")
                && error.to_string().contains(words),
            "{error}"
        );
    }
    let empty = pull(&store, &format!("{}/app:v1", registry.address))
        .await
        .unwrap();
    assert!(
        empty.layers.len() == 1 && empty.layers[0].is_dir(),
        "an image without layers still has a root"
    );
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_a_network_error() {
    let (_dir, store) = store();
    let error = pull(&store, &format!("{}/app:v1", free_address()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Network);
    assert!(
        error.is_transient() && error.to_string().contains("Connection refused"),
        "{error}"
    );
}

#[tokio::test]
async fn a_private_registry_wants_the_right_password() {
    let registry = Registry::start_with(RegistryOptions {
        password: true,
        ..Default::default()
    })
    .await;
    registry
        .push(
            "app",
            "v1",
            &TestImage::new(vec![TestLayer::gzip(Tar::new().file("a", b"a").done())]),
        )
        .await;
    let (_dir, store) = store();
    let reference: Reference = format!("{}/app:v1", registry.address).parse().unwrap();
    let auth = |host: &str, password: &str| RegistryAuth {
        registry: host.to_owned(),
        username: "user".to_owned(),
        password: password.to_owned(),
        ..RegistryAuth::default()
    };
    let host = registry.address.to_string();
    for wrong in [
        vec![],
        vec![auth(&host, "wrong")],
        vec![auth("quay.io", "secret")],
    ] {
        let options = PullOptions {
            auth: wrong,
            ..PullOptions::default()
        };
        let error = store.pull(&reference, &options).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
        assert!(
            error.to_string().contains("pull access denied")
                && !error.to_string().contains("wrong"),
            "{error}"
        );
    }
    let options = PullOptions {
        auth: vec![auth(&host, "wrong"), auth(&host, "secret")],
        ..PullOptions::default()
    };
    store.pull(&reference, &options).await.unwrap();
    // The image is here; asking the registry again still needs the password.
    assert!(
        store
            .pull(&reference, &PullOptions::default())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_registry_with_its_own_authority_is_trusted_when_configured() {
    let registry = Registry::start_with(RegistryOptions {
        tls: true,
        ..Default::default()
    })
    .await;
    registry
        .push(
            "app",
            "v1",
            &TestImage::new(vec![TestLayer::gzip(Tar::new().file("a", b"a").done())]),
        )
        .await;
    let (_dir, store) = store();
    let reference: Reference = format!("{}/app:v1", registry.address).parse().unwrap();
    let error = store
        .pull(&reference, &PullOptions::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Network);
    assert!(error.to_string().contains("certificate"), "{error}");
    let mut options = PullOptions::default();
    options.registries.ca.insert(
        registry.address.to_string(),
        registry.ca().unwrap().to_owned(),
    );
    store.pull(&reference, &options).await.unwrap();
}

#[tokio::test]
async fn mirrors_are_asked_first_and_their_failures_are_survived() {
    let registry = Registry::start().await;
    registry
        .push(
            "library/app",
            "v1",
            &TestImage::new(vec![TestLayer::gzip(Tar::new().file("a", b"a").done())]),
        )
        .await;
    let empty = Registry::start().await;
    let (_dir, store) = store();
    let mut options = PullOptions::default();
    let mirrors = [free_address(), empty.address, registry.address].map(|a| format!("http://{a}"));
    options
        .registries
        .mirrors
        .insert("docker.io".into(), mirrors.to_vec());
    let pulled = store
        .pull(&"app:v1".parse().unwrap(), &options)
        .await
        .unwrap();
    assert_eq!(pulled.repo_tags, ["docker.io/library/app:v1"]);
}

#[tokio::test]
async fn garbage_goes_and_what_is_named_or_in_use_stays() {
    let registry = Registry::start().await;
    let base = TestLayer::gzip(Tar::new().file("base", &noise(100_000, 5)).done());
    let one = TestImage::new(vec![
        base.clone(),
        TestLayer::gzip(Tar::new().file("one", b"1").done()),
    ]);
    let two = TestImage::new(vec![
        base.clone(),
        TestLayer::gzip(Tar::new().file("two", b"2").done()),
    ]);
    registry.push("one", "v1", &one).await;
    registry.push("two", "v1", &two).await;
    let (dir, store) = store();
    let names = ["one", "two"].map(|n| format!("{}/{n}:v1", registry.address));
    for name in &names {
        pull(&store, name).await.unwrap();
    }
    store.remove(&names[0].parse().unwrap()).await.unwrap();
    assert_eq!(store.gc(&[one.id()].into()).await.unwrap(), 0);
    assert_eq!(store.list().len(), 2);
    assert!(store.gc(&[].into()).await.unwrap() > 0);
    assert_eq!(
        store
            .list()
            .iter()
            .map(|i| i.id.clone())
            .collect::<Vec<_>>(),
        [two.id()]
    );
    assert_eq!(layers_on_disk(dir.path()).len(), 2);
    store.remove_image(&two.id()).await.unwrap();
    store.gc(&[].into()).await.unwrap();
    assert!(store.list().is_empty() && layers_on_disk(dir.path()).is_empty());
    assert_eq!(store.disk_usage().layer_bytes, 0);
    pull(&store, &names[0]).await.unwrap();
}
