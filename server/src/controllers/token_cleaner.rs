//! Takes away bootstrap tokens whose time is over.

use std::time::Duration;

use jiff::Timestamp;

use super::{Controller, Key, Outcome, Reconciling, Result, Source, Tools};
use crate::auth::bootstrap_token::{NAMESPACE, Token};

pub struct TokenCleaner;

impl Controller for TokenCleaner {
    fn name(&self) -> &'static str {
        "token-cleaner"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::new("secrets", |_, event| {
            let meta = &event.object.meta;
            let token = *meta.namespace == *NAMESPACE && meta.name.starts_with("bootstrap-token-");
            if token {
                vec![Key::new(&meta.namespace, &meta.name)]
            } else {
                Vec::new()
            }
        })]
    }

    fn reconcile<'a>(&'a self, tools: &'a Tools, key: &'a Key) -> Reconciling<'a> {
        Box::pin(reconcile(tools, key))
    }
}

async fn reconcile(tools: &Tools, key: &Key) -> Result<Outcome> {
    let secret = tools.table("secrets").get(&key.namespace, &key.name);
    let token = secret.and_then(|object| Token::of(&object.value()));
    let Some(end) = token.and_then(|token| token.expiration) else {
        return Ok(Outcome::Done);
    };
    if let Ok(left) = Duration::try_from(end.duration_since(Timestamp::now()))
        && !left.is_zero()
    {
        return Ok(Outcome::After(left));
    }
    let cx = tools.context("secrets", &key.namespace)?;
    tools
        .registry
        .delete(&cx, &key.name, &Default::default())
        .await?;
    Ok(Outcome::Done)
}
