//! `/livez`, `/readyz`, `/healthz`: named checks, each also asked alone as `/readyz/NAME`.
//! <https://kubernetes.io/docs/reference/using-api/health-checks/>

use http::{Response, StatusCode};

use super::body::Body;
use super::query::Query;
use super::respond;

/// A check: its name and what it finds.
type Check = (
    &'static str,
    Box<dyn Fn() -> Result<(), String> + Send + Sync>,
);

/// All checks of the server.
#[derive(Default)]
pub struct Health {
    checks: Vec<Check>,
}

impl Health {
    /// Adds a check. It must answer at once.
    pub fn with(
        mut self,
        name: &'static str,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.checks.push((name, Box::new(check)));
        self
    }

    /// Answers one of the paths; `None` if there is no such check.
    pub fn answer(&self, path: &str, query: &Query) -> Option<Response<Body>> {
        let (kind, only) = match path.trim_start_matches('/').split_once('/') {
            Some((kind, only)) => (kind, Some(only.trim_end_matches('/'))),
            None => (path.trim_start_matches('/'), None),
        };
        // A server that cannot serve may still be alive: only /readyz and /healthz run the named checks.
        let mut lines = String::from("[+]ping ok\n");
        let mut failed = Vec::new();
        let excluded: Vec<&str> = query.all("exclude").collect();
        let mut found = only.is_none_or(|only| only == "ping");
        if kind != "livez" || only.is_some() {
            for (name, check) in &self.checks {
                if only.is_some_and(|only| only != *name) {
                    continue;
                }
                found = true;
                if excluded.contains(name) {
                    lines.push_str(&format!("[+]{name} excluded: ok\n"));
                    continue;
                }
                match check() {
                    Ok(()) => lines.push_str(&format!("[+]{name} ok\n")),
                    Err(why) => {
                        tracing::warn!(check = name, %why, "a health check fails");
                        lines.push_str(&format!("[-]{name} failed: reason withheld\n"));
                        failed.push(*name);
                    }
                }
            }
        }
        if !found {
            return None;
        }
        if !failed.is_empty() {
            lines.push_str(&format!("{kind} check failed\n"));
            return Some(respond::text(StatusCode::INTERNAL_SERVER_ERROR, lines));
        }
        if query.get("verbose").is_some() && only.is_none() {
            lines.push_str(&format!("{kind} check passed\n"));
            return Some(respond::text(StatusCode::OK, lines));
        }
        Some(respond::text(StatusCode::OK, "ok"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ask(path: &str, query: &str) -> Option<(u16, String)> {
        let health = Health::default()
            .with("store", || Ok(()))
            .with("broken", || Err("no".to_owned()));
        let response = health.answer(path, &Query::parse(query))?;
        let code = response.status().as_u16();
        let Body::Full(bytes) = response.into_body() else {
            panic!("no body")
        };
        Some((code, String::from_utf8(bytes.to_vec()).unwrap()))
    }

    #[test]
    fn one_failed_check_makes_the_server_unready_but_not_dead() {
        let (code, text) = ask("/readyz", "").unwrap();
        assert_eq!(code, 500);
        assert!(text.contains("[-]broken failed: reason withheld"), "{text}");
        assert!(text.ends_with("readyz check failed\n"), "{text}");
        assert_eq!(ask("/livez", "").unwrap(), (200, "ok".to_owned()));
        assert_eq!(ask("/readyz", "exclude=broken").unwrap().0, 200);
    }

    #[test]
    fn checks_can_be_asked_alone() {
        assert_eq!(ask("/readyz/store", "").unwrap(), (200, "ok".to_owned()));
        assert_eq!(ask("/readyz/ping", "").unwrap().0, 200);
        assert_eq!(ask("/readyz/else", ""), None);
        let (_, text) = ask("/readyz", "verbose&exclude=broken").unwrap();
        assert!(text.contains("[+]store ok"), "{text}");
    }
}
