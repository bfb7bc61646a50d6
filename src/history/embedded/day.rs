//! One day's index, and the folder of all days.
//!
//! Owns the folders `YYYY.MM.DD`: how one is created, opened after a crash, found by time, removed. Never writes a document.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::civil::Date;
use tantivy::directory::{Directory, MmapDirectory};
use tantivy::schema::Value as _;
use tantivy::{
    DocSet, Index, IndexReader, IndexSettings, ReloadPolicy, Searcher, TERMINATED, TantivyDocument, TantivyError,
    schema::IndexRecordOption,
};

use super::schema::{Fields, half, kept_id};
use super::seen::Seen;
use super::{Problem, unavailable};
use crate::history::HistoryError;
use crate::history::query::Span;
use crate::report::ReportId;

/// Microseconds of a day.
const DAY: i64 = 86_400_000_000;
/// The file that makes a folder an index.
const META: &str = "meta.json";
/// A folder of this beginning is being made or being removed; after a crash it is rubbish.
const RUBBISH: &str = ".rubbish-";

/// The day of a time in microseconds, counted from 1970-01-01.
pub(super) fn day_of(micros: i64) -> i64 {
    micros.div_euclid(DAY)
}

/// `YYYY.MM.DD`.
pub(super) fn name_of(day: i64) -> String {
    let date = i32::try_from(day)
        .ok()
        .and_then(|day| Date::constant(1970, 1, 1).checked_add(jiff::Span::new().try_days(day).ok()?).ok());
    date.map_or_else(|| day.to_string(), |date| date.strftime("%Y.%m.%d").to_string())
}

fn day_named(name: &str) -> Option<i64> {
    let date = Date::strptime("%Y.%m.%d", name).ok()?;
    let day = date.since(Date::constant(1970, 1, 1)).ok()?.get_days();
    (name_of(i64::from(day)) == name).then_some(i64::from(day))
}

/// An open day.
pub(super) struct Day {
    pub(super) number: i64,
    pub(super) index: Index,
    pub(super) fields: Arc<Fields>,
    reader: IndexReader,
}

impl std::fmt::Debug for Day {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&name_of(self.number))
    }
}

impl Day {
    fn open(path: &Path, number: i64, fields: Arc<Fields>) -> tantivy::Result<Self> {
        let index = grown(MmapDirectory::open(path)?, &fields)?;
        let reader =
            index.reader_builder().reload_policy(ReloadPolicy::Manual).doc_store_cache_num_blocks(16).try_into()?;
        Ok(Self { number, index, reader, fields })
    }

    /// What is committed and reloaded.
    pub(super) fn searcher(&self) -> Searcher {
        self.reader.searcher()
    }

    /// Shows searches what was committed.
    pub(super) fn reload(&self) -> tantivy::Result<()> {
        self.reader.reload()
    }

    /// Whether this report is committed here.
    pub(super) fn has(&self, id: &ReportId) -> tantivy::Result<bool> {
        let searcher = self.searcher();
        let term = self.fields.id_term(id);
        for (segment, reader) in searcher.segment_readers().iter().enumerate() {
            let index = reader.inverted_index(self.fields.id())?;
            let Some(mut postings) = index.read_postings(&term, IndexRecordOption::Basic)? else { continue };
            while postings.doc() != TERMINATED {
                let address = tantivy::DocAddress::new(segment as u32, postings.doc());
                let document: TantivyDocument = searcher.doc(address)?;
                let kept = document.get_first(self.fields.kept()).and_then(|value| value.as_bytes().and_then(kept_id));
                if kept == Some(id.as_bytes().as_slice()) {
                    return Ok(true);
                }
                postings.advance();
            }
        }
        Ok(false)
    }

    /// The filter over what is committed here.
    pub(super) fn seen(&self) -> tantivy::Result<Seen> {
        let searcher = self.searcher();
        let mut seen = Seen::with_room(searcher.num_docs() as usize * 2);
        for reader in searcher.segment_readers() {
            let index = reader.inverted_index(self.fields.id())?;
            let mut terms = index.terms().stream()?;
            while terms.advance() {
                if let Ok(id) = <[u8; 8]>::try_from(terms.key()) {
                    seen.insert(u64::from_be_bytes(id));
                }
            }
        }
        Ok(seen)
    }

    /// Takes a report's id into the filter.
    pub(super) fn note(seen: &mut Seen, id: &ReportId) {
        seen.insert(half(id));
    }
}

/// The index in a folder. One that an earlier version of this program wrote gets the fields that came since; its documents have no
/// value in them, as those of an address that no GeoIP file knows. A day is opened once, before its writer.
fn grown(directory: MmapDirectory, fields: &Fields) -> tantivy::Result<Index> {
    let index = Index::open(directory.clone())?;
    let Some(schema) = fields.grown(&index.schema()).map_err(TantivyError::SchemaError)? else { return Ok(index) };
    let mut meta = index.load_metas()?;
    meta.schema = schema;
    let bytes = serde_json::to_vec(&meta).map_err(|error| TantivyError::InternalError(error.to_string()))?;
    directory.atomic_write(Path::new(META), &bytes)?;
    Index::open(directory)
}

type Slot = Arc<Mutex<Option<Arc<Day>>>>;

/// All days.
#[derive(Debug)]
pub(super) struct Days {
    root: PathBuf,
    pub(super) fields: Arc<Fields>,
    slots: Mutex<BTreeMap<i64, Slot>>,
}

impl Days {
    /// Finds the days that there are; none is opened yet.
    pub(super) fn open(root: &Path) -> Result<Self, HistoryError> {
        let failed = |error| unavailable(format!("the folder {} cannot be used: {error}", root.display()));
        fs::create_dir_all(root).map_err(failed)?;
        let mut slots = BTreeMap::new();
        for entry in fs::read_dir(root).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with(RUBBISH) {
                fs::remove_dir_all(entry.path()).map_err(failed)?;
            } else if let Some(day) = day_named(name) {
                slots.insert(day, Slot::default());
            }
        }
        Ok(Self { root: root.to_owned(), fields: Arc::new(Fields::new()), slots: Mutex::new(slots) })
    }

    fn path(&self, day: i64) -> PathBuf {
        self.root.join(name_of(day))
    }

    /// The day, created where it is not there.
    pub(super) fn create(&self, number: i64) -> Result<Arc<Day>, Problem> {
        let slot = self.lock().entry(number).or_default().clone();
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(day) = &*slot {
            return Ok(day.clone());
        }
        let path = self.path(number);
        // Without this file no commit was ever made there: a crash came before the folder was ready.
        if !path.join(META).exists() {
            let making = self.root.join(format!("{RUBBISH}{}", name_of(number)));
            for rubbish in [&making, &path] {
                if rubbish.exists() {
                    fs::remove_dir_all(rubbish)?;
                }
            }
            fs::create_dir(&making)?;
            let settings = IndexSettings { docstore_blocksize: 32_768, ..IndexSettings::default() };
            let schema = self.fields.schema.clone();
            drop(Index::builder().schema(schema).settings(settings).create_in_dir(&making)?);
            fs::rename(&making, &path)?;
            fs::File::open(&self.root)?.sync_all()?;
        }
        let day = Arc::new(Day::open(&path, number, self.fields.clone())?);
        *slot = Some(day.clone());
        Ok(day)
    }

    /// The days that the span touches, the oldest first.
    pub(super) fn within(&self, span: Span) -> Result<Vec<Arc<Day>>, HistoryError> {
        if span.from >= span.to {
            return Ok(Vec::new());
        }
        let (first, last) = (day_of(span.from), day_of(span.to.saturating_sub(1)));
        let slots: Vec<(i64, Slot)> = self.lock().range(first..=last).map(|(day, slot)| (*day, slot.clone())).collect();
        let mut days = Vec::with_capacity(slots.len());
        for (number, slot) in slots {
            let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            if slot.is_none() {
                let path = self.path(number);
                if !path.join(META).exists() {
                    continue;
                }
                let day = Day::open(&path, number, self.fields.clone())
                    .map_err(|error| unavailable(format!("the folder {} cannot be read: {error}", path.display())))?;
                *slot = Some(Arc::new(day));
            }
            days.extend(slot.clone());
        }
        Ok(days)
    }

    /// Whether this report is committed in that day.
    pub(super) fn has(&self, day: i64, id: &ReportId) -> Result<bool, Problem> {
        let span = Span { from: day * DAY, to: (day + 1) * DAY };
        let found = self.within(span).map_err(|error| Problem(error.to_string()))?;
        Ok(found.first().map_or(Ok(false), |day| day.has(id))?)
    }

    /// Forgets what was opened of a day that failed, so that the next look at it starts from the folder.
    pub(super) fn reopen(&self, day: i64) {
        let slot = self.lock().get(&day).cloned();
        if let Some(slot) = slot {
            slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    /// Removes the days before this one. Their writers must be closed.
    pub(super) fn remove_before(&self, day: i64) -> Result<usize, Problem> {
        let mut removed = 0;
        loop {
            let Some(oldest) = self.lock().range(..day).next().map(|(day, _)| *day) else { return Ok(removed) };
            let path = self.path(oldest);
            if path.exists() {
                // A folder half removed must not look like a day after a crash.
                let rubbish = self.root.join(format!("{RUBBISH}{}", name_of(oldest)));
                if rubbish.exists() {
                    fs::remove_dir_all(&rubbish)?;
                }
                fs::rename(&path, &rubbish)?;
                self.lock().remove(&oldest);
                fs::remove_dir_all(&rubbish)?;
                removed += 1;
            } else {
                self.lock().remove(&oldest);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<i64, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
