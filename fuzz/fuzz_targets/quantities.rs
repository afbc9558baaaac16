//! Quantities: printing and reading is the identity on the number; the order is one, and sums keep it. Two or three, one a line.
#![no_main]

use amphipod_api::Quantity;
use libfuzzer_sys::fuzz_target;

/// Where sums and prints begin to saturate.
const LARGE: i128 = i128::MAX / 4;

fuzz_target!(|data: &str| {
    let all: Vec<Quantity> = data
        .lines()
        .take(3)
        .filter_map(|line| line.parse().ok())
        .collect();
    for quantity in &all {
        let text = quantity.to_string();
        let again: Quantity = text
            .parse()
            .unwrap_or_else(|e| panic!("{quantity:?} prints as {text:?}: {e}"));
        assert_eq!(again, *quantity, "{text:?}");
        assert_eq!(again.to_string(), text, "the canonical form is not stable");
        assert_eq!(-(-*quantity), *quantity);
        let (value, milli) = (quantity.value(), quantity.milli_value());
        if quantity.nano_value().abs() < i128::from(i64::MAX) {
            assert!(
                i128::from(milli) <= i128::from(value) * 1000 || value < 0,
                "{text}"
            );
        }
        let _ = quantity.as_f64();
    }
    for (a, b) in all.iter().zip(all.iter().skip(1)) {
        assert_eq!(a.cmp(b), b.cmp(a).reverse());
        assert_eq!(a.cmp(b), a.nano_value().cmp(&b.nano_value()));
        if a.nano_value().abs() < LARGE && b.nano_value().abs() < LARGE {
            assert_eq!(*a + *b - *b, *a);
            assert_eq!(*a + *b, *b + *a);
        }
    }
    if let [a, b, c] = all[..] {
        assert!(!(a <= b && b <= c) || a <= c);
        assert!(
            a > b || a + c <= b + c,
            "{a} <= {b}, but not with {c} added to both"
        );
    }
});
