//! Debian's `docker-registry`, the real registry of the tests, run inside a box on its loopback.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::edge_box::EdgeBox;
use crate::image::Image;
use crate::wait::eventually;

/// A registry on the loopback address of a box. It ends with the box, or when this is dropped.
pub struct Registry {
    process: Child,
    data: PathBuf,
}

impl Registry {
    /// Starts the registry at 127.0.0.1:5000, which holds [`crate::BUSYBOX`], and waits until it answers. Its data is on the
    /// box's disk.
    #[track_caller]
    pub fn start(in_box: &EdgeBox) -> Registry {
        let registry = Registry::start_at(in_box, 5000, "");
        registry.add(&Image::busybox(), "busybox", "1");
        registry
    }

    /// Starts a registry that wants a password (HTTP basic authentication).
    #[track_caller]
    pub fn start_private(in_box: &EdgeBox, port: u16, user: &str, password: &str) -> Registry {
        let file = in_box.disk().join(format!("htpasswd-{port}"));
        let entry = in_box.run(&["htpasswd", "-Bbn", user, password]).ok();
        fs::write(&file, entry).unwrap();
        Registry::start_at(
            in_box,
            port,
            &format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                file.display()
            ),
        )
    }

    /// Starts a registry at 127.0.0.1:5000 over images that are there already, and waits until it answers.
    #[track_caller]
    pub fn serve(in_box: &EdgeBox, data: &Path) -> Registry {
        Registry::start_over(in_box, 5000, "", data.to_owned())
    }

    #[track_caller]
    fn start_at(in_box: &EdgeBox, port: u16, more: &str) -> Registry {
        let data = in_box.disk().join(format!("registry-{port}"));
        Registry::start_over(in_box, port, more, data)
    }

    #[track_caller]
    fn start_over(in_box: &EdgeBox, port: u16, more: &str, data: PathBuf) -> Registry {
        fs::create_dir_all(&data).unwrap();
        let config = in_box.disk().join(format!("registry-{port}.yml"));
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n{more}",
                data.display()
            ),
        )
        .unwrap();
        let mut command: Command = in_box.command("docker-registry");
        command
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = command
            .spawn()
            .expect("docker-registry is installed (tests/run.sh does it)");
        eventually("the registry to answer", Duration::from_secs(10), || {
            let ran = in_box.run(&["bash", "-c", &format!("exec 3<>/dev/tcp/127.0.0.1/{port}")]);
            if ran.code == 0 {
                Ok(())
            } else {
                Err(ran.stderr)
            }
        });
        Registry { process, data }
    }

    /// Adds an image; a pod refers to it as `127.0.0.1:PORT/NAME:TAG`. Returns the manifest's digest.
    pub fn add(&self, image: &Image, name: &str, tag: &str) -> String {
        image.store(&self.data, name, tag)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
