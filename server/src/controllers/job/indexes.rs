//! Sets of completion indexes, as `status.completedIndexes` has them: `0-2,5`. Pure.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/job/#completion-mode>

use std::fmt;

/// A set of indexes: intervals that ascend and do not touch, with both ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// Reads a list, of which only what is below `completions` counts: an indexed job can be made smaller. What cannot be read is left out.
    pub fn parse(list: &str, completions: i32) -> Indexes {
        let interval = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let (first, last): (i32, i32) = (first.parse().ok()?, last.parse().ok()?);
            let last = last.min(completions.saturating_sub(1));
            (0 <= first && first <= last).then_some((first, last))
        };
        Indexes::of(list.split(',').filter_map(interval))
    }

    fn of(intervals: impl IntoIterator<Item = (i32, i32)>) -> Indexes {
        let mut all: Vec<(i32, i32)> = intervals.into_iter().collect();
        all.sort_unstable();
        let mut merged: Vec<(i32, i32)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match merged.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        Indexes(merged)
    }

    /// The set with some indexes more.
    pub fn with(&self, more: impl IntoIterator<Item = i32>) -> Indexes {
        let more = more.into_iter().map(|index| (index, index));
        Indexes::of(self.0.iter().copied().chain(more))
    }

    pub fn union(&self, other: &Indexes) -> Indexes {
        Indexes::of(self.0.iter().chain(&other.0).copied())
    }

    pub fn contains(&self, index: i32) -> bool {
        let next = self.0.partition_point(|(_, last)| *last < index);
        self.0.get(next).is_some_and(|(first, _)| *first <= index)
    }

    /// How many indexes there are.
    pub fn len(&self) -> i32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many indexes are in both sets.
    pub fn common(&self, other: &Indexes) -> i32 {
        let (mut common, mut rest) = (0, &other.0[..]);
        for (first, last) in &self.0 {
            let gone = rest.partition_point(|(_, end)| end < first);
            rest = &rest[gone..];
            let overlaps = rest.iter().take_while(|(from, _)| from <= last);
            common += overlaps
                .map(|(from, to)| to.min(last) - from.max(first) + 1)
                .sum::<i32>();
        }
        common
    }

    /// The indexes below `completions` that are not in the set.
    pub fn missing(&self, completions: i32) -> impl Iterator<Item = i32> {
        let from = [0]
            .into_iter()
            .chain(self.0.iter().map(|(_, last)| last + 1));
        let to = self.0.iter().map(|(first, _)| *first).chain([completions]);
        from.zip(to)
            .flat_map(move |(from, to)| from..to.min(completions))
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.0.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written_as_upstream_does() {
        for (list, written) in [
            ("", ""),
            ("0", "0"),
            ("0,1", "0,1"),
            ("0,1,2,5", "0-2,5"),
            ("7-9", "7-9"),
            ("7-12,3", "3,7-9"),
            ("1,x,4-y,-2,12", "1"),
        ] {
            assert_eq!(Indexes::parse(list, 10).to_string(), written, "{list}");
        }
    }

    #[test]
    fn what_is_missing_is_what_is_not_in_the_set() {
        let set = Indexes::parse("1,2,5-7", 10);
        assert_eq!(set.missing(10).collect::<Vec<_>>(), [0, 3, 4, 8, 9]);
        assert_eq!(set.missing(6).collect::<Vec<_>>(), [0, 3, 4]);
        assert_eq!(Indexes::default().missing(3).collect::<Vec<_>>(), [0, 1, 2]);
        for index in 0..10 {
            assert_eq!(set.contains(index), [1, 2, 5, 6, 7].contains(&index));
        }
        let full = set.with([0, 3, 4, 8, 9]);
        assert_eq!((full.to_string().as_str(), full.len()), ("0-9", 10));
    }

    #[test]
    fn sets_are_united_and_compared() {
        let (a, b) = (Indexes::parse("0-3,8", 10), Indexes::parse("2-5,7-9", 10));
        assert_eq!((a.common(&b), b.common(&a)), (3, 3));
        assert_eq!(a.union(&b).to_string(), "0-5,7-9");
        assert_eq!(a.common(&Indexes::default()), 0);
    }
}
