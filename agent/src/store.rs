//! The agent's durable copy of everything it works from: one SQLite database, written by one thread.
//!
//! Writes that arrive together become one transaction. `Durable` writes (what we were told to run) are on disk when they
//! return; `Lazy` ones (what we observed) survive a crash of the agent, and a power cut up to the last checkpoint.
//!
//! A database that is damaged is put aside under another name and a new one is begun: pods are learnt again from the
//! server and from the keeper, so nothing that runs is touched. One that cannot be used for another reason (a disk that takes
//! no writes, another agent) is left alone.
//!
//! On a full disk, what is known of pods is still kept, in the space set aside for the write-ahead log: without that no
//! container could be restarted.

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use amphipod_api::ballast::Ballast;
use anyhow::{Context, Result};
use rusqlite::{Connection, ErrorCode, OptionalExtension, ffi, params};
use tokio::sync::oneshot;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS pods (uid TEXT PRIMARY KEY, pod TEXT NOT NULL, record TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS objects (kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (kind, namespace, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tokens (pod TEXT NOT NULL, audience TEXT NOT NULL, seconds INTEGER NOT NULL, token TEXT NOT NULL,
    issued INTEGER NOT NULL, expires INTEGER NOT NULL, PRIMARY KEY (pod, audience, seconds)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
";

/// Step N makes layout N + 1 of layout N, which `user_version` tells; an empty file is layout 0. A new layout is a new step, never another
/// text of an old one.
const STEPS: &[&str] = &[SCHEMA];

/// When a write counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// After it is on disk.
    Durable,
    /// After it is in the database.
    Lazy,
}

type Job = Box<dyn FnOnce(&Connection) + Send>;

struct Request {
    durability: Durability,
    job: Job,
    done: oneshot::Sender<Result<(), String>>,
}

/// A pod as it was stored.
#[derive(Debug, Clone)]
pub struct StoredPod {
    pub uid: String,
    /// The Pod object, JSON.
    pub pod: String,
    /// What the agent knew of it ([`crate::pod::record`]), JSON.
    pub record: Option<String>,
}

/// A service account token of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredToken {
    pub pod: String,
    pub audience: String,
    pub seconds: i64,
    pub token: String,
    /// Seconds since 1970.
    pub issued: i64,
    pub expires: i64,
}

/// Handle to the writer thread; cheap to clone. The database closes when the last handle is dropped.
#[derive(Clone)]
pub struct Store {
    requests: mpsc::Sender<Request>,
    ballast: Arc<Ballast>,
}

impl Store {
    /// Opens (or makes) `agent.db` in `dir`.
    pub fn open(dir: &Path) -> Result<Store> {
        use std::os::unix::fs::PermissionsExt;
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
            .with_context(|| format!("closing {} to others", dir.display()))?;
        let path = dir.join("agent.db");
        let ballast = Arc::new(Ballast::beside(&path, BALLAST, SET_ASIDE));
        ballast.lend();
        let connection = match open_checked(&path) {
            Ok(c) => c,
            Err(error) if !is_damage(&error) => return Err(error),
            Err(error) => {
                let aside = quarantine(&path)?;
                tracing::error!(
                    error = format!("{error:#}"), kept = %aside.display(),
                    "the agent's database was damaged; it was put aside and a new one begun. What runs goes on; the rest comes from the server"
                );
                open_checked(&path)?
            }
        };
        migrate(&connection, &path)?;
        let (requests, queue) = mpsc::channel::<Request>();
        std::thread::Builder::new()
            .name("agent-store".into())
            .stack_size(256 * 1024)
            .spawn({
                let ballast = ballast.clone();
                move || writer(connection, &ballast, &queue)
            })
            .context("starting the database thread")?;
        Ok(Store { requests, ballast })
    }

    /// Before a container is made: a few directories must fit on the disk, also when it is full.
    pub fn make_room(&self) {
        self.ballast.drop_if_tight();
    }

    /// Asks the thread, at once: what is asked first is done first, however the answers are awaited.
    fn run<T, J>(
        &self,
        durability: Durability,
        what: &'static str,
        job: J,
    ) -> impl Future<Output = Result<T>> + Send + use<T, J>
    where
        T: Send + 'static,
        J: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (done, committed) = oneshot::channel();
        let (put, got) = oneshot::channel();
        let job: Job = Box::new(move |c| {
            let _ = put.send(job(c));
        });
        // Where this fails, so does the waiting for an answer.
        let _ = self.requests.send(Request {
            durability,
            job,
            done,
        });
        async move {
            let value = got
                .await
                .ok()
                .context("the agent's database is closed")?
                .context(what)?;
            committed
                .await
                .ok()
                .context("the agent's database is closed")?
                .map_err(anyhow::Error::msg)
                .context(what)?;
            Ok(value)
        }
    }

    pub async fn pods(&self) -> Result<Vec<StoredPod>> {
        self.run(Durability::Lazy, "reading stored pods", |c| {
            let mut q = c.prepare("SELECT uid, pod, record FROM pods")?;
            q.query_map([], |r| {
                Ok(StoredPod {
                    uid: r.get(0)?,
                    pod: r.get(1)?,
                    record: r.get(2)?,
                })
            })?
            .collect()
        })
        .await
    }

    pub async fn put_pod(&self, uid: String, pod: String) -> Result<()> {
        self.run(Durability::Durable, "storing a pod", move |c| {
            c.prepare_cached("INSERT INTO pods (uid, pod) VALUES (?1, ?2) ON CONFLICT (uid) DO UPDATE SET pod = excluded.pod")?
                .execute(params![uid, pod])
                .map(drop)
        })
        .await
    }

    /// Stores what is known of a pod, in the order of the calls; does nothing if the pod was removed.
    pub fn put_record(
        &self,
        uid: String,
        record: String,
    ) -> impl Future<Output = Result<()>> + Send + use<> {
        self.run(Durability::Lazy, "storing a pod's state", move |c| {
            c.prepare_cached("UPDATE pods SET record = ?2 WHERE uid = ?1")?
                .execute(params![uid, record])
                .map(drop)
        })
    }

    pub async fn remove_pod(&self, uid: String) -> Result<()> {
        self.run(Durability::Lazy, "removing a pod", move |c| {
            c.prepare_cached("DELETE FROM pods WHERE uid = ?1")?
                .execute([&uid])?;
            c.prepare_cached("DELETE FROM tokens WHERE pod = ?1")?
                .execute([&uid])
                .map(drop)
        })
        .await
    }

    /// All objects of a kind: bodies as JSON.
    pub async fn objects(&self, kind: &'static str) -> Result<Vec<String>> {
        self.run(Durability::Lazy, "reading stored objects", move |c| {
            c.prepare("SELECT body FROM objects WHERE kind = ?1")?
                .query_map([kind], |r| r.get(0))?
                .collect()
        })
        .await
    }

    pub async fn object(
        &self,
        kind: &'static str,
        namespace: String,
        name: String,
    ) -> Result<Option<String>> {
        self.run(Durability::Lazy, "reading a stored object", move |c| {
            c.prepare_cached(
                "SELECT body FROM objects WHERE kind = ?1 AND namespace = ?2 AND name = ?3",
            )?
            .query_row(params![kind, namespace, name], |r| r.get(0))
            .optional()
        })
        .await
    }

    pub async fn put_object(
        &self,
        kind: &'static str,
        namespace: String,
        name: String,
        body: String,
    ) -> Result<()> {
        self.run(Durability::Lazy, "storing an object", move |c| {
            c.prepare_cached("INSERT OR REPLACE INTO objects VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![kind, namespace, name, body])
                .map(drop)
        })
        .await
    }

    pub async fn remove_object(
        &self,
        kind: &'static str,
        namespace: String,
        name: String,
    ) -> Result<()> {
        self.run(Durability::Lazy, "removing an object", move |c| {
            c.prepare_cached(
                "DELETE FROM objects WHERE kind = ?1 AND namespace = ?2 AND name = ?3",
            )?
            .execute(params![kind, namespace, name])
            .map(drop)
        })
        .await
    }

    /// Makes `all` (namespace, name, body) the only objects of a kind.
    pub async fn replace_objects(
        &self,
        kind: &'static str,
        all: Vec<(String, String, String)>,
    ) -> Result<()> {
        self.run(Durability::Lazy, "storing objects", move |c| {
            c.execute("DELETE FROM objects WHERE kind = ?1", [kind])?;
            let mut q =
                c.prepare_cached("INSERT OR REPLACE INTO objects VALUES (?1, ?2, ?3, ?4)")?;
            for (namespace, name, body) in all {
                q.execute(params![kind, namespace, name, body])?;
            }
            Ok(())
        })
        .await
    }

    pub async fn tokens(&self, pod: String) -> Result<Vec<StoredToken>> {
        self.run(Durability::Lazy, "reading tokens", move |c| {
            c.prepare_cached(
                "SELECT audience, seconds, token, issued, expires FROM tokens WHERE pod = ?1",
            )?
            .query_map([&pod], |r| {
                Ok(StoredToken {
                    pod: pod.clone(),
                    audience: r.get(0)?,
                    seconds: r.get(1)?,
                    token: r.get(2)?,
                    issued: r.get(3)?,
                    expires: r.get(4)?,
                })
            })?
            .collect()
        })
        .await
    }

    pub async fn put_token(&self, t: StoredToken) -> Result<()> {
        self.run(Durability::Lazy, "storing a token", move |c| {
            c.prepare_cached("INSERT OR REPLACE INTO tokens VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
                .execute(params![
                    t.pod, t.audience, t.seconds, t.token, t.issued, t.expires
                ])
                .map(drop)
        })
        .await
    }

    /// Events that the server has not heard yet: rows and bodies, in order.
    pub async fn events(&self) -> Result<Vec<(i64, String)>> {
        self.run(Durability::Lazy, "reading spooled events", |c| {
            c.prepare("SELECT id, body FROM events ORDER BY id")?
                .query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?
                .collect()
        })
        .await
    }

    /// Adds and removes rows of such events.
    pub async fn put_events(&self, new: Vec<(i64, String)>, gone: Vec<i64>) -> Result<()> {
        self.run(Durability::Lazy, "spooling events", move |c| {
            let mut delete = c.prepare_cached("DELETE FROM events WHERE id = ?1")?;
            for id in gone {
                delete.execute([id])?;
            }
            let mut insert =
                c.prepare_cached("INSERT OR REPLACE INTO events (id, body) VALUES (?1, ?2)")?;
            for (id, body) in new {
                insert.execute((id, body))?;
            }
            Ok(())
        })
        .await
    }

    pub async fn fact(&self, key: &'static str) -> Result<Option<String>> {
        self.run(Durability::Lazy, "reading a fact", move |c| {
            c.query_row("SELECT value FROM facts WHERE key = ?1", [key], |r| {
                r.get(0)
            })
            .optional()
        })
        .await
    }

    pub async fn put_fact(&self, key: &'static str, value: String) -> Result<()> {
        self.run(Durability::Durable, "storing a fact", move |c| {
            c.execute(
                "INSERT OR REPLACE INTO facts VALUES (?1, ?2)",
                params![key, value],
            )
            .map(drop)
        })
        .await
    }
}

fn open_checked(path: &Path) -> Result<Connection> {
    use std::os::unix::fs::OpenOptionsExt;
    // The mode is set before SQLite opens it: the journal inherits it, and secrets are inside.
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))?;
    let what = || format!("opening {}", path.display());
    let c = Connection::open(path).with_context(what)?;
    let prepare = || -> rusqlite::Result<String> {
        c.busy_timeout(std::time::Duration::from_secs(5))?;
        // No shared-memory file beside it, which would need space on a full disk.
        c.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        c.pragma_update(None, "journal_mode", "WAL")?;
        c.pragma_update(None, "synchronous", "NORMAL")?;
        c.pragma_update(None, "cache_size", -256)?;
        c.pragma_update(None, "wal_autocheckpoint", 256)?;
        c.pragma_update(None, "journal_size_limit", SET_ASIDE)?;
        c.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))
    };
    let verdict = prepare().with_context(what)?;
    if verdict != "ok" {
        let corrupt = ffi::Error::new(ffi::SQLITE_CORRUPT);
        let found = rusqlite::Error::SqliteFailure(corrupt, Some(verdict));
        return Err(found).with_context(what);
    }
    // A database that is sound and of another version is not damaged: it is not put aside.
    Ok(c)
}

/// Whether the file itself is bad, so that another one must be begun.
fn is_damage(error: &anyhow::Error) -> bool {
    let code = error
        .downcast_ref::<rusqlite::Error>()
        .and_then(rusqlite::Error::sqlite_error_code);
    matches!(
        code,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

/// Brings the layout up to date.
///
/// # Errors
/// It is of a newer program; nothing was changed then.
fn migrate(c: &Connection, path: &Path) -> Result<()> {
    let what = || format!("preparing {}", path.display());
    let version: i64 = c
        .query_row("PRAGMA user_version", [], |r| r.get(0))
        .with_context(what)?;
    let known = STEPS.len() as i64;
    anyhow::ensure!(
        version <= known,
        "{} has layout {version}, made by a newer amphipod; this one knows layouts up to {known}. Nothing was changed: run the newer one \
         again, or move the file away, and the agent learns its pods anew from the server and from what runs",
        path.display()
    );
    let due = STEPS.iter().skip(usize::try_from(version).unwrap_or(0));
    for (step, layout) in due.zip(version + 1..) {
        c.execute_batch(&format!(
            "BEGIN; {step} PRAGMA user_version={layout}; COMMIT;"
        ))
        .with_context(what)?;
    }
    Ok(())
}

fn quarantine(path: &Path) -> Result<PathBuf> {
    let stamp = jiff::Timestamp::now().as_second();
    let aside = path.with_extension(format!("db.damaged-{stamp}"));
    std::fs::rename(path, &aside).with_context(|| format!("putting {} aside", path.display()))?;
    for suffix in ["-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let _ = std::fs::remove_file(PathBuf::from(name));
    }
    Ok(aside)
}

/// The write-ahead log is copied into the database at 1 MiB (`wal_autocheckpoint`).
const BALLAST: u32 = 1 << 20;
const SET_ASIDE: u32 = 2 << 20;
/// How long to wait before the ballast is tried to be taken up again.
const LOAD_AGAIN: Duration = Duration::from_secs(10);

fn writer(connection: Connection, ballast: &Ballast, queue: &mpsc::Receiver<Request>) {
    let mut tried: Option<Instant> = None;
    while let Ok(first) = queue.recv() {
        let mut batch = vec![first];
        while batch.len() < 256
            && let Ok(next) = queue.try_recv()
        {
            batch.push(next);
        }
        let durable = batch.iter().any(|r| r.durability == Durability::Durable);
        let begin = connection.execute_batch(if durable {
            "PRAGMA synchronous=FULL; BEGIN IMMEDIATE"
        } else {
            "BEGIN"
        });
        let mut waiting = Vec::with_capacity(batch.len());
        for request in batch {
            (request.job)(&connection);
            waiting.push(request.done);
        }
        let end = begin.and_then(|()| connection.execute_batch("COMMIT"));
        if let Err(error) = &end {
            let _ = connection.execute_batch("ROLLBACK");
            if error.sqlite_error_code() == Some(ErrorCode::DiskFull) {
                ballast.drop();
            }
        } else if tried.is_none_or(|at| at.elapsed() >= LOAD_AGAIN) && !ballast.is_loaded() {
            // On a disk that is full it cannot be; then with a later change.
            let _ = ballast.load();
            tried = Some(Instant::now());
        }
        let end = end.map_err(|e| e.to_string());
        if durable {
            let _ = connection.execute_batch("PRAGMA synchronous=NORMAL");
        }
        for done in waiting {
            let _ = done.send(end.clone());
        }
    }
    drop(connection);
    // The write-ahead log is gone; the next one begins with the ballast, if there is room for that now.
    let _ = ballast.load_file();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn dir(name: &str) -> PathBuf {
        let d = std::env::temp_dir().join(format!("amphipod-store-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&d);
        d
    }

    #[tokio::test]
    async fn what_was_stored_is_there_after_a_restart() {
        let d = dir("restart");
        {
            let s = Store::open(&d).unwrap();
            s.put_pod("u".into(), "{}".into()).await.unwrap();
            s.put_record("u".into(), "r".into()).await.unwrap();
            s.put_record("gone".into(), "r".into()).await.unwrap();
            s.put_object("ConfigMap", "n".into(), "c".into(), "b".into())
                .await
                .unwrap();
            s.put_fact("podCIDR", "10.42.0.0/24".into()).await.unwrap();
            let rows = vec![(7, "1".into()), (8, "2".into()), (9, "3".into())];
            s.put_events(rows, vec![]).await.unwrap();
            s.put_events(vec![], vec![8]).await.unwrap();
        }
        let s = Store::open(&d).unwrap();
        let pods = s.pods().await.unwrap();
        assert_eq!((pods.len(), pods[0].record.as_deref()), (1, Some("r")));
        assert_eq!(s.objects("ConfigMap").await.unwrap(), ["b"]);
        assert_eq!(
            s.fact("podCIDR").await.unwrap().as_deref(),
            Some("10.42.0.0/24")
        );
        let left = [(7, "1".to_owned()), (9, "3".to_owned())];
        assert_eq!(s.events().await.unwrap(), left);
        std::fs::remove_dir_all(&d).unwrap();
    }

    #[tokio::test]
    async fn the_newest_record_of_a_pod_is_the_one_that_stays() {
        let d = dir("records");
        let s = Store::open(&d).unwrap();
        s.put_pod("u".into(), "{}".into()).await.unwrap();
        let (first, last) = (
            s.put_record("u".into(), "first".into()),
            s.put_record("u".into(), "last".into()),
        );
        last.await.unwrap();
        first.await.unwrap();
        assert_eq!(s.pods().await.unwrap()[0].record.as_deref(), Some("last"));
        std::fs::remove_dir_all(&d).unwrap();
    }

    #[tokio::test]
    async fn a_damaged_database_is_put_aside_and_a_new_one_begun() {
        let d = dir("damaged");
        std::fs::create_dir_all(&d).unwrap();
        std::fs::write(d.join("agent.db"), vec![7u8; 8192]).unwrap();
        let s = Store::open(&d).unwrap();
        assert!(s.pods().await.unwrap().is_empty());
        let kept = std::fs::read_dir(&d)
            .unwrap()
            .any(|e| e.unwrap().file_name().to_string_lossy().contains("damaged"));
        assert!(kept);
        std::fs::remove_dir_all(&d).unwrap();
    }
}
