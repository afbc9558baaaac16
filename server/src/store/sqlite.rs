//! [`Store`] on one SQLite file: a handle to the writer thread.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, SystemTime};

use amphipod_api::ballast::Ballast;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tracing::{error, warn};

use super::log::{self, Log};
use super::salvage::{self, Found};
use super::writer::{Command, Reply, Shared, Writer};
use super::{Position, Record, Sink, Store, StoreError, Write};

/// How a [`SqliteStore`] trades history, flash wear and loss.
#[derive(Clone, Debug)]
pub struct Options {
    /// Obsolete rows kept so that watches can resume after a restart: at least this many, if they fit in `keep_bytes`.
    pub keep_rows: usize,
    /// The most bytes of obsolete values kept.
    pub keep_bytes: usize,
    /// How long a lazily stored new or deleted key may be lost to a crash.
    pub lazy_delay: Duration,
    /// How long a lazily stored change to a key that is already on disk may be.
    pub lazy_rewrite_delay: Duration,
    /// Resources with lazily stored changes.
    pub lazy_resources: Vec<String>,
    /// How long after the disk was found full a write finds out whether it still is.
    pub full_retry: Duration,
    /// Where a backup is kept, to begin from if the file is found damaged.
    pub backup: Option<PathBuf>,
    /// A backup is made with the first change after so much time since the last one.
    pub backup_every: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            keep_rows: 1000,
            keep_bytes: 8 << 20,
            lazy_delay: Duration::from_secs(5),
            // One flush costs 44 KiB of flash on ext4, whatever it holds: four an hour fit the budget of an idle box.
            lazy_rewrite_delay: Duration::from_secs(900),
            lazy_resources: Vec::new(),
            full_retry: Duration::from_secs(5),
            backup: None,
            backup_every: Duration::from_secs(24 * 3600),
        }
    }
}

/// The revision log in an SQLite file. Dropping it closes it as [`Store::close`] does, without waiting.
pub struct SqliteStore {
    commands: Mutex<Option<mpsc::Sender<Command>>>,
    shared: Arc<Shared>,
}

/// A store that was opened, and what had to be done for it.
pub struct Opened {
    pub store: SqliteStore,
    /// The damaged file was put here, and the store begins anew or from its backup.
    pub quarantined: Option<PathBuf>,
}

impl SqliteStore {
    /// Opens the file, or makes it, and starts the writer thread. Takes time in proportion to the file: `quick_check` reads it.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] for a damaged file; others for one that cannot be used.
    pub fn open(path: &Path, options: Options) -> Result<SqliteStore, StoreError> {
        // The ballast: enough for the copying of the write-ahead log and many deletions.
        let ballast = Ballast::beside(path, 3 << 20, log::SET_ASIDE);
        ballast.lend();
        let (writer, shared) = Writer::new(Log::open(path)?, ballast, options)?;
        let (sender, receiver) = mpsc::channel();
        std::thread::Builder::new()
            .name("store".to_owned())
            .stack_size(512 * 1024)
            .spawn(move || writer.run(&receiver))
            .map_err(|error| StoreError::Failed(format!("starting the writer thread: {error}")))?;
        Ok(SqliteStore {
            commands: Mutex::new(Some(sender)),
            shared,
        })
    }

    /// Opens the file; if it is damaged, moves it aside for inspection and begins anew from what can be read of it and, for the
    /// rest, from the backup of the options. Says so loudly.
    ///
    /// # Errors
    /// The file cannot be used, or moved.
    pub fn open_or_quarantine(path: &Path, options: Options) -> Result<Opened, StoreError> {
        let damage = match SqliteStore::open(path, options.clone()) {
            Ok(store) => {
                return Ok(Opened {
                    store,
                    quarantined: None,
                });
            }
            Err(StoreError::Corrupt(damage)) => damage,
            Err(error) => return Err(error),
        };
        let aside = quarantine(path)?;
        error!(%damage, file = %aside.display(), "the state database is damaged and was moved aside");
        if let Err(error) = restore(&aside, path, &options) {
            error!(%error, "nothing could be restored: beginning with an empty state");
            // Half of it must not stand in the way of an empty beginning. Clients may hold versions of the lost state: none may be
            // given out again.
            remove(path);
            if let Err(error) = Log::open(path).and_then(|mut log| log.jump(RESTORE_JUMP)) {
                warn!(%error, "preparing the empty state");
            }
        }
        Ok(Opened {
            store: SqliteStore::open(path, options)?,
            quarantined: Some(aside),
        })
    }

    /// Writes a consistent copy to `path`, replacing an older one. Commits wait meanwhile.
    ///
    /// # Errors
    /// What the disk said.
    pub async fn backup(&self, path: &Path) -> Result<(), StoreError> {
        self.ask(|reply| Command::Backup(path.to_owned(), reply))
            .await
    }

    fn send(&self, command: Command) -> Result<(), StoreError> {
        let commands = self
            .commands
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        commands
            .as_ref()
            .and_then(|commands| commands.send(command).ok())
            .ok_or(StoreError::Closed)
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply))?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

impl Store for SqliteStore {
    fn commit(&self, write: Write) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(self.ask(|reply| Command::Commit(write, reply)))
    }

    fn position(&self) -> Position {
        Position {
            revision: self.shared.revision.load(Ordering::Acquire),
            horizon: self.shared.horizon.load(Ordering::Acquire),
            lazy_horizon: self.shared.lazy_horizon,
        }
    }

    fn load<'a>(
        &'a self,
        prefix: &'a str,
        at: u64,
        visit: Box<dyn FnMut(Record) + Send>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.ask(move |reply| Command::Load {
            prefix: prefix.to_owned(),
            at,
            visit,
            reply,
        }))
    }

    fn watch(&self, after: u64, sink: Sink) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.ask(move |reply| Command::Watch { after, sink, reply }))
    }

    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.ask(move |reply| Command::Compact(revision, reply)))
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async {
            let result = self.ask(|reply| Command::Close(Some(reply))).await;
            self.commands
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .take();
            result
        })
    }
}

/// Moves the file and its log aside: `state.db` becomes `state.db.damaged-SECONDS`.
fn quarantine(path: &Path) -> Result<PathBuf, StoreError> {
    let seconds = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let with = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let mut aside = with(&format!(".damaged-{seconds}"));
    let mut again = 0;
    while aside.exists() {
        again += 1;
        aside = with(&format!(".damaged-{seconds}-{again}"));
    }
    let moved = |error: std::io::Error| {
        StoreError::Failed(format!("moving the damaged database aside: {error}"))
    };
    std::fs::rename(path, &aside).map_err(moved)?;
    let wal = with("-wal");
    if wal.exists() {
        let mut name = aside.as_os_str().to_owned();
        name.push("-wal");
        std::fs::rename(&wal, name).map_err(moved)?;
    }
    Ok(aside)
}

/// How far revisions jump after a restore: more than were given out since any backup, as none may be given out twice.
const RESTORE_JUMP: u64 = 1 << 32;

/// Makes the file anew from what can be read of the damaged one and from the backup, and says what that was.
fn restore(aside: &Path, path: &Path, options: &Options) -> Result<(), StoreError> {
    let backup = options.backup.as_deref().filter(|backup| backup.exists());
    let (mut log, found) = salvage::rebuild(aside, backup, path)?;
    log.jump(RESTORE_JUMP)?;
    let kept = backup.map_or_else(|| "none".to_owned(), |path| path.display().to_string());
    let lost =
        "changes in the part that cannot be read are lost as far as they are newer than the backup";
    let Found { read, backup, .. } = found;
    match (read, backup) {
        (0, 0) => error!(
            backup = kept,
            "nothing of the state can be read, nor of a backup: beginning with an empty one"
        ),
        (0, _) => warn!(
            backup = kept,
            rows = backup,
            "the state was restored from its last backup; later changes are lost"
        ),
        _ => warn!(
            backup = kept, rows = read, rows_of_the_backup = backup, unreadable = ?found.unreadable,
            "the state was restored from what can be read of the damaged file and from its last backup; {lost}"
        ),
    }
    Ok(())
}

/// Removes a database and its log.
fn remove(path: &Path) {
    for suffix in ["", "-wal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let _ = std::fs::remove_file(name);
    }
}
