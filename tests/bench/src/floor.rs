//! What the kernel alone takes for an acknowledged create over one connection: a program that reads a request, hands it to
//! another thread, which appends a page to a file and has it on disk, and then sends the answer. No TLS, no HTTP, no JSON, no
//! database; the same hand-over, for a worker that waited for the disk itself would keep others waiting.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, anyhow};

use crate::inside::Inside;

/// What a POST of a 1 KB ConfigMap and its answer are on the wire, and a frame of a write-ahead log of SQLite.
const REQUEST: usize = 1280;
const ANSWER: usize = 1461;
const FRAME: usize = 24 + 4096;

/// Milliseconds of CPU for one.
///
/// # Errors
/// A disk or a loopback that does not work.
pub fn create(inside: &Inside) -> Result<f64> {
    let rounds = if inside.quick { 500 } else { 4000 };
    let path = inside.disk.join("floor");
    let file = File::create(&path)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let client = thread::spawn(move || ask(TcpStream::connect(address)?, rounds));
    let (stream, _) = listener.accept()?;
    let (commits, waiting) = mpsc::channel();
    let (acknowledge, acknowledged) = mpsc::channel();
    let store = thread::spawn(move || {
        append(file, &waiting, &acknowledge)?;
        thread_cpu()
    });
    let served = serve(stream, rounds, &commits, &acknowledged);
    drop(commits);
    let stored = join(store);
    let asked = join(client);
    fs::remove_file(path)?;
    let both = served? + stored?;
    asked?;
    Ok(both / rounds as f64)
}

fn join<T>(thread: thread::JoinHandle<Result<T>>) -> Result<T> {
    thread
        .join()
        .unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
}

fn ask(mut stream: TcpStream, rounds: usize) -> Result<()> {
    stream.set_nodelay(true)?;
    for _ in 0..rounds {
        stream.write_all(&[b'x'; REQUEST])?;
        stream.read_exact(&mut [0; ANSWER])?;
    }
    Ok(())
}

fn append(
    mut file: File,
    waiting: &mpsc::Receiver<()>,
    acknowledge: &mpsc::Sender<()>,
) -> Result<()> {
    while waiting.recv().is_ok() {
        file.write_all(&[7; FRAME])?;
        file.sync_data()?;
        acknowledge.send(())?;
    }
    Ok(())
}

fn serve(
    mut stream: TcpStream,
    rounds: usize,
    commits: &mpsc::Sender<()>,
    acknowledged: &mpsc::Receiver<()>,
) -> Result<f64> {
    stream.set_nodelay(true)?;
    let before = thread_cpu()?;
    for _ in 0..rounds {
        stream.read_exact(&mut [0; REQUEST])?;
        commits.send(())?;
        acknowledged.recv()?;
        stream.write_all(&[b'y'; ANSWER])?;
    }
    Ok(thread_cpu()? - before)
}

/// Milliseconds that the calling thread was on a CPU. proc_pid_schedstat(5)
fn thread_cpu() -> Result<f64> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = text
        .split_whitespace()
        .next()
        .context("an empty schedstat")?;
    Ok(nanoseconds.parse::<f64>()? / 1e6)
}
