//! Shards in a folder that appears whole or not at all.

use super::report::Report;
use crate::prompt::Part;
use crate::train::data::{book_record, tar::Writer};
use crate::{Error, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A folder under another name, until it is finished.
pub(super) struct Output {
    folder: PathBuf,
    output: PathBuf,
    max_shard: u64,
    /// For training, for validation.
    open: [Option<Writer<BufWriter<File>>>; 2],
    counts: [usize; 2],
    shards: Vec<String>,
    segments: u64,
}

impl Output {
    /// # Errors
    /// An output that exists, or a folder that cannot be made.
    pub(super) fn new(output: &Path, max_shard: u64) -> Result<Self> {
        let who = output.display();
        if output.symlink_metadata().is_ok() {
            let found = "one that does";
            return Err(Error::invalid(who, "a folder that does not exist yet", found)
                .advise("choose another --output, or remove it"));
        }
        let name = output.file_name().map(|n| n.to_string_lossy().into_owned());
        let name = name.ok_or_else(|| Error::invalid(who, "a folder with a name", "none"))?;
        let folder = output.with_file_name(format!(".{name}.partial-{}", std::process::id()));
        std::fs::create_dir(&folder).map_err(|e| Error::io("create", &folder, e))?;
        Ok(Output {
            folder,
            output: output.to_path_buf(),
            max_shard,
            open: [None, None],
            counts: [0, 0],
            shards: Vec::new(),
            segments: 0,
        })
    }

    /// Appends a segment of `book` to the current shard.
    pub(super) fn write(
        &mut self,
        is_validation: bool,
        book: &str,
        parts: &[Part<Vec<u8>>],
    ) -> Result<()> {
        let which = usize::from(is_validation);
        let key = format!("{:09}", self.segments);
        self.segments += 1;
        let files = book_record(book, parts);
        let output = self.output.clone();
        let shard = self.shard(which)?;
        for (extension, bytes) in &files {
            let written = shard.append(&format!("{key}.{extension}"), bytes);
            written.map_err(|e| Error::io("write", &output, e))?;
        }
        if self.open[which].as_ref().is_some_and(|shard| shard.bytes() >= self.max_shard) {
            self.close(which)?;
        }
        Ok(())
    }

    fn shard(&mut self, which: usize) -> Result<&mut Writer<BufWriter<File>>> {
        if self.open[which].is_none() {
            let kind = ["train", "validation"][which];
            let name = format!("{kind}-{:05}.tar", self.counts[which]);
            self.counts[which] += 1;
            let path = self.folder.join(&name);
            let file = File::create_new(&path).map_err(|e| Error::io("create", &path, e))?;
            self.shards.push(name);
            self.open[which] = Some(Writer::new(BufWriter::new(file)));
        }
        let missing = || Error::invalid("shard", "an open file", "none");
        self.open[which].as_mut().ok_or_else(missing)
    }

    fn close(&mut self, which: usize) -> Result<()> {
        let Some(shard) = self.open[which].take() else { return Ok(()) };
        let closed = shard.finish().and_then(|file| {
            let file = file.into_inner().map_err(|e| e.into_error())?;
            file.sync_all()
        });
        closed.map_err(|e| Error::io("write", &self.folder, e))
    }

    /// The shards so far.
    pub(super) fn shards(&self) -> Vec<String> {
        let mut shards = self.shards.clone();
        shards.sort();
        shards
    }

    /// Writes the report and gives the folder its name.
    pub(super) fn finish(mut self, report: &Report) -> Result<()> {
        (0..2).try_for_each(|which| self.close(which))?;
        let json = serde_json::to_vec_pretty(report)
            .map_err(|e| Error::invalid("report", "a value that fits JSON", e))?;
        for (name, bytes) in
            [("report.json", json), ("report.txt", report.to_string().into_bytes())]
        {
            let path = self.folder.join(name);
            let written = File::create_new(&path).and_then(|mut file| {
                file.write_all(&bytes)?;
                file.sync_all()
            });
            written.map_err(|e| Error::io("write", &path, e))?;
        }
        let sync = |path: &Path| File::open(path).and_then(|folder| folder.sync_all());
        sync(&self.folder).map_err(|e| Error::io("write", &self.folder, e))?;
        std::fs::rename(&self.folder, &self.output)
            .map_err(|e| Error::io("create", &self.output, e))?;
        match self.output.parent().filter(|p| !p.as_os_str().is_empty()) {
            Some(parent) => sync(parent).map_err(|e| Error::io("write", parent, e)),
            None => Ok(()),
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // After it was finished there is nothing under this name.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
