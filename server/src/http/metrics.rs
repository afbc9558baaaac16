//! A few numbers about the server, in Prometheus' text format, under the names that upstream gives them.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;

const VERBS: [&str; 9] = [
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
    "other",
];
/// Classes of status codes: 2xx (and 1xx, 3xx), 4xx, 5xx.
const CLASSES: [&str; 3] = ["2xx", "4xx", "5xx"];
/// Upper bounds of the latency histogram, microseconds.
const BOUNDS: [u64; 8] = [
    500, 1_000, 5_000, 25_000, 100_000, 500_000, 1_000_000, 5_000_000,
];

#[derive(Default)]
struct PerVerb {
    classes: [AtomicU64; CLASSES.len()],
    buckets: [AtomicU64; BOUNDS.len()],
    count: AtomicU64,
    micros: AtomicU64,
}

/// Counters; cheap enough for every request.
#[derive(Default)]
pub struct Metrics {
    verbs: [PerVerb; VERBS.len()],
    watches: Arc<AtomicU64>,
}

/// Counts as one open watch until dropped.
pub struct OpenWatch(Arc<AtomicU64>);

impl Drop for OpenWatch {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// Counts an answered request. The time of a watch is that to its first byte.
    pub fn request(&self, verb: &str, code: StatusCode, took: Duration) {
        let at = VERBS
            .iter()
            .position(|v| *v == verb)
            .unwrap_or(VERBS.len() - 1);
        let per = &self.verbs[at];
        let class = match code.as_u16() {
            400..=499 => 1,
            500.. => 2,
            _ => 0,
        };
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        per.classes[class].fetch_add(1, Ordering::Relaxed);
        per.count.fetch_add(1, Ordering::Relaxed);
        per.micros.fetch_add(micros, Ordering::Relaxed);
        if let Some(bucket) = BOUNDS.iter().position(|b| micros <= *b) {
            per.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a watch while the answer lives.
    pub fn watch_opened(&self) -> OpenWatch {
        self.watches.fetch_add(1, Ordering::Relaxed);
        OpenWatch(self.watches.clone())
    }

    /// The text. `objects`: (resource, how many are stored).
    pub fn text(&self, revision: u64, objects: &[(String, usize)]) -> String {
        let mut out = String::with_capacity(8 << 10);
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "# HELP apiserver_request_total Requests by verb and class of status code."
        );
        let _ = writeln!(out, "# TYPE apiserver_request_total counter");
        for (verb, per) in VERBS.iter().zip(&self.verbs) {
            for (class, n) in CLASSES.iter().zip(&per.classes) {
                if get(n) > 0 {
                    let _ = writeln!(
                        out,
                        "apiserver_request_total{{verb=\"{verb}\",code=\"{class}\"}} {}",
                        get(n)
                    );
                }
            }
        }
        let name = "apiserver_request_duration_seconds";
        let _ = writeln!(
            out,
            "# HELP {name} Time to answer.\n# TYPE {name} histogram"
        );
        for (verb, per) in VERBS
            .iter()
            .zip(&self.verbs)
            .filter(|(_, p)| get(&p.count) > 0)
        {
            let mut sum = 0;
            for (bound, n) in BOUNDS.iter().zip(&per.buckets) {
                sum += get(n);
                let seconds = *bound as f64 / 1e6;
                let _ = writeln!(
                    out,
                    "{name}_bucket{{verb=\"{verb}\",le=\"{seconds}\"}} {sum}"
                );
            }
            let _ = writeln!(
                out,
                "{name}_bucket{{verb=\"{verb}\",le=\"+Inf\"}} {}",
                get(&per.count)
            );
            let _ = writeln!(
                out,
                "{name}_sum{{verb=\"{verb}\"}} {}",
                get(&per.micros) as f64 / 1e6
            );
            let _ = writeln!(out, "{name}_count{{verb=\"{verb}\"}} {}", get(&per.count));
        }
        let _ = writeln!(out, "# HELP apiserver_longrunning_requests Open watches.");
        let _ = writeln!(out, "# TYPE apiserver_longrunning_requests gauge");
        let _ = writeln!(
            out,
            "apiserver_longrunning_requests{{verb=\"watch\"}} {}",
            get(&self.watches)
        );
        let _ = writeln!(
            out,
            "# HELP apiserver_storage_objects Stored objects by resource."
        );
        let _ = writeln!(out, "# TYPE apiserver_storage_objects gauge");
        for (resource, n) in objects {
            let _ = writeln!(
                out,
                "apiserver_storage_objects{{resource=\"{resource}\"}} {n}"
            );
        }
        let _ = writeln!(out, "# HELP amphipod_store_revision The latest revision.");
        let _ = writeln!(
            out,
            "# TYPE amphipod_store_revision counter\namphipod_store_revision {revision}"
        );
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_verb_class_and_time() {
        let metrics = Metrics::default();
        metrics.request("get", StatusCode::OK, Duration::from_micros(700));
        metrics.request("get", StatusCode::NOT_FOUND, Duration::from_millis(2));
        let open = metrics.watch_opened();
        let text = metrics.text(7, &[("pods".to_owned(), 3)]);
        for line in [
            "apiserver_request_total{verb=\"get\",code=\"2xx\"} 1",
            "apiserver_request_total{verb=\"get\",code=\"4xx\"} 1",
            "apiserver_request_duration_seconds_bucket{verb=\"get\",le=\"0.001\"} 1",
            "apiserver_request_duration_seconds_bucket{verb=\"get\",le=\"0.005\"} 2",
            "apiserver_longrunning_requests{verb=\"watch\"} 1",
            "apiserver_storage_objects{resource=\"pods\"} 3",
            "amphipod_store_revision 7",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        drop(open);
        assert!(
            metrics
                .text(7, &[])
                .contains("apiserver_longrunning_requests{verb=\"watch\"} 0")
        );
    }
}
