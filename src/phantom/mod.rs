//! Phantom studies: made-up pictures with made-up findings, and what can be said and asked about
//! them. They train and examine the small model that comes with this program.
//!
//! Nothing here has a medical meaning. A picture is an outline with marks in it; nine properties
//! ([`Property`]) are drawn independently and uniformly, so that a question alone never gives its
//! answer away. Every number comes from ChaCha8 and integer arithmetic: a seed gives the same bytes
//! on every machine.
//!
//! ```
//! use medflamingo::phantom::{Kind, Pages, Split};
//!
//! let mix = vec![(Kind::Caption, 1), (Kind::Words, 3)];
//! let mut pages = Pages::new(7, Split::Train, mix).unwrap();
//! let page = pages.next_page();
//! assert_eq!(page.text().matches("<image>").count(), page.pictures().unwrap().len());
//! ```

mod dice;
mod draw;
mod embedded;
mod episode;
mod exam;
mod page;
mod source;
mod study;
mod vocabulary;
mod words;

pub use dice::Dice;
pub use draw::SIDE;
pub use embedded::unpack;
pub use exam::{Control, Exam, Item};
pub use page::{Page, Piece};
pub use source::{Kind, Pages, Split};
pub use study::{Property, Study};
pub use vocabulary::{START, TOKENS, prepared, tokenizer_files};
pub use words::{Question, chance};
