//! The rows that later changes made obsolete, oldest first: what watches resume from, and what compaction removes.

use std::collections::VecDeque;

/// A row that may go when the horizon reaches `by`.
struct Obsolete {
    by: u64,
    row: u64,
    length: usize,
}

/// Obsolete rows removed by one transaction.
pub(super) const BUNCH: usize = 512;

#[derive(Default)]
pub(super) struct History {
    rows: VecDeque<Obsolete>,
    bytes: usize,
}

/// Rows to remove, and where the horizon is then.
pub(super) struct Removal {
    pub rows: Vec<u64>,
    pub horizon: u64,
}

impl History {
    /// Row `row`, with a value of `length` bytes, is obsolete since the change `by`.
    pub fn push(&mut self, by: u64, row: u64, length: usize) {
        self.rows.push_back(Obsolete { by, row, length });
        self.bytes += length;
    }

    /// All rows up to a revision, at most so many.
    pub fn upto(&self, revision: u64, most: usize) -> Removal {
        self.oldest_while(most, |obsolete, _, _| obsolete.by <= revision)
    }

    /// The rows beyond what is to be kept, at most a bunch; none while there are only a few.
    pub fn beyond(&self, keep_rows: usize, keep_bytes: usize) -> Removal {
        let many = self.rows.len() > keep_rows + BUNCH / 2 || self.bytes > keep_bytes;
        self.oldest_while(BUNCH, |_, rows, bytes| {
            many && (rows > keep_rows || bytes > keep_bytes / 4 * 3)
        })
    }

    fn oldest_while(
        &self,
        most: usize,
        wanted: impl Fn(&Obsolete, usize, usize) -> bool,
    ) -> Removal {
        let mut removal = Removal {
            rows: Vec::new(),
            horizon: 0,
        };
        let (mut rows, mut bytes) = (self.rows.len(), self.bytes);
        for obsolete in self.rows.iter().take(most) {
            if !wanted(obsolete, rows, bytes) {
                break;
            }
            removal.rows.push(obsolete.row);
            // Lazy changes reach the disk late: `by` does not always grow.
            removal.horizon = removal.horizon.max(obsolete.by);
            rows -= 1;
            bytes -= obsolete.length;
        }
        removal
    }

    /// Notes that the rows of a removal are gone.
    pub fn forget(&mut self, removal: &Removal) {
        for obsolete in self.rows.drain(..removal.rows.len()) {
            self.bytes -= obsolete.length;
        }
    }
}
