//! Which form an answer takes: the `Accept` header against what we can write.
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/#receiving-resources-as-tables>

use amphipod_api::Status;
use http::HeaderMap;
use http::header::{ACCEPT, ACCEPT_ENCODING, USER_AGENT};

use super::query::Query;

/// How the answer is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
}

/// What the answer shows of the objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The objects themselves.
    Whole,
    /// `meta.k8s.io` Table of this version.
    Table(&'static str),
    /// `PartialObjectMetadata`, or its list, of this version.
    Metadata(&'static str),
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    pub encoding: Encoding,
    pub view: View,
    pub pretty: bool,
}

/// Media types that we write, in the order in which 406 lists them.
const OFFERED: &[&str] = &["application/json", "application/yaml"];

/// What an endpoint can show beside whole objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offers {
    /// Tables and metadata: objects and lists.
    Views,
    /// Only what it is: reviews, discovery, subresources of another kind.
    Whole,
}

impl Form {
    /// Plain JSON: errors, and whoever does not care.
    pub const JSON: Form = Form {
        encoding: Encoding::Json,
        view: View::Whole,
        pretty: false,
    };

    /// Picks the first acceptable form.
    ///
    /// # Errors
    /// 406 with what we offer.
    pub fn negotiate(headers: &HeaderMap, query: &Query, offers: Offers) -> Result<Form, Status> {
        let pretty = wants_pretty(headers, query);
        let mut stated = false;
        let mut best: Option<(u32, Form)> = None;
        for value in headers.get_all(ACCEPT) {
            let Ok(text) = value.to_str() else { continue };
            for clause in text.split(',').filter(|c| !c.trim().is_empty()) {
                stated = true;
                let Some((quality, encoding, view)) = read_clause(clause, offers) else {
                    continue;
                };
                if quality > 0 && best.is_none_or(|(q, _)| quality > q) {
                    best = Some((
                        quality,
                        Form {
                            encoding,
                            view,
                            pretty,
                        },
                    ));
                }
            }
        }
        match best {
            Some((_, form)) => Ok(form),
            None if !stated => Ok(Form {
                pretty,
                ..Form::JSON
            }),
            None => Err(Status::not_acceptable(OFFERED)),
        }
    }

    /// The answer's media type.
    pub fn content_type(self) -> &'static str {
        match self.encoding {
            Encoding::Json => "application/json",
            Encoding::Yaml => "application/yaml",
        }
    }
}

/// `application/json;as=Table;v=v1;g=meta.k8s.io;q=0.9`: quality in thousandths, and the form, if we offer it.
fn read_clause(clause: &str, offers: Offers) -> Option<(u32, Encoding, View)> {
    let mut parts = clause.split(';').map(str::trim);
    let encoding = match parts.next()? {
        "application/json" | "*/*" | "application/*" => Encoding::Json,
        "application/yaml" => Encoding::Yaml,
        _ => return None,
    };
    let (mut kind, mut group, mut version, mut quality) = ("", "", "", 1000);
    for part in parts {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let value = value.trim().trim_matches('"');
        match key.trim() {
            "as" => kind = value,
            "g" => group = value,
            "v" => version = value,
            "q" => {
                quality = value
                    .parse::<f32>()
                    .map_or(1000, |q| (q.clamp(0.0, 1.0) * 1000.0) as u32)
            }
            // `stream=watch`, `charset`, `profile`: nothing that changes what we write.
            _ => {}
        }
    }
    if kind.is_empty() {
        return Some((quality, encoding, View::Whole));
    }
    let version = match version {
        "v1" => "v1",
        "v1beta1" => "v1beta1",
        _ => return None,
    };
    if group != "meta.k8s.io" || offers == Offers::Whole {
        return None;
    }
    let view = match kind {
        "Table" => View::Table(version),
        "PartialObjectMetadata" | "PartialObjectMetadataList" => View::Metadata(version),
        _ => return None,
    };
    Some((quality, encoding, view))
}

/// Humans with a browser or curl get indented JSON, as does who asks with `pretty`.
fn wants_pretty(headers: &HeaderMap, query: &Query) -> bool {
    if let Some(pretty) = query.optional_flag("pretty") {
        return pretty;
    }
    headers
        .get(USER_AGENT)
        .and_then(|agent| agent.to_str().ok())
        .is_some_and(|agent| {
            ["curl/", "Wget/", "Mozilla/5.0"]
                .iter()
                .any(|p| agent.starts_with(p))
        })
}

/// Whether the client takes gzip.
pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers
        .get(ACCEPT_ENCODING)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|text| {
            text.split(',').any(|clause| {
                let mut parts = clause.split(';').map(str::trim);
                parts.next() == Some("gzip") && !parts.any(|p| p == "q=0" || p == "q=0.0")
            })
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn form(accept: &str, offers: Offers) -> Result<Form, Status> {
        let mut headers = HeaderMap::new();
        if !accept.is_empty() {
            headers.insert(ACCEPT, accept.parse().unwrap());
        }
        Form::negotiate(&headers, &Query::default(), offers)
    }

    #[test]
    fn kubectl_gets_its_table() {
        let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(form(accept, Offers::Views).unwrap().view, View::Table("v1"));
        assert_eq!(form(accept, Offers::Whole).unwrap(), Form::JSON);
    }

    #[test]
    fn clients_that_prefer_protobuf_get_json() {
        let accept =
            "application/vnd.kubernetes.protobuf;stream=watch,application/json;stream=watch";
        assert_eq!(form(accept, Offers::Views).unwrap(), Form::JSON);
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        assert_eq!(
            form(metadata, Offers::Views).unwrap().view,
            View::Metadata("v1")
        );
    }

    #[test]
    fn what_we_cannot_write_is_not_acceptable() {
        assert_eq!(
            form("application/vnd.kubernetes.protobuf", Offers::Views)
                .unwrap_err()
                .code,
            406
        );
        assert_eq!(form("text/html", Offers::Views).unwrap_err().code, 406);
        assert_eq!(
            form(
                "application/json;as=Chair;v=v1;g=meta.k8s.io",
                Offers::Views
            )
            .unwrap_err()
            .code,
            406
        );
        assert_eq!(form("", Offers::Views).unwrap(), Form::JSON);
        assert_eq!(
            form("text/html, */*;q=0.8", Offers::Views).unwrap(),
            Form::JSON
        );
        assert_eq!(
            form("application/json;q=0.5,application/yaml", Offers::Views)
                .unwrap()
                .encoding,
            Encoding::Yaml
        );
    }
}
