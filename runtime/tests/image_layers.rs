//! Layers: hostile ones are refused without a trace, honest ones arrive whole, and overlayfs shows what their builders
//! meant.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod image_support;

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use amphipod_runtime::image::{ErrorKind, Image, ImageStore, Limits};
use image_support::*;
use tar::EntryType;

fn big_header(size: u64) -> Vec<u8> {
    Tar::new()
        .custom(|header| header.set_size(size), b"")
        .done()
}

/// Every layer is pushed to a real registry on top of a good one and pulled from there.
#[tokio::test]
async fn hostile_layers_are_refused_with_their_name_and_leave_nothing() {
    use ErrorKind::{Corrupt, Hostile, Unsupported};
    let outside = tempfile::tempdir().unwrap();
    let out = outside.path().to_str().unwrap();
    let long = format!("{}x", "d/".repeat(300));
    let cases: Vec<(&str, Vec<u8>, ErrorKind, &str)> = vec![
        (
            "absolute path",
            Tar::new().file("/etc/owned", b"x").done(),
            Hostile,
            "absolute path",
        ),
        (
            "path with ..",
            Tar::new().file("../owned", b"x").done(),
            Hostile,
            "\"..\"",
        ),
        (
            "hidden ..",
            Tar::new().dir("a/").file("a/../../owned", b"x").done(),
            Hostile,
            "\"..\"",
        ),
        (
            "through an absolute link",
            Tar::new().symlink("l", out).file("l/owned", b"x").done(),
            Hostile,
            "leads out of the layer",
        ),
        (
            "through a relative link",
            Tar::new()
                .dir("a/")
                .symlink("a/l", "../../../../tmp")
                .file("a/l/owned", b"x")
                .done(),
            Hostile,
            "leads out of the layer",
        ),
        (
            "through a chain of links",
            Tar::new()
                .symlink("a", "b")
                .symlink("b", "..")
                .file("a/owned", b"x")
                .done(),
            Hostile,
            "leads out of the layer",
        ),
        (
            "through a loop of links",
            Tar::new()
                .symlink("a", "b")
                .symlink("b", "a")
                .file("a/x", b"x")
                .done(),
            Hostile,
            "too many links",
        ),
        (
            "hard link with ..",
            Tar::new().hard_link("h", "../../etc/shadow").done(),
            Hostile,
            "\"..\"",
        ),
        (
            "absolute hard link",
            Tar::new().hard_link("h", "/etc/shadow").done(),
            Hostile,
            "absolute path",
        ),
        (
            "hard link through a link",
            Tar::new()
                .symlink("l", "/etc")
                .hard_link("h", "l/shadow")
                .done(),
            Hostile,
            "leads out of the layer",
        ),
        (
            "hard link to nothing",
            Tar::new().hard_link("h", "nothing").done(),
            Corrupt,
            "not in this layer",
        ),
        (
            "hard link to a directory",
            Tar::new().dir("d/").hard_link("h", "d").done(),
            Hostile,
            "directory",
        ),
        (
            "disk",
            Tar::new().device("disk", EntryType::Block, 8, 0).done(),
            Hostile,
            "block device 8:0",
        ),
        (
            "memory",
            Tar::new().device("mem", EntryType::Char, 1, 1).done(),
            Hostile,
            "character device 1:1",
        ),
        (
            "forged whiteout",
            Tar::new().device("w", EntryType::Char, 0, 0).done(),
            Hostile,
            "character device 0:0",
        ),
        (
            "whiteout of the parent",
            Tar::new().file(".wh...", b"").done(),
            Hostile,
            "whiteout",
        ),
        (
            "whiteout of nothing",
            Tar::new().file(".wh.", b"").done(),
            Hostile,
            "whiteout",
        ),
        (
            "huge declared size",
            big_header(1 << 40),
            Hostile,
            "declares 1099511627776 bytes",
        ),
        (
            "largest declared size",
            big_header(i64::MAX as u64),
            Hostile,
            "declares 9223372036854775807 bytes",
        ),
        (
            "declared size in PAX",
            Tar::new()
                .pax(&[("size", b"18446744073709551615")])
                .file("f", b"")
                .done(),
            Hostile,
            "declares",
        ),
        (
            "bomb",
            Tar::new().file("zeros", &vec![0; 9 << 20]).done(),
            Hostile,
            "declares 9437184 bytes",
        ),
        (
            "bomb in pieces",
            (0..20)
                .fold(Tar::new(), |tar, i| {
                    tar.file(&format!("z{i}"), &vec![0; 1 << 20])
                })
                .done(),
            Hostile,
            "more bytes than the limit",
        ),
        (
            "too many entries",
            (0..300)
                .fold(Tar::new(), |tar, i| tar.file(&format!("f{i}"), b""))
                .done(),
            Hostile,
            "more than 200 entries",
        ),
        (
            "nested too deep",
            Tar::new()
                .pax(&[("path", long.as_bytes())])
                .file("x", b"")
                .done(),
            Hostile,
            "too deep",
        ),
        (
            "name too long",
            Tar::new()
                .pax(&[("path", &[b'n'; 300])])
                .file("x", b"")
                .done(),
            Hostile,
            "255 bytes",
        ),
        (
            "name with a zero",
            Tar::new().pax(&[("path", b"a\0b")]).file("x", b"").done(),
            Hostile,
            "zero byte",
        ),
        (
            "owner nobody can have",
            Tar::new()
                .pax(&[("uid", b"4294967296")])
                .file("x", b"")
                .done(),
            Hostile,
            "owner",
        ),
        (
            "root is a file",
            Tar::new().file("./", b"x").done(),
            Hostile,
            "root is not a directory",
        ),
        (
            "file as a directory",
            Tar::new().file("f", b"").file("f/x", b"").done(),
            Corrupt,
            "not a directory",
        ),
        (
            "sparse",
            Tar::new()
                .entry("s", EntryType::GNUSparse, "", 0o644, b"")
                .done(),
            Unsupported,
            "sparse",
        ),
        (
            "truncated",
            big_header(4096)[..512].to_vec(),
            Corrupt,
            "ends too early",
        ),
        ("not a tar", noise(4096, 9), Corrupt, "tar header"),
    ];
    let registry = Registry::start().await;
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits {
        layer_bytes: 8 << 20,
        layer_entries: 200,
        ..Limits::default()
    };
    let store = ImageStore::open_with(dir.path(), limits).unwrap();
    let good = TestLayer::gzip(Tar::new().file("good", b"good").done());
    for (number, (what, tar, kind, words)) in cases.into_iter().enumerate() {
        let bad = TestLayer::gzip(tar);
        let image = TestImage::new(vec![good.clone(), bad.clone()]);
        let tag = format!("case-{number}");
        registry.push("bad", &tag, &image).await;
        let name = format!("{}/bad:{tag}", registry.address);
        let error = match pull(&store, &name).await {
            Ok(_) => panic!("{what}: was accepted"),
            Err(error) => error,
        };
        let text = error.to_string();
        assert_eq!(error.kind(), kind, "{what}: {text}");
        assert!(
            text.contains(&name) && text.contains(&bad.digest().to_string()),
            "{what}: {text}"
        );
        assert!(text.contains(words), "{what}: {text}");
        assert!(
            store.list().is_empty() && store.resolve(&name.parse().unwrap()).is_none(),
            "{what}: a name was left"
        );
        let left = layers_on_disk(dir.path());
        assert!(
            left.len() <= 1 && left.iter().all(|l| !l.starts_with("tmp")),
            "{what}: {left:?}"
        );
        assert_eq!(
            std::fs::read_dir(outside.path()).unwrap().count(),
            0,
            "{what}: reached out"
        );
        assert!(
            !Path::new("/tmp/owned").exists() && !dir.path().join("owned").exists(),
            "{what}: reached out"
        );
    }
    store.gc(&[].into()).await.unwrap();
    assert!(layers_on_disk(dir.path()).is_empty());
}

/// Imports an archive of one image: quicker than a registry where that does not matter.
async fn import(store: &ImageStore, image: &TestImage, name: &str) -> Image {
    let archive = oci_archive(image, None);
    let images = store
        .import_oci_archive(std::io::Cursor::new(archive), Some(&name.parse().unwrap()))
        .await;
    images.unwrap().remove(0)
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let (path, name) = (
        CString::new(path.as_os_str().as_bytes()).unwrap(),
        CString::new(name).unwrap(),
    );
    let mut value = [0u8; 256];
    // SAFETY: all pointers are valid for the lengths given.
    let n = unsafe {
        libc::lgetxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    usize::try_from(n).ok().map(|n| value[..n].to_vec())
}

#[tokio::test]
async fn owners_modes_times_attributes_and_odd_names_are_kept() {
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let long = format!("{}file", "long-directory-name/".repeat(20));
    let layer = Tar::new()
        .custom(
            |h| {
                h.set_path("owned").unwrap();
                h.set_uid(1234);
                h.set_gid(5678);
                h.set_mode(0o6750);
                h.set_mtime(1_234_567_890);
            },
            b"content",
        )
        .pax(&[
            ("SCHILY.xattr.user.note", b"hello"),
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
            ("mtime", b"1000000000.5"),
        ])
        .file("attributes", b"")
        .pax(&[("path", b"non-utf8-\xff\xfe")])
        .file("x", b"odd")
        .pax(&[("path", long.as_bytes())])
        .file("x", b"long")
        .dir("dated/")
        .file("dated/later", b"")
        .file("first", b"linked")
        .hard_link("second", "./first")
        .symlink("link", "/absolute/target")
        .entry("pipe", EntryType::Fifo, "", 0o600, b"")
        .device("null", EntryType::Char, 1, 3)
        .done();
    let (_dir, store) = store();
    let image = import(
        &store,
        &TestImage::new(vec![TestLayer::gzip(layer)]),
        "kept",
    )
    .await;
    let root = &image.layers[0];
    let meta = |path: &str| std::fs::symlink_metadata(root.join(path)).unwrap();
    let owned = meta("owned");
    assert_eq!(
        (
            owned.uid(),
            owned.gid(),
            owned.mode() & 0o7777,
            owned.mtime()
        ),
        (1234, 5678, 0o6750, 1_234_567_890)
    );
    assert_eq!(
        (meta("attributes").mtime(), meta("attributes").mtime_nsec()),
        (1_000_000_000, 500_000_000)
    );
    assert_eq!(
        xattr(&root.join("attributes"), "user.note").unwrap(),
        b"hello"
    );
    assert_eq!(
        xattr(&root.join("attributes"), "security.capability").unwrap(),
        capability
    );
    assert_eq!(
        xattr(&root.join("attributes"), "trusted.overlay.redirect"),
        None
    );
    assert_eq!(
        xattr(&root.join("attributes"), "user.overlay.redirect"),
        None
    );
    assert_eq!(
        std::fs::read(root.join(OsStr::from_bytes(b"non-utf8-\xff\xfe"))).unwrap(),
        b"odd"
    );
    assert_eq!(std::fs::read(root.join(&long)).unwrap(), b"long");
    assert_eq!(
        meta("dated").mtime(),
        1_600_000_000,
        "a directory's time is not that of its last file"
    );
    assert_eq!(meta("first").ino(), meta("second").ino());
    assert_eq!(
        std::fs::read_link(root.join("link")).unwrap(),
        Path::new("/absolute/target")
    );
    assert!(meta("pipe").file_type().is_fifo());
    assert_eq!(
        (
            meta("null").file_type().is_char_device(),
            meta("null").rdev()
        ),
        (true, libc::makedev(1, 3))
    );
}

#[tokio::test]
async fn later_entries_replace_earlier_ones_without_following_them() {
    let layer = Tar::new()
        .file("victim", b"untouched")
        .symlink("a", "victim")
        .file("a", b"a file now")
        .dir("d/")
        .file("d/inside", b"")
        .symlink("d", "victim")
        .symlink("e", "victim")
        .dir("e/")
        .file("e/inside", b"x")
        .dir("real/")
        .symlink("way", "real")
        .file("way/in", b"through a link that stays inside")
        .file("same", b"1")
        .hard_link("same", "same")
        .done();
    let (_dir, store) = store();
    let image = import(
        &store,
        &TestImage::new(vec![TestLayer::plain(layer)]),
        "replaced",
    )
    .await;
    let read = |path: &str| std::fs::read_to_string(image.layers[0].join(path)).unwrap();
    assert_eq!(read("victim"), "untouched");
    assert_eq!(read("a"), "a file now");
    assert_eq!(
        std::fs::read_link(image.layers[0].join("d")).unwrap(),
        Path::new("victim")
    );
    assert_eq!(read("e/inside"), "x");
    assert_eq!(read("real/in"), "through a link that stays inside");
    assert_eq!(read("same"), "1");
}

#[tokio::test]
async fn directories_that_a_layer_only_implies_keep_the_owner_and_mode_from_below() {
    let base = Tar::new()
        .custom(
            |h| {
                h.set_path("tmp/").unwrap();
                h.set_entry_type(EntryType::Directory);
                h.set_mode(0o1777);
                h.set_uid(7);
            },
            b"",
        )
        .done();
    let image = TestImage::new(vec![
        TestLayer::plain(base),
        TestLayer::plain(Tar::new().file("middle", b"").done()),
        TestLayer::plain(Tar::new().file("tmp/new/file", b"").done()),
    ]);
    let (_dir, store) = store();
    let image = import(&store, &image, "implied").await;
    let meta = |path: &str| std::fs::metadata(image.layers[2].join(path)).unwrap();
    assert_eq!(
        (meta("tmp").mode() & 0o7777, meta("tmp").uid()),
        (0o1777, 7)
    );
    assert_eq!(
        (meta("tmp/new").mode() & 0o7777, meta("tmp/new").uid()),
        (0o755, 0)
    );
}

/// What overlayfs shows of the layers, in a mount namespace of its own.
fn merged(image: &Image) -> String {
    let lower: Vec<&str> = image
        .layers
        .iter()
        .rev()
        .map(|l| l.to_str().unwrap())
        .collect();
    let script = r#"
        set -e
        mount --make-rprivate / && mount -t tmpfs tmpfs /mnt && mkdir /mnt/up /mnt/work /mnt/all
        mount -t overlay overlay -o "lowerdir=$0,upperdir=/mnt/up,workdir=/mnt/work" /mnt/all
        cd /mnt/all && find . -mindepth 1 | sort | tr '\n' ' '
    "#;
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(lower.join(":"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn whiteouts_hide_what_lies_below_in_any_order_of_entries() {
    let base = || {
        Tar::new()
            .file("gone", b"")
            .dir("dir/")
            .file("dir/old", b"")
            .dir("back/")
            .file("back/old", b"")
            .file("stay", b"")
    };
    for (what, upper, want) in [
        (
            "a file",
            Tar::new().file(".wh.gone", b""),
            "./back ./back/old ./dir ./dir/old ./stay",
        ),
        (
            "a directory",
            Tar::new().file(".wh.dir", b""),
            "./back ./back/old ./gone ./stay",
        ),
        (
            "opaque",
            Tar::new()
                .dir("dir/")
                .file("dir/.wh..wh..opq", b"")
                .file("dir/new", b""),
            "./back ./back/old ./dir ./dir/new ./gone ./stay",
        ),
        (
            "opaque, after",
            Tar::new()
                .dir("dir/")
                .file("dir/new", b"")
                .file("dir/.wh..wh..opq", b""),
            "./back ./back/old ./dir ./dir/new ./gone ./stay",
        ),
        (
            "gone and back",
            Tar::new()
                .file(".wh.back", b"")
                .dir("back/")
                .file("back/new", b""),
            "./back ./back/new ./dir ./dir/old ./gone ./stay",
        ),
        (
            "gone and implied",
            Tar::new().file(".wh.back", b"").file("back/new", b""),
            "./back ./back/new ./dir ./dir/old ./gone ./stay",
        ),
        (
            "back, then gone",
            Tar::new()
                .dir("back/")
                .file("back/new", b"")
                .file(".wh.back", b""),
            "./back ./back/new ./dir ./dir/old ./gone ./stay",
        ),
        (
            "a file and its whiteout",
            Tar::new().file("gone", b"new").file(".wh.gone", b""),
            "./back ./back/old ./dir ./dir/old ./gone ./stay",
        ),
        (
            "leftovers of aufs",
            Tar::new().file(".wh..wh.plnk", b""),
            "./back ./back/old ./dir ./dir/old ./gone ./stay",
        ),
        (
            "everything",
            Tar::new().file("new", b"").file(".wh..wh..opq", b""),
            "./new",
        ),
    ] {
        let (_dir, store) = store();
        let image = TestImage::new(vec![
            TestLayer::plain(base().done()),
            TestLayer::plain(upper.done()),
        ]);
        let image = import(&store, &image, "whiteouts").await;
        assert_eq!(merged(&image), want, "{what}");
    }
}

#[tokio::test]
async fn users_are_resolved_in_the_layers_as_the_container_would_see_them() {
    use amphipod_runtime::image::user::{UserError, resolve, resolve_in_layers};
    let base = Tar::new()
        .dir("etc/")
        .file("etc/passwd", b"app:x:1:1::/old:\n")
        .file("etc/group", b"ops:x:9:app\n");
    let newer = Tar::new()
        .dir("etc/")
        .file("etc/passwd", b"app:x:2:2::/new:\n");
    let linked = Tar::new()
        .dir("etc/")
        .symlink("etc/passwd", "../../usr/./share/passwd")
        .dir("usr/share/")
        .file("usr/share/passwd", b"app:x:3:3:::\n");
    let absolute = Tar::new()
        .symlink("etc/passwd", "/usr/users")
        .file("usr/users", b"app:x:4:4:::\n");
    let hidden = Tar::new().file("etc/.wh.passwd", b"");
    let opaque = Tar::new().dir("etc/").file("etc/.wh..wh..opq", b"");
    let looping = Tar::new()
        .symlink("etc/passwd", "group")
        .symlink("etc/group", "passwd");
    let fifo = Tar::new().entry("etc/passwd", EntryType::Fifo, "", 0o644, b"");
    let outside = Tar::new()
        .symlink("etc", "/usr/etc")
        .symlink("usr/etc/passwd", "/proc/self/environ");
    type Want<'a> = Option<(u32, &'a [u32])>;
    let cases: Vec<(&str, Vec<Tar>, Want)> = vec![
        ("base", vec![base.clone()], Some((1, &[9]))),
        ("replaced", vec![base.clone(), newer], Some((2, &[9]))),
        ("linked", vec![base.clone(), linked], Some((3, &[9]))),
        (
            "linked from the root",
            vec![base.clone(), absolute],
            Some((4, &[9])),
        ),
        ("hidden", vec![base.clone(), hidden], None),
        ("opaque", vec![base.clone(), opaque], None),
        ("fifo", vec![base.clone(), fifo], None),
        ("outside", vec![base.clone(), outside], None),
    ];
    for (what, layers, want) in cases {
        let (_dir, store) = store();
        let layers = layers
            .into_iter()
            .map(|tar| TestLayer::plain(tar.done()))
            .collect();
        let image = import(&store, &TestImage::new(layers), "users").await;
        match (resolve_in_layers(&image.layers, "app"), want) {
            (Ok(user), Some((uid, gids))) => {
                assert_eq!(
                    (user.uid, user.gid, user.additional_gids.as_slice()),
                    (uid, uid, gids),
                    "{what}"
                );
            }
            (Err(UserError::NoUser(_)), None) => {}
            (other, _) => panic!("{what}: {other:?}"),
        }
        assert_eq!(
            resolve_in_layers(&image.layers, "77").unwrap().uid,
            77,
            "{what}"
        );
    }
    let (_dir, store) = store();
    let image = import(
        &store,
        &TestImage::new(vec![TestLayer::plain(looping.done())]),
        "loop",
    )
    .await;
    assert!(matches!(
        resolve_in_layers(&image.layers, "app"),
        Err(UserError::Read { .. })
    ));
    assert!(matches!(
        resolve(&image.layers[0], "app"),
        Err(UserError::Read { .. })
    ));
    let image = import(
        &store,
        &TestImage::new(vec![TestLayer::plain(base.done())]),
        "one",
    )
    .await;
    assert_eq!(
        resolve(&image.layers[0], "app").unwrap(),
        resolve_in_layers(&image.layers, "app").unwrap()
    );
}
