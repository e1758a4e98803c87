//! Histories: what each process of a run did, one JSON object a line, appended before and after each step. Comparing them is
//! the checker's.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Which message: the `number`-th of its key, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Id {
    /// The key's number.
    pub key: u32,
    /// Its place among the messages of the key.
    pub number: u32,
}

/// What a run can harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The broker.
    Broker,
    /// The consumer of that number.
    Consumer(u32),
    /// The broker, which is stopped for a while and goes on (SIGSTOP, SIGCONT).
    Pause,
    /// Every connection to the broker.
    Cut,
    /// The dead-letter channel.
    Letters,
}

/// The hold under which a message was delivered: partition and epoch, of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hold {
    /// The partition.
    pub shard: u32,
    /// Counts the process's holds of it.
    pub epoch: u32,
}

/// A step of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// The process is at work: routes have started, or publishing can begin.
    Ready,
    /// A publisher is about to send.
    Send {
        /// What.
        id: Id,
    },
    /// The broker confirmed it.
    Confirmed {
        /// What.
        id: Id,
    },
    /// It is certainly not stored.
    Failed {
        /// What.
        id: Id,
    },
    /// It may be stored.
    Unknown {
        /// What.
        id: Id,
    },
    /// A handler begins with it.
    Started {
        /// What.
        id: Id,
        /// Under which hold.
        hold: Hold,
    },
    /// The handler's effect is done.
    Effect {
        /// What.
        id: Id,
        /// Under which hold.
        hold: Hold,
    },
    /// It was read from the dead letters.
    DeadLetter {
        /// What.
        id: Id,
    },
    /// Something is about to be killed, paused or cut.
    Kill {
        /// What.
        target: Target,
        /// Messages sent or unsettled at that moment.
        in_flight: u64,
    },
    /// It is dead.
    Dead {
        /// What.
        target: Target,
    },
    /// It is there again.
    Back {
        /// What.
        target: Target,
    },
}

/// A step with its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Nanoseconds of the machine's monotonic clock, the same for all processes.
    pub at: u64,
    /// What was done.
    #[serde(flatten)]
    pub step: Step,
}

/// The machine's monotonic clock, in nanoseconds.
pub fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Appends to the history of one process. Each step is in the system's hands when the call returns, so that it outlives a
/// SIGKILL of the process.
#[derive(Debug)]
pub struct Writer(File);

impl Writer {
    /// Opens the history of the process of that name, which is `NAME.jsonl` in `folder`.
    ///
    /// # Errors
    /// If the file can't be made.
    pub fn open(folder: &Path, name: &str) -> io::Result<Self> {
        OpenOptions::new().create(true).append(true).open(path(folder, name)).map(Self)
    }

    /// Appends a step, now.
    ///
    /// # Errors
    /// If the file can't be written, a disk that is full for instance: a history with holes proves nothing.
    pub fn write(&self, step: Step) -> io::Result<()> {
        let mut line = serde_json::to_vec(&Entry { at: now(), step })?;
        line.push(b'\n');
        // one call, so that lines of several threads don't mix
        (&self.0).write_all(&line)
    }
}

/// Follows the history of a process that may still be writing it.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: Option<File>,
    /// The beginning of a line whose end isn't there yet.
    rest: Vec<u8>,
}

impl Reader {
    /// Of the process of that name; its file need not be there yet.
    pub fn new(folder: &Path, name: &str) -> Self {
        Self { path: path(folder, name), file: None, rest: Vec::new() }
    }

    /// What was appended since the last call.
    ///
    /// # Errors
    /// If the file can't be read, or holds a line that is no step. A last line that was cut off by a kill is left out.
    pub fn read(&mut self) -> io::Result<Vec<Entry>> {
        if self.file.is_none() {
            match File::open(&self.path) {
                Ok(file) => self.file = Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error),
            }
        }
        if let Some(file) = &mut self.file {
            file.read_to_end(&mut self.rest)?;
        }
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            return Ok(Vec::new());
        };
        let whole: Vec<u8> = self.rest.drain(..=end).collect();
        let lines = whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).map_err(io::Error::from)).collect()
    }
}

fn path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.jsonl"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_a_torn_line_waits_for_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut reader = Reader::new(folder.path(), "a");
        assert_eq!(reader.read().unwrap(), []);
        let writer = Writer::open(folder.path(), "a").unwrap();
        let id = Id { key: 3, number: 7 };
        writer.write(Step::Send { id }).unwrap();
        writer.write(Step::Kill { target: Target::Consumer(2), in_flight: 501 }).unwrap();
        let steps = |reader: &mut Reader| reader.read().unwrap().iter().map(|e| e.step).collect::<Vec<_>>();
        let expected = vec![Step::Send { id }, Step::Kill { target: Target::Consumer(2), in_flight: 501 }];
        assert_eq!(steps(&mut reader), expected);

        let mut line = serde_json::to_vec(&Entry { at: 1, step: Step::Ready }).unwrap();
        line.push(b'\n');
        let (head, tail) = line.split_at(9);
        (&writer.0).write_all(head).unwrap();
        assert_eq!(steps(&mut reader), []);
        (&writer.0).write_all(tail).unwrap();
        assert_eq!(steps(&mut reader), [Step::Ready]);
    }
}
