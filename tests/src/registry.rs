//! Debian's `docker-registry`, the real registry of the tests, run inside a box on its loopback.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::edge_box::EdgeBox;
use crate::image::Image;
use crate::wait::eventually;

/// A registry at 127.0.0.1:5000 inside a box. It ends with the box, or when this is dropped.
pub struct Registry {
    process: Child,
    data: PathBuf,
}

impl Registry {
    /// Starts the registry, which holds [`crate::BUSYBOX`], and waits until it answers. Its data is on the box's disk.
    #[track_caller]
    pub fn start(in_box: &EdgeBox) -> Registry {
        let data = in_box.disk().join("registry");
        fs::create_dir_all(&data).unwrap();
        Image::busybox().store(&data, "busybox", "1");
        let config = in_box.disk().join("registry.yml");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: '127.0.0.1:5000'}}\n",
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
            let ran = in_box.run(&["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/5000"]);
            if ran.code == 0 {
                Ok(())
            } else {
                Err(ran.stderr)
            }
        });
        Registry { process, data }
    }

    /// Adds an image; a pod refers to it as `127.0.0.1:5000/NAME:TAG`. Returns the manifest's digest.
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
