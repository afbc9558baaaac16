//! Schedules of CronJobs: the five fields of cron, with names, ranges and steps, `@hourly` and the like, and `@every 90m`. Pure.
//! <https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/#schedule-syntax>
//!
//! What is allowed, and the words for what is not, are those of the library that upstream uses (`robfig/cron` v3, `ParseStandard`).

use amphipod_api::text::quote;
use amphipod_api::time::parse_duration;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// A day that comes every four years may be left out once in a while; one that does not come by then never comes.
const YEARS: i16 = 5;
const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// When something is to happen, again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// At the minutes that match.
    Fields(Box<Fields>),
    /// Each time so much has passed.
    Every(SignedDuration),
}

/// A bit for each number that a field allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Neither day field says `*`: then one of them is enough.
    either_day: bool,
}

/// What a field may hold.
struct Bounds {
    min: u64,
    max: u64,
    /// The first stands for `min`.
    names: &'static [&'static str],
}

const fn bounds(min: u64, max: u64, names: &'static [&'static str]) -> Bounds {
    Bounds { min, max, names }
}

static FIELDS: [Bounds; 5] = [
    bounds(0, 59, &[]),
    bounds(0, 23, &[]),
    bounds(1, 31, &[]),
    bounds(1, 12, &MONTHS),
    bounds(0, 6, &DAYS),
];

impl Schedule {
    /// Reads a schedule.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Schedule, String> {
        if text.is_empty() {
            return Err("empty spec string".into());
        }
        let known = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            _ => match text.strip_prefix("@every ") {
                Some(period) => return every(text, period),
                None if text.starts_with('@') => {
                    return Err(format!("unrecognized descriptor: {text}"));
                }
                None => text,
            },
        };
        let fields: Vec<&str> = known.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            let (count, list) = (fields.len(), fields.join(" "));
            return Err(format!(
                "expected exactly 5 fields, found {count}: [{list}]"
            ));
        };
        let [of_minute, of_hour, of_day, of_month, of_weekday] = &FIELDS;
        let (minutes, _) = field(minutes, of_minute)?;
        let (hours, _) = field(hours, of_hour)?;
        let (days, any_day) = field(days, of_day)?;
        let (months, _) = field(months, of_month)?;
        let (weekdays, any_weekday) = field(weekdays, of_weekday)?;
        Ok(Schedule::Fields(Box::new(Fields {
            minutes,
            hours,
            days,
            months,
            weekdays,
            either_day: !any_day && !any_weekday,
        })))
    }

    /// The first time after `after`; `None`: it never comes.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Schedule::Every(period) => {
                let second = Timestamp::from_second(after.as_second()).ok()?;
                second.checked_add(*period).ok()
            }
            Schedule::Fields(fields) => fields.next(after, zone),
        }
    }

    /// What a time that has passed is counted from when the one that is known, `before`, is ahead of it: `to`, or for a period the
    /// last time of the same series until then.
    pub fn rewind(&self, before: Timestamp, to: Timestamp) -> Timestamp {
        let Schedule::Every(period) = self else {
            return to;
        };
        let over = (to.as_second() - before.as_second()).rem_euclid(period.as_secs());
        Timestamp::from_second(to.as_second() - over).unwrap_or(to)
    }

    /// The last time after `after` and not after `until`.
    pub fn last(&self, after: Timestamp, until: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Schedule::Every(period) => {
                let passed = until.as_second() - after.as_second();
                let times = passed.div_euclid(period.as_secs());
                let last = after.as_second() + times.checked_mul(period.as_secs())?;
                Timestamp::from_second(last).ok().filter(|_| times > 0)
            }
            Schedule::Fields(fields) => fields.previous(until, zone).filter(|last| *last > after),
        }
    }
}

impl Fields {
    fn has_day(&self, date: Date) -> bool {
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        has(self.months, date.month())
            && match self.either_day {
                true => day || weekday,
                false => day && weekday,
            }
    }

    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let minute = after.as_second().div_euclid(60) + 1;
        let mut at = Timestamp::from_second(minute.checked_mul(60)?).ok()?;
        let end = zone.to_datetime(at).year().checked_add(YEARS)?;
        loop {
            let local = zone.to_datetime(at);
            if local.year() > end {
                return None;
            }
            at = if !self.has_day(local.date()) {
                begin(local.date().tomorrow().ok()?, zone)?
            } else if !has(self.hours, local.hour()) {
                later(at, 60 - i64::from(local.minute()))?
            } else if !has(self.minutes, local.minute()) {
                later(at, 1)?
            } else {
                return Some(at);
            };
        }
    }

    /// The last time that is not after `until`.
    fn previous(&self, until: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let minute = until.as_second().div_euclid(60);
        let mut at = Timestamp::from_second(minute.checked_mul(60)?).ok()?;
        let end = zone.to_datetime(at).year().checked_sub(YEARS)?;
        loop {
            let local = zone.to_datetime(at);
            if local.year() < end {
                return None;
            }
            at = if !self.has_day(local.date()) {
                later(begin(local.date(), zone)?, -1)?
            } else if !has(self.hours, local.hour()) {
                later(at, -1 - i64::from(local.minute()))?
            } else if !has(self.minutes, local.minute()) {
                later(at, -1)?
            } else {
                return Some(at);
            };
        }
    }
}

/// When a day begins, which need not be at midnight.
fn begin(date: Date, zone: &TimeZone) -> Option<Timestamp> {
    let midnight = DateTime::from_parts(date, jiff::civil::Time::midnight());
    Some(midnight.to_zoned(zone.clone()).ok()?.timestamp())
}

fn later(at: Timestamp, minutes: i64) -> Option<Timestamp> {
    at.checked_add(SignedDuration::from_mins(minutes)).ok()
}

fn has(bits: u64, number: i8) -> bool {
    bits & (1 << number) != 0
}

fn every(text: &str, period: &str) -> Result<Schedule, String> {
    let Some(period) = parse_duration(period) else {
        let why = format!("time: invalid duration {}", quote(period));
        return Err(format!("failed to parse duration {text}: {why}"));
    };
    let whole = period.as_secs().max(1);
    Ok(Schedule::Every(SignedDuration::from_secs(whole)))
}

/// A list of ranges: the numbers it allows, and whether it says `*`.
fn field(list: &str, bounds: &Bounds) -> Result<(u64, bool), String> {
    let mut all = (0, false);
    for part in list.split(',').filter(|part| !part.is_empty()) {
        let (bits, star) = range(part, bounds)?;
        all = (all.0 | bits, all.1 || star);
    }
    Ok(all)
}

/// `3`, `3-7`, `*`, or one of these with a step: `3-7/2`. A single number with a step goes on to the end.
fn range(text: &str, bounds: &Bounds) -> Result<(u64, bool), String> {
    let parts: Vec<&str> = text.split('/').collect();
    let ends: Vec<&str> = parts[0].split('-').collect();
    let star = matches!(ends[0], "*" | "?");
    let (start, mut end) = match ends[..] {
        _ if star => (bounds.min, bounds.max),
        [one] => (number(one, bounds)?, number(one, bounds)?),
        [first, last] => (number(first, bounds)?, number(last, bounds)?),
        _ => return Err(format!("too many hyphens: {text}")),
    };
    let step = match parts[..] {
        [_] => 1,
        [_, step] => {
            let step = integer(step)?;
            if ends.len() == 1 {
                end = bounds.max;
            }
            step
        }
        _ => return Err(format!("too many slashes: {text}")),
    };
    let (min, max) = (bounds.min, bounds.max);
    if start < min {
        return Err(format!(
            "beginning of range ({start}) below minimum ({min}): {text}"
        ));
    }
    if end > max {
        return Err(format!(
            "end of range ({end}) above maximum ({max}): {text}"
        ));
    }
    if start > end {
        return Err(format!(
            "beginning of range ({start}) beyond end of range ({end}): {text}"
        ));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    let numbers = (start..=end).filter(|number| (number - start) % step == 0);
    let bits = numbers.fold(0, |bits, number| bits | 1 << number);
    // With a step it is no longer any day.
    Ok((bits, star && step == 1))
}

fn number(text: &str, bounds: &Bounds) -> Result<u64, String> {
    let lower = text.to_lowercase();
    match bounds.names.iter().position(|name| *name == lower) {
        Some(place) => Ok(bounds.min + u64::try_from(place).unwrap_or(0)),
        None => integer(text),
    }
}

fn integer(text: &str) -> Result<u64, String> {
    match text.parse::<i64>() {
        Ok(number) => u64::try_from(number)
            .map_err(|_| format!("negative number ({number}) not allowed: {text}")),
        Err(error) => {
            use std::num::IntErrorKind::{NegOverflow, PosOverflow};
            let why = match error.kind() {
                PosOverflow | NegOverflow => "value out of range",
                _ => "invalid syntax",
            };
            let quoted = quote(text);
            Err(format!(
                "failed to parse int from {text}: strconv.Atoi: parsing {quoted}: {why}"
            ))
        }
    }
}

/// The time zone of a name; `None`: there is none, or it has another name.
pub fn time_zone(name: &str) -> Option<TimeZone> {
    if name == "UTC" {
        return Some(TimeZone::UTC);
    }
    // Names are told apart by their case.
    let zone = TimeZone::get(name).ok()?;
    (zone.iana_name() == Some(name)).then_some(zone)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn next(schedule: &str, after: &str, zone: &str) -> String {
        let zone = time_zone(zone).unwrap();
        let next = Schedule::parse(schedule).unwrap().next(at(after), &zone);
        next.map_or("never".into(), |next| next.to_string())
    }

    #[test]
    fn the_next_time_is_the_first_that_matches() {
        let after = "2026-01-30T10:07:30Z";
        for (schedule, wanted) in [
            ("* * * * *", "2026-01-30T10:08:00Z"),
            ("*/15 * * * *", "2026-01-30T10:15:00Z"),
            ("7 * * * *", "2026-01-30T11:07:00Z"),
            ("5/20 * * * *", "2026-01-30T10:25:00Z"),
            ("0 9-17/4 * * *", "2026-01-30T13:00:00Z"),
            ("@hourly", "2026-01-30T11:00:00Z"),
            ("@midnight", "2026-01-31T00:00:00Z"),
            ("@weekly", "2026-02-01T00:00:00Z"),
            ("@monthly", "2026-02-01T00:00:00Z"),
            ("@yearly", "2027-01-01T00:00:00Z"),
            ("@every 1h30m", "2026-01-30T11:37:30Z"),
            ("30 3 * * mon-Fri", "2026-02-02T03:30:00Z"),
            ("0 0 31 * *", "2026-01-31T00:00:00Z"),
            ("0 0 ? feb ?", "2026-02-01T00:00:00Z"),
            // The 13th, or a Friday; a star leaves the other to decide alone.
            ("0 0 13 * 5", "2026-02-06T00:00:00Z"),
            ("0 0 13 * *", "2026-02-13T00:00:00Z"),
            ("0 0 */2 * 5", "2026-01-31T00:00:00Z"),
            ("0 0 29 2 *", "2028-02-29T00:00:00Z"),
            ("0 0 31 2 *", "never"),
            (", * * * *", "never"),
        ] {
            assert_eq!(next(schedule, after, "UTC"), wanted, "{schedule}");
        }
    }

    #[test]
    fn the_last_time_is_found_without_walking_through_all() {
        let utc = TimeZone::UTC;
        let last = |schedule: &str, after: &str, until: &str| {
            let last = Schedule::parse(schedule)
                .unwrap()
                .last(at(after), at(until), &utc);
            last.map_or("none".into(), |last| last.to_string())
        };
        let until = "2026-01-30T10:07:30Z";
        for (schedule, after, wanted) in [
            ("* * * * *", "1970-01-01T00:00:00Z", "2026-01-30T10:07:00Z"),
            ("0 9 * * 1", "1970-01-01T00:00:00Z", "2026-01-26T09:00:00Z"),
            ("0 9 * * 1", "2026-01-26T09:00:00Z", "none"),
            ("0 0 29 2 *", "1970-01-01T00:00:00Z", "2024-02-29T00:00:00Z"),
            ("0 0 31 2 *", "1970-01-01T00:00:00Z", "none"),
            ("@every 1h", "2026-01-30T07:00:10Z", "2026-01-30T10:00:10Z"),
            ("@every 1h", "2026-01-30T10:00:10Z", "none"),
        ] {
            assert_eq!(last(schedule, after, until), wanted, "{schedule}");
        }
    }

    #[test]
    fn hours_are_those_of_the_time_zone() {
        let zone = "Europe/Berlin";
        assert_eq!(
            next("30 6 * * *", "2026-01-01T00:00:00Z", zone),
            "2026-01-01T05:30:00Z"
        );
        assert_eq!(
            next("30 6 * * *", "2026-07-01T00:00:00Z", zone),
            "2026-07-01T04:30:00Z"
        );
        // An hour that is left out in spring has no run, one that comes twice in autumn has two.
        assert_eq!(
            next("30 2 * * *", "2026-03-28T12:00:00Z", zone),
            "2026-03-30T00:30:00Z"
        );
        let first = next("30 2 * * *", "2026-10-24T12:00:00Z", zone);
        assert_eq!(first, "2026-10-25T00:30:00Z");
        assert_eq!(next("30 2 * * *", &first, zone), "2026-10-25T01:30:00Z");
        // A day that begins at one o'clock.
        assert_eq!(
            next("@daily", "2026-04-23T12:00:00Z", "Africa/Cairo"),
            "2026-04-24T21:00:00Z"
        );
        assert!(time_zone("europe/berlin").is_none());
        assert!(time_zone("Mars/Olympus").is_none());
    }

    #[test]
    fn what_is_wrong_is_told_as_upstream_tells_it() {
        for (schedule, why) in [
            ("", "empty spec string"),
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("@often", "unrecognized descriptor: @often"),
            (
                "@every day",
                "failed to parse duration @every day: time: invalid duration \"day\"",
            ),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            (
                "5-3 * * * *",
                "beginning of range (5) beyond end of range (3): 5-3",
            ),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("1/2/3 * * * *", "too many slashes: 1/2/3"),
            (
                "*/0 * * * *",
                "step of range should be a positive number: */0",
            ),
            (
                "a * * * *",
                "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax",
            ),
            (
                "* * * * -1",
                "failed to parse int from : strconv.Atoi: parsing \"\": invalid syntax",
            ),
        ] {
            assert_eq!(Schedule::parse(schedule).unwrap_err(), why);
        }
    }
}
