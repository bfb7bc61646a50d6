//! The data folder and the one database in it, shared by the embedded queue and the embedded state.
//!
//! Owns the lock by which one process at a time has the folder, the open database, and the thread that makes writes durable for many
//! callers at once. Knows nothing of what is stored: each user has keyspaces of its own.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use tokio::sync::{mpsc, oneshot};

/// The journals of the database together. A part of it is read again at each start, so it bounds the time of a start.
const JOURNALS: u64 = 256 * 1024 * 1024;
/// Callers that wait for one sync at once; further ones wait for a place.
const SYNCS: usize = 16 * 1024;

/// Why the data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error(
        "data folder {folder} is owned by a running trackalert ({owner}); stop it, or talk to it with the same -C",
        folder = folder.display()
    )]
    Owned {
        /// The folder.
        folder: PathBuf,
        /// `pid 4711`, or what is known instead.
        owner: String,
    },
    /// It cannot be made or written.
    #[error("data folder {folder} (data_dir): {reason}; it must be a folder that this user may write to", folder = folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        reason: std::io::Error,
    },
    /// What is in it cannot be opened.
    #[error("the store in data folder {folder} cannot be opened: {reason}", folder = folder.display())]
    Broken {
        /// The folder.
        folder: PathBuf,
        /// What the database said.
        reason: String,
    },
}

/// The database, and the lock that is given back after the last user of the database is gone.
struct Held {
    database: Database,
    _lock: File,
}

struct Inner {
    held: Arc<Held>,
    folder: PathBuf,
    id: String,
    syncs: mpsc::Sender<oneshot::Sender<Result<(), String>>>,
}

/// The owner of the data folder. Cheap to clone; the folder is free again when the last clone, and the last queue and state made
/// from one, are gone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.0.folder.display())
    }
}

impl Store {
    /// Takes the folder (made with mode 0700 where it is missing) and opens the database in it, with `cache` bytes of memory for
    /// blocks read from disk. Blocks while the journal of the last run is read.
    pub fn open(folder: &Path, cache: u64) -> Result<Self, StoreError> {
        let failed = |reason| StoreError::Folder { folder: folder.to_owned(), reason };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let lock = take(folder)?;
        let id = identify(folder).map_err(failed)?;
        let database =
            Database::builder(folder.join("store")).cache_size(cache).max_journaling_size(JOURNALS).open().map_err(
                |error| match error {
                    fjall::Error::Locked => {
                        StoreError::Owned { folder: folder.to_owned(), owner: "it is just closing".to_owned() }
                    }
                    fjall::Error::Io(reason) => failed(reason),
                    other => StoreError::Broken { folder: folder.to_owned(), reason: other.to_string() },
                },
            )?;
        let held = Arc::new(Held { database, _lock: lock });
        let (syncs, waiting) = mpsc::channel(SYNCS);
        let thread = std::thread::Builder::new().name("store-sync".to_owned());
        let of_thread = Arc::clone(&held);
        thread.spawn(move || sync_for_many(&of_thread.database, waiting)).map_err(failed)?;
        Ok(Self(Arc::new(Inner { held, folder: folder.to_owned(), id, syncs })))
    }

    /// The data folder.
    pub fn folder(&self) -> &Path {
        &self.0.folder
    }

    /// Who this is among the processes of an installation, over restarts: 16 hexadecimal digits that the folder was given once.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The database.
    pub fn database(&self) -> &Database {
        &self.0.held.database
    }

    /// Opens a keyspace, or makes it. Blocks for some fsyncs where it makes one.
    pub fn keyspace(&self, name: &str) -> Result<Keyspace, StoreError> {
        self.keyspace_with(name, KeyspaceCreateOptions::default)
    }

    /// As [`Store::keyspace`], with options for the case that it is made.
    pub fn keyspace_with(
        &self,
        name: &str,
        options: impl FnOnce() -> KeyspaceCreateOptions,
    ) -> Result<Keyspace, StoreError> {
        let broken = |reason| StoreError::Broken { folder: self.0.folder.clone(), reason };
        // The database takes names of 1 to 255 bytes and ends the thread at any other.
        if name.is_empty() || name.len() > 255 {
            return Err(broken(format!("`{name}` is no name for a keyspace: 1 to 255 bytes")));
        }
        self.database().keyspace(name, options).map_err(|error| broken(error.to_string()))
    }

    /// Bytes that this user may still write on the disk of the data folder. `None`: the system does not say.
    pub fn free_bytes(&self) -> Option<u64> {
        let disk = nix::sys::statvfs::statvfs(&self.0.folder).ok()?;
        // The types differ between systems; none is wider than 64 bits.
        #[allow(clippy::useless_conversion, reason = "not useless on every system")]
        Some(u64::from(disk.blocks_available()).saturating_mul(u64::from(disk.fragment_size())))
    }

    /// Resolves when all that was written before the call survives a power cut. One fdatasync serves all that wait.
    pub async fn sync(&self) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        self.0.syncs.send(answer).await.map_err(|_| "the store is closed".to_owned())?;
        answered.await.map_err(|_| "the store is closed".to_owned())?
    }
}

/// What an error of the database means to a person.
pub fn explain(error: &fjall::Error) -> String {
    match error {
        // It takes no more writes, because it cannot know what of the failed one is on the disk.
        fjall::Error::Poisoned => {
            "an earlier write to the disk failed; see to the disk of data_dir, then restart".to_owned()
        }
        fjall::Error::Io(error) => format!("the disk of data_dir: {error}"),
        other => other.to_string(),
    }
}

/// The thread behind [`Store::sync`]: an fdatasync blocks for milliseconds, which no task on the runtime may.
fn sync_for_many(database: &Database, mut waiting: mpsc::Receiver<oneshot::Sender<Result<(), String>>>) {
    let mut answers = Vec::new();
    while waiting.blocking_recv_many(&mut answers, SYNCS) > 0 {
        let done = database.persist(PersistMode::SyncData).map_err(|error| explain(&error));
        for answer in answers.drain(..) {
            // A caller that no longer waits needs no answer.
            let _ = answer.send(done.clone());
        }
    }
}

fn take(folder: &Path) -> Result<File, StoreError> {
    let failed = |reason| StoreError::Folder { folder: folder.to_owned(), reason };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(folder.join("lock"))
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = file.take(32).read_to_string(&mut pid);
            let owner = if pid.trim().is_empty() { "pid unknown".to_owned() } else { format!("pid {}", pid.trim()) };
            return Err(StoreError::Owned { folder: folder.to_owned(), owner });
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    file.set_len(0)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .and_then(|_| writeln!(file, "{}", std::process::id()))
        .map_err(failed)?;
    Ok(file)
}

/// The folder's id, given to it where it has none. One that is lost in a power cut is given anew.
fn identify(folder: &Path) -> std::io::Result<String> {
    let path = folder.join("id");
    match std::fs::read_to_string(&path) {
        Ok(id) if id.len() == 16 && id.bytes().all(|digit| digit.is_ascii_hexdigit()) => return Ok(id),
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => return Err(error),
        _ => {}
    }
    let id = format!("{:016x}", rand::random::<u64>());
    std::fs::write(&path, &id)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const CACHE: u64 = 8 << 20;

    #[test]
    fn second_owner_is_refused_with_the_pid_of_the_first() {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("data");
        let store = Store::open(&folder, CACHE).unwrap();
        assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        let refused = Store::open(&folder, CACHE).unwrap_err().to_string();
        assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
        assert!(refused.contains("same -C"), "{refused}");
        drop(store);
    }

    #[test]
    fn id_stays_and_a_broken_one_is_given_anew() {
        let temp = tempfile::tempdir().unwrap();
        let id = identify(temp.path()).unwrap();
        assert_eq!(identify(temp.path()).unwrap(), id);
        for broken in [&b""[..], b"0123", b"0123456789abcde\xff", b"../../../../../.."] {
            std::fs::write(temp.path().join("id"), broken).unwrap();
            let other = identify(temp.path()).unwrap();
            assert_eq!(other.len(), 16);
            assert_ne!(other, id);
        }
    }

    #[tokio::test]
    async fn sync_resolves_for_all_that_wait_and_the_folder_is_free_afterwards() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(temp.path(), CACHE).unwrap();
        let keyspace = store.keyspace("x").unwrap();
        keyspace.insert("a", "1").unwrap();
        let syncs: Vec<_> = (0..100).map(|_| store.sync()).collect();
        for done in futures_util::future::join_all(syncs).await {
            done.unwrap();
        }
        drop((store, keyspace));
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let store = loop {
            match Store::open(temp.path(), CACHE) {
                Ok(store) => break store,
                Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
            }
        };
        assert_eq!(store.keyspace("x").unwrap().get("a").unwrap().as_deref(), Some(&b"1"[..]));
    }

    #[test]
    fn folder_that_is_a_file_is_named() {
        let temp = tempfile::NamedTempFile::new().unwrap();
        let refused = Store::open(temp.path(), CACHE).unwrap_err().to_string();
        assert!(refused.contains("data_dir"), "{refused}");
    }
}
