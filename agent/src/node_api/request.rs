//! What a request to the node API asks for: its path and its query, read.

use amphipod_api::status::Status;
use jiff::{SignedDuration, Timestamp};

use super::logs::LogOptions;
use super::remote::Wanted;

/// The paths of the kubelet's API that the API server and `kubectl` (through it) use. UIDs in paths are optional there; ours are
/// found by namespace and name, and checked against the UID when one is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    Healthz,
    /// `/pods`: the pods of this node, as a PodList.
    Pods,
    /// `/stats/summary`: the kubelet's stats/v1alpha1 Summary.
    StatsSummary,
    /// `/metrics/resource`: usage in Prometheus' text format, as metrics-server reads it.
    ResourceMetrics,
    Logs(Place),
    Exec(Place),
    Attach(Place),
    PortForward(Place),
}

/// A pod, and for most routes a container in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Place {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) uid: Option<String>,
    pub(super) container: String,
}

impl Route {
    /// Reads a path; `None` for one that the API does not have.
    pub(super) fn of(path: &str) -> Option<Route> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let place = |rest: &[&str], with_container: bool| {
            let (pod, container) = if with_container {
                (rest.split_last()?.1, *rest.last()?)
            } else {
                (rest, "")
            };
            let (namespace, name, uid) = match pod {
                [namespace, name] => (namespace, name, None),
                [namespace, name, uid] => (namespace, name, Some((*uid).to_owned())),
                _ => return None,
            };
            Some(Place {
                namespace: (*namespace).to_owned(),
                pod: (*name).to_owned(),
                uid,
                container: container.to_owned(),
            })
        };
        match parts.as_slice() {
            ["healthz"] => Some(Route::Healthz),
            ["pods"] => Some(Route::Pods),
            ["stats", "summary"] => Some(Route::StatsSummary),
            ["metrics", "resource"] => Some(Route::ResourceMetrics),
            ["containerLogs", rest @ ..] => place(rest, true).map(Route::Logs),
            ["exec", rest @ ..] => place(rest, true).map(Route::Exec),
            ["attach", rest @ ..] => place(rest, true).map(Route::Attach),
            ["portForward", rest @ ..] => place(rest, false).map(Route::PortForward),
            _ => None,
        }
    }
}

/// A decoded query string.
#[derive(Debug, Clone, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn of(query: Option<&str>) -> Query {
        Query(
            form_urlencoded::parse(query.unwrap_or_default().as_bytes())
                .into_owned()
                .collect(),
        )
    }

    pub(super) fn all(&self, name: &str) -> Vec<String> {
        self.0
            .iter()
            .filter(|(key, _)| key == name)
            .map(|(_, value)| value.clone())
            .collect()
    }

    fn first(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// True for `1`, `true`, and their like, as Go's `strconv.ParseBool` has it.
    fn flag(&self, name: &str) -> bool {
        matches!(
            self.first(name),
            Some("1" | "t" | "T" | "true" | "TRUE" | "True")
        )
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Status> {
        let bad = |text: &str| {
            Status::bad_request(format!(
                "{name} must be a number that is not negative, not {text:?}"
            ))
        };
        self.first(name)
            .filter(|text| !text.is_empty())
            .map(|text| text.parse().map_err(|_| bad(text)))
            .transpose()
    }

    /// The streams of exec and attach: the kubelet's names (`input`, `output`, `error`) or those of the options objects.
    pub(super) fn wanted(&self) -> Wanted {
        Wanted {
            stdin: self.flag("input") || self.flag("stdin"),
            stdout: self.flag("output") || self.flag("stdout"),
            stderr: self.flag("error") || self.flag("stderr"),
            tty: self.flag("tty"),
        }
    }

    pub(super) fn ports(&self) -> Result<Vec<u16>, Status> {
        let ports = self.all("port").into_iter().chain(self.all("ports"));
        ports
            .flat_map(|list| list.split(',').map(str::to_owned).collect::<Vec<_>>())
            .map(|port| {
                port.parse()
                    .map_err(|_| Status::bad_request(format!("{port:?} is not a port")))
            })
            .collect()
    }

    pub(super) fn log_options(&self, now: Timestamp) -> Result<LogOptions, Status> {
        let since = match (
            self.number("sinceSeconds")?,
            self.first("sinceTime").filter(|time| !time.is_empty()),
        ) {
            (Some(seconds), _) => {
                let ago = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
                Some(now.checked_sub(ago).unwrap_or(Timestamp::MIN))
            }
            (None, Some(time)) => Some(time.parse().map_err(|_| {
                Status::bad_request(format!("sinceTime {time:?} is not an RFC 3339 time"))
            })?),
            (None, None) => None,
        };
        Ok(LogOptions {
            follow: self.flag("follow"),
            previous: self.flag("previous"),
            timestamps: self.flag("timestamps"),
            tail: self.number("tailLines")?,
            since,
            limit_bytes: self.number("limitBytes")?,
            stream: match self.first("stream") {
                Some("Stdout") => Some("stdout"),
                Some("Stderr") => Some("stderr"),
                _ => None,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn paths_of_the_kubelet_are_read() {
        let place = |uid: Option<&str>, container: &str| Place {
            namespace: "ns".into(),
            pod: "pod".into(),
            uid: uid.map(str::to_owned),
            container: container.into(),
        };
        assert_eq!(
            Route::of("/exec/ns/pod/main"),
            Some(Route::Exec(place(None, "main")))
        );
        assert_eq!(
            Route::of("/attach/ns/pod/uid/main"),
            Some(Route::Attach(place(Some("uid"), "main")))
        );
        assert_eq!(
            Route::of("/portForward/ns/pod"),
            Some(Route::PortForward(place(None, "")))
        );
        assert_eq!(
            Route::of("/containerLogs/ns/pod/main"),
            Some(Route::Logs(place(None, "main")))
        );
        assert_eq!(Route::of("/exec/ns"), None);
        assert_eq!(Route::of("/nothing"), None);
    }

    #[test]
    fn queries_are_decoded_in_order() {
        let query = Query::of(Some(
            "command=sh&command=-c&command=echo+a%26b%3D%C3%A9&input=1&tty=true&bad%",
        ));
        assert_eq!(query.all("command"), ["sh", "-c", "echo a&b=é"]);
        assert_eq!(
            query.wanted(),
            Wanted {
                stdin: true,
                tty: true,
                ..Default::default()
            }
        );
    }

    #[test]
    fn log_options_are_read_and_bad_ones_named() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let options = Query::of(Some("tailLines=3&sinceSeconds=60&follow=true"))
            .log_options(now)
            .unwrap();
        assert_eq!((options.tail, options.follow), (Some(3), true));
        assert_eq!(options.since, "2026-01-01T00:00:00Z".parse().ok());
        assert!(
            Query::of(Some("tailLines=-1"))
                .log_options(now)
                .unwrap_err()
                .message
                .contains("tailLines")
        );
        assert!(
            Query::of(Some("sinceTime=yesterday"))
                .log_options(now)
                .is_err()
        );
    }
}
