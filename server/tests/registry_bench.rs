//! What a write costs, without HTTP: `cargo test --release -p amphipod-server --test registry_bench -- --ignored --nocapture`
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use amphipod_server::auth::UserInfo;
use amphipod_server::cache::Cache;
use amphipod_server::registry::{Context, Input, ListOptions, Open, Registry};
use amphipod_server::resources::{Catalog, ClusterConfig, Privileges};
use amphipod_server::store::{Options, SqliteStore, Store};
use bytes::Bytes;
use serde_json::Value;

struct All;

impl Privileges for All {
    fn may(&self, _: &UserInfo, _: &str, _: &str, _: &str, _: &str, _: &str) -> bool {
        true
    }
    fn covers(&self, _: &UserInfo, _: &str, _: &[Value]) -> Result<(), String> {
        Ok(())
    }
}

fn cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let of = |time: nix::sys::time::TimeVal| {
        Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000)
    };
    of(usage.user_time()) + of(usage.system_time())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn creates_per_second() {
    let dir = tempfile::TempDir::new().unwrap();
    let store: Arc<dyn Store> =
        Arc::new(SqliteStore::open(&dir.path().join("state.db"), Options::default()).unwrap());
    let catalog = Arc::new(Catalog::builtin());
    let cache = Cache::start(&*store, Registry::tables(&catalog))
        .await
        .unwrap();
    let registry = Arc::new(Registry::new(
        store.clone(),
        cache,
        catalog,
        Arc::new(Open),
        Arc::new(All),
        ClusterConfig::default(),
    ));
    let user = Arc::new(UserInfo::apiserver());
    let padding = "x".repeat(800);
    for callers in [1, 16, 64] {
        let count = if callers == 1 { 1500 } else { 6000 };
        let next = Arc::new(AtomicUsize::new(0));
        let (begin, begin_cpu) = (Instant::now(), cpu());
        let tasks: Vec<_> = (0..callers)
            .map(|_| {
                let (registry, user, next, padding) = (registry.clone(), user.clone(), next.clone(), padding.clone());
                tokio::spawn(async move {
                    let descriptor = registry.catalog().by_resource("configmaps").unwrap();
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= count {
                            return;
                        }
                        let body = format!(
                            r#"{{"kind":"ConfigMap","apiVersion":"v1","metadata":{{"name":"c{callers}-{n}"}},"data":{{"a":"{padding}"}}}}"#
                        );
                        let cx = Context::new(user.clone(), descriptor.clone(), "default");
                        registry.create(&cx, Input::Json(Bytes::from(body))).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let (took, used) = (begin.elapsed(), cpu() - begin_cpu);
        println!(
            "{callers:>3} callers: {:>6.0} creates/s, {:.3} ms CPU each",
            count as f64 / took.as_secs_f64(),
            used.as_secs_f64() * 1000.0 / count as f64
        );
    }
    let cx = Context::new(
        user.clone(),
        registry.catalog().by_resource("configmaps").unwrap(),
        "",
    );
    let begin = Instant::now();
    let listed = registry.list(&cx, &ListOptions::default()).await.unwrap();
    let bytes: usize = listed.chunks(&cx.descriptor).iter().map(Bytes::len).sum();
    println!(
        "list of {} objects, {bytes} bytes: {:.2} ms",
        listed.items.len(),
        begin.elapsed().as_secs_f64() * 1000.0
    );

    let (events, watchers) = (200, 100);
    let descriptor = cx.descriptor.clone();
    let begin = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..watchers {
        let options = ListOptions {
            resource_version: listed.revision.to_string(),
            ..ListOptions::default()
        };
        let mut stream = registry.watch(&cx, options).await.unwrap();
        let descriptor = descriptor.clone();
        tasks.push(tokio::spawn(async move {
            let (mut seen, mut bytes) = (0, 0);
            while seen < events {
                for item in stream.next().await.unwrap() {
                    bytes += item.line(&descriptor).len();
                    seen += 1;
                }
            }
            bytes
        }));
    }
    let target = Context::new(user, descriptor, "default");
    let cpu_before = cpu();
    for n in 0..events {
        registry
            .update_with(&target, "c1-0", |object| {
                object["data"]["n"] = n.to_string().into();
                Ok(())
            })
            .await
            .unwrap();
    }
    for task in tasks {
        task.await.unwrap();
    }
    let each = (cpu() - cpu_before).as_secs_f64() * 1e6 / f64::from(events * watchers);
    println!(
        "{events} updates to {watchers} watchers: {:.0} events/s, {each:.2} µs CPU each, writes included",
        f64::from(events * watchers) / begin.elapsed().as_secs_f64()
    );

    drop(registry);
    store.close().await.unwrap();
    drop(store);
    let begin = Instant::now();
    let store = SqliteStore::open(&dir.path().join("state.db"), Options::default()).unwrap();
    let opened = begin.elapsed();
    let cache = Cache::start(&store, Registry::tables(&Catalog::builtin()))
        .await
        .unwrap();
    println!(
        "start with {} objects: open and check {:.1} ms, fill the cache {:.1} ms",
        cache.table("configmaps").unwrap().len(),
        opened.as_secs_f64() * 1000.0,
        (begin.elapsed() - opened).as_secs_f64() * 1000.0
    );
}
