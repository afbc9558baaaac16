//! The commands about the fleet: thin clients of the running server, in the administrator's name.

use amphipod_api::client::{Client, ListParams, Target};
use amphipod_api::join::{JoinToken, node_path};
use amphipod_api::{kubeconfig, pki};
use amphipod_server::auth::bootstrap_token::{NAMESPACE, TYPE, Token, new_secret, secret_name};
use anyhow::{Context, Result, anyhow, bail};
use http::Method;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::cli::{AdminArgs, NodeCommand, TokenCommand};

/// A client of the server, and its CA.
fn admin(args: &AdminArgs) -> Result<(Client, String)> {
    let path = args.kubeconfig.display();
    let text = std::fs::read_to_string(&args.kubeconfig)
        .with_context(|| format!("reading {path}; is this the server's box, and are you root?"))?;
    let config = kubeconfig::parse(&text).map_err(|why| anyhow!("{path}: {why}"))?;
    let ca = config.ca_pem.clone();
    Ok((Client::new(config)?, ca))
}

fn secrets() -> Target {
    Target::core("secrets").namespace(NAMESPACE)
}

/// `amphipod token`.
pub async fn token(command: TokenCommand) -> Result<()> {
    match command {
        TokenCommand::Create {
            ttl,
            description,
            admin: args,
        } => {
            let (client, ca) = admin(&args)?;
            let token = JoinToken::generate(pki::ca_hash(&ca)?).map_err(|why| anyhow!(why))?;
            let end = match SignedDuration::try_from(ttl)? {
                SignedDuration::ZERO => None,
                ttl => Some(
                    Timestamp::now()
                        .checked_add(ttl)
                        .context("--ttl is too long")?,
                ),
            };
            let server = address(&client).await?;
            client
                .create(
                    &secrets(),
                    &new_secret(&token.id, &token.secret, end, &description),
                )
                .await
                .context("storing the token")?;
            println!("amphipod agent --server {server} --token {token}");
        }
        TokenCommand::List { admin: args } => {
            let (client, _) = admin(&args)?;
            let params = ListParams {
                field_selector: format!("type={TYPE}"),
                ..Default::default()
            };
            let listed = client
                .list(&secrets(), &params)
                .await
                .context("listing the tokens")?;
            print!("{}", table(&listed.items, Timestamp::now()));
        }
        TokenCommand::Delete { token, admin: args } => {
            let (client, _) = admin(&args)?;
            let id = token.split('.').next().unwrap_or_default();
            let target = secrets().name(&secret_name(id));
            match client.delete(&target, &json!({})).await {
                Ok(_) => println!("token {id} deleted"),
                Err(error) if error.is_not_found() => {
                    bail!("there is no token {id:?}; `amphipod token list` lists them")
                }
                Err(error) => return Err(error).context("deleting the token"),
            }
        }
    }
    Ok(())
}

/// `amphipod node`.
pub async fn node(command: NodeCommand) -> Result<()> {
    match command {
        NodeCommand::Remove { name, admin: args } => {
            let (client, _) = admin(&args)?;
            client
                .raw(Method::DELETE, &node_path(&name), None)
                .await
                .with_context(|| format!("removing node {name}"))?;
            println!("node {name} removed; its credentials are refused from now on");
        }
    }
    Ok(())
}

/// The URL by which other boxes reach the server: the endpoint of the service `kubernetes`.
async fn address(client: &Client) -> Result<String> {
    let target = Target::core("endpoints")
        .namespace("default")
        .name("kubernetes");
    let endpoints = client
        .get(&target)
        .await
        .context("asking for the server's address")?;
    let subset = &endpoints["subsets"][0];
    let ip = subset["addresses"][0]["ip"]
        .as_str()
        .context("the server has no address that other boxes could reach")?;
    let ip = if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.to_owned()
    };
    Ok(format!(
        "https://{ip}:{}",
        subset["ports"][0]["port"].as_u64().unwrap_or(6443)
    ))
}

/// The tokens as a table, those that end first at the top.
fn table(secrets: &[Value], now: Timestamp) -> String {
    let mut tokens: Vec<Token> = secrets.iter().filter_map(Token::of).collect();
    tokens.sort_by_key(|token| {
        (
            token.expiration.is_none(),
            token.expiration,
            token.id.clone(),
        )
    });
    let mut text = format!(
        "{:<8}{:<10}{:<22}{}\n",
        "ID", "TTL", "EXPIRES", "DESCRIPTION"
    );
    for token in tokens {
        let (left, end) = match token.expiration {
            None => ("forever".to_owned(), "never".to_owned()),
            Some(_) if token.expired(now) => ("expired".to_owned(), String::new()),
            Some(end) => (
                amphipod_api::time::human_duration(end.duration_since(now)),
                amphipod_api::time::format_time(end),
            ),
        };
        text.push_str(
            format!("{:<8}{left:<10}{end:<22}{}", token.id, token.description).trim_end(),
        );
        text.push('\n');
    }
    text
}
