//! `amphipod-fleet [--registry DIR] [SERVER ARGUMENT...]`: a ready all-in-one box for programs that are not Rust tests, as the
//! conformance suite.
//!
//! With `--registry`, DIR (the data directory of a `docker-registry`) is served at 127.0.0.1:5000 inside the box. When the
//! node is Ready, this prints two lines and then lives until its standard input ends, upon which everything is taken down:
//!
//! ```text
//! enter nsenter -t 4711 -m -n -p -u -i --
//! disk /tmp/amphitest-disk-x
//! ```
//!
//! `enter` leads into the namespaces of the box, where the administrator's kubeconfig is `/etc/amphipod/kubeconfig`; `disk`
//! holds `amphipod.log`.

use std::io::{Read, Write};

use amphipod_tests::{EdgeBox, Lan, Registry};
use anyhow::{Context, Result};

fn main() -> Result<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let mut images = None;
    if args.first().is_some_and(|arg| arg == "--registry") {
        args.remove(0);
        anyhow::ensure!(!args.is_empty(), "--registry needs a directory");
        images = Some(args.remove(0));
    }
    let lan = Lan::new();
    let mut edge_box = EdgeBox::new(&lan);
    let _registry = images.map(|data| Registry::serve(&edge_box, data.as_ref()));
    edge_box.start(&args.iter().map(String::as_str).collect::<Vec<_>>());
    edge_box.wait_until_ready();

    let enter = edge_box.command("--");
    print!("enter nsenter");
    for arg in enter.get_args().take_while(|arg| *arg != "--") {
        print!(" {}", arg.to_string_lossy());
    }
    println!(" --\ndisk {}", edge_box.disk().display());
    std::io::stdout().flush().context("telling the caller")?;
    std::io::stdin()
        .read_to_end(&mut Vec::new())
        .context("waiting for the caller's end")?;
    Ok(())
}
