//! Training data: shards on disk in, samples out, in an order that can be resumed.
//!
//! | file | what it knows |
//! |---|---|
//! | `tar` | the bytes of a shard, read in place and written |
//! | `shards` | which shards there are, where the records of one begin |
//! | `order` | the one global order of an epoch, and which of it is this rank's |
//! | `record` | what a record says: a caption, an MMC4 document, a segment of a book |
//! | `matching` | which sentence an image belongs to |
//! | `builder`, `labels` | ids, labels and pixels of a document |
//! | `queue` | worker threads whose results come out in the order of their jobs |
//! | `stream` | all of that as an iterator with a state |
//! | `phantom` | samples that are drawn, not read |
//!
//! **One order.** The records of all shards have one order, which depends on the seed and on
//! nothing else: a permutation of the shards for each epoch, and a bounded buffer of *places* from
//! which the next is drawn. Rank r of W takes every W-th record, beginning with the r-th: ranks are
//! disjoint, together complete, and a global batch is the same for every W. Bytes are read only
//! when a record is due, by the worker that decodes it, so the order costs headers, not pictures.
//!
//! **Nothing is unpacked.** Names inside archives are keys. Every size is checked against what is
//! there and against a limit before it is allocated. A sample that cannot be used is counted by
//! [`Reason`]; when the share of damaged ones passes a limit the run ends with an error that names
//! the most frequent reasons.

mod base64;
mod builder;
mod labels;
mod matching;
mod order;
mod phantom;
mod placement;
mod queue;
mod random;
mod record;
mod rules;
mod shards;
mod stream;
mod tally;
pub mod tar;

pub(crate) use base64::decode as decode_base64;
pub use builder::Builder;
pub use labels::label;
pub use phantom::{Feed, PhantomStream};
pub use placement::Placement;
pub use record::{BOOK_FORMAT, Content, Picture, book_record};
pub use rules::{Form, LabelRules, Matching, Rules};
pub use shards::{Source, expand};
pub use stream::{Stream, StreamOptions};
pub use tally::{Reason, Refusal, Tally};
