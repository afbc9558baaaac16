//! `amphipod-fleet [--boxes N] [--registry DIR] [SERVER ARGUMENT...]`: ready boxes for programs that are not Rust tests, as
//! the conformance suite.
//!
//! The first box is all-in-one; the others join it as a user would let them. With `--registry`, DIR (the data directory of a
//! `docker-registry`) is served at 127.0.0.1:5000 inside each box. When all nodes are Ready, this prints a line for the
//! disk of each box, where `amphipod.log` is, and one that leads into the namespaces of the first, where the administrator's
//! kubeconfig is `/etc/amphipod/kubeconfig`. It then lives until its standard input ends, upon which everything is taken down.
//!
//! ```text
//! disk /tmp/amphitest-disk-x
//! enter nsenter -t 4711 -m -n -p -u -i --
//! ```

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use amphipod_tests::{EdgeBox, Lan, Registry, binary, eventually};
use anyhow::{Context, Result};

fn main() -> Result<()> {
    let (mut boxes, mut images) = (1, None);
    let mut args = std::env::args().skip(1).peekable();
    while let Some(flag) = args.next_if(|arg| arg == "--boxes" || arg == "--registry") {
        let value = args
            .next()
            .with_context(|| format!("{flag} needs a value"))?;
        if flag == "--boxes" {
            boxes = value.parse().context("--boxes is a number")?;
        } else {
            images = Some(PathBuf::from(value));
        }
    }
    let args: Vec<String> = args.collect();

    let lan = Lan::new();
    let mut server = EdgeBox::new(&lan);
    server.start(&args.iter().map(String::as_str).collect::<Vec<_>>());
    server.wait_until_ready();
    let mut fleet = vec![server];
    while fleet.len() < boxes {
        let joined = join(&lan, &fleet[0]);
        fleet.push(joined);
    }
    let _registries: Vec<Registry> = images
        .iter()
        .flat_map(|data| fleet.iter().map(|b| Registry::serve(b, data)))
        .collect();

    for edge_box in &fleet {
        println!("disk {}", edge_box.disk().display());
    }
    print!("enter nsenter");
    for arg in fleet[0]
        .command("--")
        .get_args()
        .take_while(|arg| *arg != "--")
    {
        print!(" {}", arg.to_string_lossy());
    }
    println!(" --");
    std::io::stdout().flush().context("telling the caller")?;
    std::io::stdin()
        .read_to_end(&mut Vec::new())
        .context("waiting for the caller's end")?;
    Ok(())
}

/// A further box, told to join by the line that `amphipod token create` prints.
fn join(lan: &Lan, server: &EdgeBox) -> EdgeBox {
    let program = binary();
    let line = server
        .run(&[&program.to_string_lossy(), "token", "create"])
        .ok();
    let mut edge_box = EdgeBox::new(lan);
    // `amphipod agent ARGUMENT...`
    edge_box.start_agent(&line.split_whitespace().skip(2).collect::<Vec<_>>());
    let kubectl = server.kubectl();
    eventually("the box to join", Duration::from_secs(60), || {
        let ran = kubectl.run(&[
            "wait",
            "--for=condition=Ready",
            "--timeout=1s",
            &format!("node/{}", edge_box.name()),
        ]);
        if ran.code == 0 {
            Ok(())
        } else {
            Err(format!("{ran:?}\n{}", edge_box.log()))
        }
    });
    edge_box
}
