//! The store under bad luck (power cuts, full disks, damaged files), and the ways into it that need no registry.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod image_support;

use std::io::Cursor;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use amphipod_runtime::image::{ErrorKind, ImageStore, Limits, Progress, PullOptions, RegistryAuth};
use image_support::*;
use serde_json::json;

fn small_image() -> TestImage {
    TestImage::new(vec![TestLayer::gzip(Tar::new().file("a", b"a").done())])
}

#[tokio::test]
async fn an_archive_is_imported_under_its_own_or_a_given_name() {
    let (_dir, store) = store();
    let archive = oci_archive(&small_image(), Some("registry.example/team/app:v1"));
    let images = store
        .import_oci_archive(Cursor::new(archive.clone()), None)
        .await
        .unwrap();
    assert_eq!(images[0].repo_tags, ["registry.example/team/app:v1"]);
    let compressed = TestLayer::gzip(archive).blob;
    let name = "localhost/other:v2".parse().unwrap();
    let images = store
        .import_oci_archive(Cursor::new(compressed), Some(&name))
        .await
        .unwrap();
    assert_eq!(
        images[0].repo_tags,
        ["localhost/other:v2", "registry.example/team/app:v1"]
    );
    assert_eq!(store.list().len(), 1);
}

#[tokio::test]
async fn what_docker_save_writes_is_imported_with_all_its_tags() {
    let (_dir, store) = store();
    let mut image = small_image();
    image.layers = vec![TestLayer::plain(Tar::new().file("a", b"a").done()); 2];
    let config = image.config().to_string();
    let manifest = json!([{ "Config": "abc.json", "RepoTags": ["app:v1", "app:v2"], "Layers": ["1/layer.tar", "2/layer.tar"] }]);
    let archive = Tar::new()
        .file("abc.json", config.as_bytes())
        .dir("1/")
        .file("1/VERSION", b"1.0")
        .file("1/layer.tar", &image.layers[0].blob)
        .symlink("2/layer.tar", "../1/layer.tar")
        .file("manifest.json", manifest.to_string().as_bytes())
        .file("repositories", b"{}");
    let images = store
        .import_oci_archive(Cursor::new(archive.clone().done()), None)
        .await
        .unwrap();
    assert_eq!((images.len(), &images[0].id), (1, &image.id()));
    assert_eq!(
        images[0].repo_tags,
        ["docker.io/library/app:v1", "docker.io/library/app:v2"]
    );
    assert_eq!(images[0].layers.len(), 2);
    let missing = json!([{ "Config": "../abc.json", "Layers": [] }]).to_string();
    let error = store
        .import_oci_archive(
            Cursor::new(archive.file("manifest.json", missing.as_bytes()).done()),
            None,
        )
        .await;
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("\"../abc.json\" is missing")
    );
}

#[tokio::test]
async fn bad_archives_are_refused_and_leave_nothing() {
    let image = small_image();
    let whole = oci_archive(&image, Some("app:v1"));
    let position = whole
        .windows(image.layers[0].blob.len())
        .position(|w| w == image.layers[0].blob)
        .unwrap();
    let mut damaged = whole.clone();
    damaged[position + 20] ^= 1;
    let mut without_layer = image.clone();
    let lost = without_layer.layers[0].blob.clone();
    without_layer.layers[0].blob = lost[..lost.len() - 1].to_vec();
    let cases = [
        ("damaged", damaged, "does not match its digest"),
        (
            "cut off",
            whole[..position + 100].to_vec(),
            "unexpected end of file",
        ),
        (
            "no layout",
            Tar::new().file("x", b"").done(),
            "neither index.json nor",
        ),
        ("empty", Vec::new(), "neither index.json nor"),
        ("rubbish", noise(2048, 1), "tar header"),
        (
            "strange blob",
            Tar::new().file("blobs/sha256/../../x", b"").done(),
            "invalid digest",
        ),
        (
            "no image",
            Tar::new()
                .file("index.json", br#"{"schemaVersion":2,"manifests":[]}"#)
                .done(),
            "no image",
        ),
    ];
    let (dir, store) = store();
    for (what, archive, words) in cases {
        let error = store
            .import_oci_archive(Cursor::new(archive), None)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}");
        assert!(error.to_string().contains(words), "{what}: {error}");
        assert!(
            store.list().is_empty() && layers_on_disk(dir.path()).is_empty(),
            "{what}"
        );
        assert_eq!(
            std::fs::read_dir(dir.path().join("blobs")).unwrap().count(),
            0,
            "{what}"
        );
    }
}

#[tokio::test]
async fn an_image_built_from_one_binary_is_the_same_each_time_and_runs() {
    let (dir, store) = store();
    // Any static binary will do: this test is one.
    let binary = dir.path().join("demo");
    std::fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    let name = "localhost/demo:v1".parse().unwrap();
    let first = store
        .build_single_binary_image(&binary, &name, &["hello"])
        .await
        .unwrap();
    let second = store
        .build_single_binary_image(&binary, &name, &["hello"])
        .await
        .unwrap();
    assert_eq!(first, second);
    assert_eq!(first.config.entrypoint, ["/demo", "hello"]);
    assert_eq!(store.resolve(&name).unwrap().id, first.id);
    let output = Command::new("chroot")
        .arg(&first.layers[0])
        .args(["/demo", "--list"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let user = amphipod_runtime::image::user::resolve(&first.layers[0], "nobody").unwrap();
    assert_eq!((user.uid, user.gid), (65534, 65534));

    let bigger = store
        .build_single_binary_image(&binary, &name, &["other"])
        .await
        .unwrap();
    assert_eq!(
        bigger.layers, first.layers,
        "the same binary is the same layer"
    );
    let error = store
        .build_single_binary_image(Path::new("/nonexistent/x"), &name, &[])
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("failed to build image \"localhost/demo:v1\""),
        "{error}"
    );
}

/// Not a test of its own: the process that `kill_9_...` kills.
#[tokio::test]
#[ignore = "run by kill_9_at_any_moment_leaves_a_store_that_works"]
async fn child_that_pulls_and_removes() {
    let Ok(dir) = std::env::var("IMAGE_TEST_STORE") else {
        return;
    };
    let names = std::env::var("IMAGE_TEST_NAMES").unwrap();
    let store = ImageStore::open(dir).unwrap();
    println!("open");
    loop {
        for name in names.split(' ') {
            pull(&store, name).await.unwrap();
        }
        for name in names.split(' ') {
            store.remove(&name.parse().unwrap()).await.unwrap();
            store.gc(&[].into()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn kill_9_at_any_moment_leaves_a_store_that_works() {
    let registry = Registry::start().await;
    let base = TestLayer::gzip(
        (0..200)
            .fold(Tar::new(), |tar, i| {
                tar.file(&format!("base{i}"), &noise(3000, i))
            })
            .done(),
    );
    let mut names = Vec::new();
    for number in 0..3u64 {
        let own = (0..50).fold(Tar::new(), |tar, i| {
            tar.file(&format!("own{i}"), &noise(20_000, number * 100 + i))
        });
        let image = TestImage::new(vec![base.clone(), TestLayer::zstd(own.done())]);
        registry.push(&format!("app{number}"), "v1", &image).await;
        names.push(format!("{}/app{number}:v1", registry.address));
    }
    let dir = tempfile::tempdir().unwrap();
    let seed = std::process::id();
    println!("seed {seed}");
    for round in 0..25u32 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "child_that_pulls_and_removes",
                "--ignored",
                "--nocapture",
            ])
            .env("IMAGE_TEST_STORE", dir.path())
            .env("IMAGE_TEST_NAMES", names.join(" "))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("open") {
            line.clear();
            assert!(
                std::io::BufRead::read_line(&mut output, &mut line).unwrap() > 0,
                "the child ended: round {round}"
            );
        }
        // Not a wait for a condition: the random moment is the test.
        let moment = u64::from(
            seed.wrapping_mul(2_654_435_761)
                .wrapping_add(round.wrapping_mul(40_503))
                % 400,
        );
        tokio::time::sleep(Duration::from_millis(moment)).await;
        child.kill().unwrap();
        child.wait().unwrap();

        let store = ImageStore::open(dir.path()).unwrap();
        assert!(
            layers_on_disk(dir.path())
                .iter()
                .all(|l| !l.starts_with("tmp")),
            "round {round}"
        );
        for image in store.list() {
            check_content(&image.layers, round);
        }
    }
    let store = ImageStore::open(dir.path()).unwrap();
    for name in &names {
        let image = pull(&store, name).await.unwrap();
        check_content(&image.layers, 99);
    }
}

fn check_content(layers: &[std::path::PathBuf], round: u32) {
    for i in 0..200 {
        let content = std::fs::read(layers[0].join(format!("base{i}")));
        assert!(
            content.is_ok_and(|c| c == noise(3000, i)),
            "round {round}: base{i}"
        );
    }
    assert_eq!(
        std::fs::read_dir(&layers[1]).unwrap().count(),
        50,
        "round {round}"
    );
}

/// Runs `test` in a thread with a mount namespace of its own and a tmpfs of `size` on /mnt.
fn on_small_disk(size: &str, test: impl AsyncFnOnce(&Path) + Send + 'static) {
    use nix::mount::{MsFlags, mount};
    let options = format!("size={size}");
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(
            Some("tmpfs"),
            "/mnt",
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .unwrap();
        // The threads that this runtime starts are born in this thread's namespace.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test(Path::new("/mnt")));
    });
    thread.join().unwrap();
}

#[test]
fn a_full_disk_is_told_as_such_and_the_space_comes_back() {
    on_small_disk("24m", async |disk| {
        let registry = Registry::start().await;
        let zeros = TestLayer::gzip(Tar::new().file("zeros", &vec![0; 40 << 20]).done());
        let noisy = TestLayer::gzip(Tar::new().file("noise", &noise(40 << 20, 1)).done());
        registry
            .push("unpacked", "v1", &TestImage::new(vec![zeros]))
            .await;
        registry
            .push("download", "v1", &TestImage::new(vec![noisy]))
            .await;
        registry.push("small", "v1", &small_image()).await;
        for reserved in [0, 4 << 20] {
            let limits = Limits {
                reserved_bytes: reserved,
                ..Limits::default()
            };
            let store = ImageStore::open_with(disk.join("images"), limits).unwrap();
            for name in ["unpacked", "download"] {
                let error = pull(&store, &format!("{}/{name}:v1", registry.address))
                    .await
                    .unwrap_err();
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
                assert!(
                    error
                        .to_string()
                        .to_lowercase()
                        .contains("no space left on device"),
                    "{error}"
                );
                let free = nix::sys::statvfs::statvfs(disk).unwrap();
                let free = free.blocks_available() * free.fragment_size();
                assert!(free > 22 << 20, "{name}: only {free} bytes came back");
            }
            pull(&store, &format!("{}/small:v1", registry.address))
                .await
                .unwrap();
        }
    });
}

#[test]
fn a_disk_that_fills_up_during_a_download_gets_its_space_back() {
    on_small_disk("24m", async |disk| {
        let registry = Registry::start().await;
        let noisy = TestLayer::gzip(Tar::new().file("noise", &noise(12 << 20, 1)).done());
        registry
            .push("download", "v1", &TestImage::new(vec![noisy]))
            .await;
        let limits = Limits {
            reserved_bytes: 0,
            ..Limits::default()
        };
        let store = ImageStore::open_with(disk.join("images"), limits).unwrap();
        let filler = disk.join("filler");
        let options = PullOptions {
            progress: Some(std::sync::Arc::new(move |progress: &Progress| {
                // Somebody else takes all that is left, once.
                if matches!(progress, Progress::Downloading { done, total, .. } if done < total)
                    && !filler.exists()
                {
                    let _ = std::fs::write(&filler, vec![0; 24 << 20]);
                }
            })),
            ..PullOptions::default()
        };
        let name = format!("{}/download:v1", registry.address).parse().unwrap();
        let error = store.pull(&name, &options).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        assert!(disk.join("filler").exists() && store.disk_usage().blob_bytes == 0);
        std::fs::remove_file(disk.join("filler")).unwrap();
    });
}

#[tokio::test]
async fn damage_on_disk_is_noticed_and_repaired_by_the_next_pull() {
    let registry = Registry::start().await;
    let image = small_image();
    registry.push("app", "v1", &image).await;
    let name = format!("{}/app:v1", registry.address);
    let dir = tempfile::tempdir().unwrap();
    let config = dir
        .path()
        .join("blobs")
        .join(format!("sha256-{}", image.id().hex()));
    let index = dir.path().join("index.json");
    type Damage<'a> = (&'a str, Box<dyn Fn() + 'a>);
    let damages: [Damage; 4] = [
        (
            "index",
            Box::new(|| std::fs::write(&index, b"{\"version\":1,").unwrap()),
        ),
        (
            "config",
            Box::new(|| std::fs::write(&config, b"{}").unwrap()),
        ),
        (
            "no config",
            Box::new(|| std::fs::remove_file(&config).unwrap()),
        ),
        (
            "layer",
            Box::new(|| {
                std::fs::remove_dir_all(
                    dir.path()
                        .join("layers")
                        .join(&layers_on_disk(dir.path())[0]),
                )
                .unwrap()
            }),
        ),
    ];
    for (what, damage) in damages {
        let store = ImageStore::open(dir.path()).unwrap();
        pull(&store, &name).await.unwrap();
        drop(store);
        damage();
        let store = ImageStore::open(dir.path()).unwrap();
        assert!(store.list().is_empty(), "{what}");
        let image = pull(&store, &name).await.unwrap();
        assert_eq!(
            std::fs::read(image.layers[0].join("a")).unwrap(),
            b"a",
            "{what}"
        );
    }
    assert!(dir.path().join("index.json.corrupt").exists());
}

#[tokio::test]
async fn a_pull_that_nobody_waits_for_stops() {
    let registry = Registry::start().await;
    let layer = TestLayer::gzip(Tar::new().file("big", &noise(8_000_000, 3)).done());
    registry
        .push("app", "v1", &TestImage::new(vec![layer.clone()]))
        .await;
    let proxy = Proxy::start(registry.address).await;
    let (dir, store) = store();
    let name = format!("{}/app:v1", proxy.address);
    let pulling = tokio::spawn({
        let (store, name) = (store.clone(), name.clone());
        async move { pull(&store, &name).await }
    });
    let ingest = dir.path().join("ingest");
    wait_for(|| std::fs::read_dir(&ingest).unwrap().count() > 0).await;
    pulling.abort();
    assert!(pulling.await.is_err_and(|e| e.is_cancelled()));
    assert!(store.list().is_empty());
    // And the next one finds nothing locked.
    pull(&store, &name).await.unwrap();
}

async fn wait_for(condition: impl Fn() -> bool) {
    let started = std::time::Instant::now();
    while !condition() {
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "waited in vain"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A registry that hands out tokens, as Docker Hub, ghcr.io and quay.io do; it refuses what a real one would refuse.
#[tokio::test]
async fn tokens_are_fetched_where_the_registry_says() {
    let image = small_image();
    let (manifest, config) = (image.manifest().to_string(), image.config().to_string());
    let blobs = [image.layers[0].blob.clone(), config.into_bytes()];
    let server = HttpServer::start(move |request, address| {
        let authorization = request.header("authorization").unwrap_or_default();
        let path = request.path.split('?').next().unwrap_or_default().to_owned();
        if path == "/token" {
            let query = request.path.clone() + &request.body;
            let scoped = query.contains("scope=repository%3Ateam%2Fapp%3Apull") && query.contains("service=test");
            // user:secret
            let basic = request.method == "GET" && authorization == "Basic dXNlcjpzZWNyZXQ=" && query.contains("account=user");
            let refresh = request.method == "POST" && query.contains("grant_type=refresh_token&client_id=amphipod&refresh_token=r%26t");
            return match scoped && (basic || refresh) {
                true => Answer::new(200, json!({ "token": "good", "expires_in": 60 }).to_string()),
                false => Answer::new(401, "{}"),
            };
        }
        if authorization != "Bearer good" {
            let challenge = format!(r#"Bearer realm="http://{address}/token",service="test",scope="repository:team/app:pull""#);
            return Answer::new(401, "{}").header("www-authenticate", &challenge);
        }
        if path.starts_with("/v2/team/app/manifests/") {
            return Answer::new(200, manifest.clone()).header("content-type", OCI_MANIFEST);
        }
        let blob = blobs.iter().find(|b| path.ends_with(amphipod_runtime::image::Digest::sha256(b).hex()));
        blob.map_or(Answer::new(404, "{}"), |blob| Answer::new(200, blob.clone()))
    })
    .await;
    let reference = format!("{}/team/app:v1", server.address).parse().unwrap();
    let password = RegistryAuth {
        username: "user".into(),
        password: "secret".into(),
        ..Default::default()
    };
    let refresh = RegistryAuth {
        identity_token: "r&t".into(),
        ..Default::default()
    };
    let wrong = RegistryAuth {
        username: "user".into(),
        password: "no".into(),
        ..Default::default()
    };
    let (_dir, store) = store();
    for auth in [vec![], vec![wrong.clone()]] {
        let options = PullOptions {
            auth,
            ..PullOptions::default()
        };
        let error = store.pull(&reference, &options).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
        assert!(error.to_string().contains("token"), "{error}");
    }
    for auth in [vec![wrong, password], vec![refresh]] {
        let (_dir, store) = image_support::store();
        let options = PullOptions {
            auth,
            ..PullOptions::default()
        };
        store.pull(&reference, &options).await.unwrap();
    }
}

#[tokio::test]
async fn a_busy_registry_is_asked_again() {
    let image = small_image();
    let (manifest, config) = (image.manifest().to_string(), image.config().to_string());
    let blobs = [image.layers[0].blob.clone(), config.into_bytes()];
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let server = HttpServer::start(move |request, _| {
        // Every other request is turned away.
        let number = asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        if number.is_multiple_of(2) {
            return Answer::new([503, 429][number / 2 % 2], "busy").header("retry-after", "0");
        }
        if request.path.contains("/manifests/") {
            return Answer::new(200, manifest.clone());
        }
        let blob = blobs.iter().find(|b| {
            request
                .path
                .ends_with(amphipod_runtime::image::Digest::sha256(b).hex())
        });
        blob.map_or(Answer::new(404, "{}"), |blob| {
            Answer::new(200, blob.clone())
        })
    })
    .await;
    let (_dir, store) = store();
    pull(&store, &format!("{}/app:v1", server.address))
        .await
        .unwrap();
}

#[tokio::test]
async fn answers_without_end_are_cut_off() {
    let server = HttpServer::start(|_, _| Answer::new(200, vec![b' '; 5 << 20])).await;
    let (_dir, store) = store();
    let error = pull(&store, &format!("{}/app:v1", server.address))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Hostile);
    assert!(error.to_string().contains("longer than"), "{error}");
}
