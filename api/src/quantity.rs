//! Kubernetes resource quantities: `100m`, `1.5Gi`, `12e6`.
//!
//! Source: <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>. A quantity is a fixed-point
//! number of billionths in an `i128`; larger magnitudes (above about 1.7e29) saturate. What is finer than a billionth
//! rounds away from zero: who asks for some gets some.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Neg, Sub};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

const NANOS: i128 = 1_000_000_000;

/// The suffix family in which a quantity is printed: the one it was written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySi,
    /// `12M`
    #[default]
    DecimalSi,
}

/// A resource quantity. Equality and order are those of the number, whatever the format; `Display` is the canonical
/// form that the API server stores and prints (`1000m` is `1`, `1024Mi` is `1Gi`, `0.5` is `500m`).
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is no quantity, in upstream's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseQuantityError {
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    FormatWrong,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// Longest text that is looked at; longer ones are refused (no sensible quantity comes near).
const MAX_TEXT: usize = 256;

impl Quantity {
    /// Zero, in decimal format.
    pub const ZERO: Quantity = Quantity {
        nanos: 0,
        format: Format::DecimalSi,
    };

    /// So many whole units.
    pub const fn from_units(units: i64, format: Format) -> Quantity {
        Quantity {
            nanos: units as i128 * NANOS,
            format,
        }
    }

    /// So many thousandths (CPU millicores), in decimal format.
    pub const fn from_milli(milli: i64) -> Quantity {
        Quantity {
            nanos: milli as i128 * (NANOS / 1000),
            format: Format::DecimalSi,
        }
    }

    /// So many billionths (CPU usage), in decimal format.
    pub const fn from_nano(nano: i64) -> Quantity {
        Quantity {
            nanos: nano as i128,
            format: Format::DecimalSi,
        }
    }

    /// So many bytes, printed with binary suffixes.
    pub const fn from_bytes(bytes: i64) -> Quantity {
        Quantity::from_units(bytes, Format::BinarySi)
    }

    /// Reads a JSON string or number, as API objects carry quantities.
    pub fn from_value(value: &Value) -> Result<Quantity, ParseQuantityError> {
        match value {
            Value::String(s) => s.parse(),
            Value::Number(n) => n.to_string().parse(),
            _ => Err(ParseQuantityError::FormatWrong),
        }
    }

    /// Whole units, rounded away from zero, clamped to `i64`.
    pub fn value(&self) -> i64 {
        clamp(div_away(self.nanos, NANOS))
    }

    /// Thousandths, rounded away from zero, clamped to `i64`.
    pub fn milli_value(&self) -> i64 {
        clamp(div_away(self.nanos, NANOS / 1000))
    }

    /// Billionths, exact.
    pub fn nano_value(&self) -> i128 {
        self.nanos
    }

    /// The number as floating point: for ratios and for people, not for accounting.
    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / NANOS as f64
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// -1, 0 or 1
    pub fn signum(&self) -> i32 {
        self.nanos.signum() as i32
    }

    /// Whether the number has no fraction (extended resources and byte counts must not).
    pub fn is_integer(&self) -> bool {
        self.nanos % NANOS == 0
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let whole = self.nanos / NANOS;
        // Small and fractional numbers print in decimal, whatever they were written in: nothing is lost by rounding.
        if self.format == Format::BinarySi && self.is_integer() && whole.unsigned_abs() >= 1024 {
            let (mut mantissa, mut power) = (whole, 0);
            while mantissa % 1024 == 0 && power + 1 < BINARY.len() {
                mantissa /= 1024;
                power += 1;
            }
            return write!(f, "{mantissa}{}", BINARY[power]);
        }
        let (mut mantissa, mut exponent) = (self.nanos, -9i32);
        let most = if self.format == Format::DecimalExponent {
            i32::MAX
        } else {
            18
        };
        while mantissa % 1000 == 0 && exponent < most {
            mantissa /= 1000;
            exponent += 3;
        }
        if self.format == Format::DecimalExponent {
            return if exponent == 0 {
                write!(f, "{mantissa}")
            } else {
                write!(f, "{mantissa}e{exponent}")
            };
        }
        let suffix = DECIMAL
            .iter()
            .find(|(_, e)| *e == exponent)
            .map_or("", |(s, _)| s);
        write!(f, "{mantissa}{suffix}")
    }
}

const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const DECIMAL: [(&str, i32); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];

fn clamp(n: i128) -> i64 {
    n.clamp(i64::MIN as i128, i64::MAX as i128) as i64
}

fn div_away(n: i128, by: i128) -> i128 {
    let quotient = n / by;
    if n % by == 0 {
        quotient
    } else {
        quotient + n.signum()
    }
}

/// What multiplies the digits.
enum Scale {
    Ten(i32),
    Two(u32),
}

fn parse_suffix(suffix: &str) -> Result<(Scale, Format), ParseQuantityError> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Ok((Scale::Ten(*exponent), Format::DecimalSi));
    }
    if let Some(power) = BINARY.iter().position(|s| *s == suffix) {
        return Ok((Scale::Two(power as u32 * 10), Format::BinarySi));
    }
    let digits = suffix
        .strip_prefix(['e', 'E'])
        .ok_or(ParseQuantityError::Suffix)?;
    let exponent: i32 = digits.parse().map_err(|_| ParseQuantityError::Suffix)?;
    Ok((Scale::Ten(exponent), Format::DecimalExponent))
}

impl FromStr for Quantity {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Quantity, ParseQuantityError> {
        use ParseQuantityError::*;
        if text.is_empty() || text.len() > MAX_TEXT || !text.is_ascii() {
            return Err(FormatWrong);
        }
        let (negative, unsigned) = match text.as_bytes()[0] {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let number_end = unsigned
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(number_end);
        let letters_end = suffix
            .find(|c| !"eEinumkKMGTP".contains(c))
            .unwrap_or(suffix.len());
        let tail = &suffix[letters_end..];
        let tail = tail.strip_prefix(['-', '+']).unwrap_or(tail);
        if !tail.bytes().all(|b| b.is_ascii_digit()) {
            return Err(FormatWrong);
        }
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') {
            return Err(FormatWrong);
        }
        let (scale, mut format) = parse_suffix(suffix)?;

        let digits = whole
            .bytes()
            .chain(fraction.bytes())
            .map(|b| i128::from(b - b'0'));
        let fraction_digits = fraction.len() as i32;
        let nanos = match scale {
            Scale::Ten(exponent) => scale_ten(
                digits,
                exponent.saturating_sub(fraction_digits).saturating_add(9),
            ),
            Scale::Two(power) => scale_two(digits, fraction_digits, power),
        };
        let nanos = if format == Format::BinarySi {
            nanos.min(i64::MAX as i128 * NANOS)
        } else {
            nanos
        };
        if format == Format::BinarySi && 0 < nanos && nanos < NANOS {
            format = Format::DecimalSi;
        }
        Ok(Quantity {
            nanos: if negative { -nanos } else { nanos },
            format,
        })
    }
}

/// `digits` times ten to the `shift`, rounded up, saturating.
fn scale_ten(digits: impl Iterator<Item = i128>, shift: i32) -> i128 {
    let digits: Vec<i128> = digits.skip_while(|d| *d == 0).collect();
    let keep =
        (digits.len() as i64 + i64::from(shift.min(0))).clamp(0, digits.len() as i64) as usize;
    let mut n: i128 = 0;
    for digit in &digits[..keep] {
        n = n.saturating_mul(10).saturating_add(*digit);
    }
    if digits[keep..].iter().any(|d| *d != 0) {
        n = n.saturating_add(1);
    }
    if n != 0 {
        // More than 39 zeros saturate anyway.
        for _ in 0..shift.clamp(0, 40) {
            n = n.saturating_mul(10);
        }
    }
    n
}

/// `digits` (of which the last `fraction_digits` stand behind the point) times two to the `power`, in billionths, rounded up.
fn scale_two(digits: impl Iterator<Item = i128>, fraction_digits: i32, power: u32) -> i128 {
    // Whole part and fraction apart, so that nothing overflows before it has to.
    let digits: Vec<i128> = digits.collect();
    let whole_len = digits.len() - fraction_digits as usize;
    let factor = 1i128 << power;
    let mut whole: i128 = 0;
    for digit in &digits[..whole_len] {
        whole = whole.saturating_mul(10).saturating_add(*digit);
    }
    let (mut fraction, mut divisor, mut inexact) = (0i128, 1i128, false);
    for digit in &digits[whole_len..] {
        // 18 digits times 2^60 stays below 2^127 / 10^0; finer ones can only round up.
        if divisor < 1_000_000_000_000_000_000 {
            fraction = fraction * 10 + digit;
            divisor *= 10;
        } else {
            inexact |= *digit != 0;
        }
    }
    // fraction * factor < 2^60 * 10^18 < 2^120; the nanos follow by splitting once more.
    let product = fraction * factor;
    let (units, rest) = (product / divisor, product % divisor * NANOS);
    let round_up = inexact || rest % divisor != 0;
    let fraction_nanos = units.saturating_mul(NANOS) + rest / divisor + i128::from(round_up);
    whole
        .saturating_mul(factor)
        .saturating_mul(NANOS)
        .saturating_add(fraction_nanos)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// The sum keeps the left format, or takes the right one if the left is zero (as upstream's `Add`).
impl Add for Quantity {
    type Output = Quantity;
    fn add(self, other: Quantity) -> Quantity {
        let format = if self.is_zero() {
            other.format
        } else {
            self.format
        };
        Quantity {
            nanos: self.nanos.saturating_add(other.nanos),
            format,
        }
    }
}

impl Sub for Quantity {
    type Output = Quantity;
    fn sub(self, other: Quantity) -> Quantity {
        let format = if self.is_zero() {
            other.format
        } else {
            self.format
        };
        Quantity {
            nanos: self.nanos.saturating_sub(other.nanos),
            format,
        }
    }
}

impl Neg for Quantity {
    type Output = Quantity;
    fn neg(self) -> Quantity {
        Quantity {
            nanos: self.nanos.saturating_neg(),
            format: self.format,
        }
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Quantity>>(iter: I) -> Quantity {
        iter.fold(Quantity::ZERO, Add::add)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Quantity, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Quantity::from_value(&value).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn q(s: &str) -> Quantity {
        s.parse().unwrap()
    }

    #[test]
    fn canonical_forms_are_those_the_server_prints() {
        for (text, canonical) in [
            ("0", "0"),
            ("0.0", "0"),
            ("-0", "0"),
            ("1", "1"),
            ("+1", "1"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1500m", "1500m"),
            ("1.5", "1500m"),
            ("100000", "100k"),
            ("1024", "1024"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("1Ki", "1Ki"),
            ("1000Ki", "1000Ki"),
            ("512Ki", "512Ki"),
            ("0.5Ki", "512"),
            ("0.1Ki", "102400m"),
            ("1e3", "1e3"),
            ("12e6", "12e6"),
            ("1E3", "1e3"),
            ("1E", "1E"),
            ("1.1E", "1100P"),
            ("0.001m", "1u"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            (".5", "500m"),
            ("5.", "5"),
            ("-1.5Gi", "-1536Mi"),
            ("100e-3", "100e-3"),
            ("1234567890", "1234567890"),
            ("0.0000000001", "1n"),
            ("-1500m", "-1500m"),
            ("00010", "10"),
            ("8Ei", "9223372036854775807"),
            ("1000E", "1000E"),
            ("1.00000000000000000001", "1000000001n"),
            ("0.3333333333333333333333Ki", "341333333334n"),
        ] {
            assert_eq!(q(text).to_string(), canonical, "{text}");
            assert_eq!(q(canonical).to_string(), canonical, "{canonical} again");
        }
    }

    #[test]
    fn nonsense_is_refused_in_upstreams_words() {
        use ParseQuantityError::*;
        for (text, error) in [
            ("", FormatWrong),
            ("aoeu", FormatWrong),
            ("1.1.M", FormatWrong),
            ("1+1.0M", FormatWrong),
            ("0.1am", FormatWrong),
            (" 1", FormatWrong),
            ("1 Gi", FormatWrong),
            ("-", FormatWrong),
            (".", FormatWrong),
            ("0.1mi", Suffix),
            (".5i", Suffix),
            ("1i", Suffix),
            ("-3.01e-", Suffix),
            ("1KiB", FormatWrong),
            ("1K", Suffix),
            ("1Gi5", Suffix),
            ("1e99999999999", Suffix),
            ("1é", FormatWrong),
        ] {
            assert_eq!(text.parse::<Quantity>(), Err(error), "{text}");
        }
        assert!("9".repeat(300).parse::<Quantity>().is_err());
    }

    #[test]
    fn values_round_away_from_zero_and_clamp() {
        assert_eq!(q("1500m").value(), 2);
        assert_eq!(q("-1500m").value(), -2);
        assert_eq!(q("1n").milli_value(), 1);
        assert_eq!(q("250m").milli_value(), 250);
        assert_eq!(q("1e30").value(), i64::MAX);
        assert_eq!(q("1e2000").value(), i64::MAX);
        assert_eq!(q("-1e2000").value(), i64::MIN);
        assert_eq!(q("1e-2000").value(), 1);
        assert_eq!(q("0e2000").value(), 0);
        assert_eq!(q("1Gi").value(), 1 << 30);
        assert_eq!(q("9".repeat(200).as_str()).value(), i64::MAX);
        assert_eq!(
            format!("{}Ei", "9".repeat(200))
                .parse::<Quantity>()
                .unwrap()
                .value(),
            i64::MAX
        );
    }

    #[test]
    fn numbers_compare_and_add_whatever_their_format() {
        assert_eq!(q("1000m"), q("1"));
        assert!(q("1Gi") > q("1G"));
        assert_eq!((q("1Gi") + q("1Gi")).to_string(), "2Gi");
        assert_eq!((Quantity::ZERO + q("1Gi")).to_string(), "1Gi");
        assert_eq!((q("2") - q("500m")).to_string(), "1500m");
        assert_eq!([q("1"), q("2")].into_iter().sum::<Quantity>(), q("3"));
    }

    #[test]
    fn json_strings_and_numbers_are_read() {
        assert_eq!(Quantity::from_value(&serde_json::json!(2)).unwrap(), q("2"));
        assert_eq!(
            Quantity::from_value(&serde_json::json!(0.5)).unwrap(),
            q("500m")
        );
        assert!(Quantity::from_value(&serde_json::json!(true)).is_err());
        assert_eq!(serde_json::to_string(&q("1024Mi")).unwrap(), "\"1Gi\"");
    }
}
