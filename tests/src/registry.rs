//! Debian's `docker-registry`, the real registry of the tests, run inside a box on its loopback.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::edge_box::EdgeBox;
use crate::wait::eventually;

/// A registry at 127.0.0.1:5000 inside a box. It ends with the box, or when this is dropped.
pub struct Registry {
    process: Child,
}

impl Registry {
    /// Starts the registry and waits until it answers. Its data is on the box's disk.
    #[track_caller]
    pub fn start(in_box: &EdgeBox) -> Registry {
        let data = in_box.disk().join("registry");
        fs::create_dir_all(&data).unwrap();
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
        command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().expect("docker-registry is installed (tests/run.sh does it)");
        eventually("the registry to answer", Duration::from_secs(10), || {
            let ran = in_box.run(&["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/5000"]);
            if ran.code == 0 { Ok(()) } else { Err(ran.stderr) }
        });
        Registry { process }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
