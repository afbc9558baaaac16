//! The reflector against a server that changes, breaks, forgets and comes back.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
use std::time::Duration;

use amphipod_api::client::Target;
use amphipod_api::reflector::{Backoff, Connection, Event, Reflector, ReflectorConfig};
use support::{FakeServer, revision_of};

fn reflect(server: &FakeServer) -> Reflector {
    let backoff = Backoff {
        min: Duration::from_millis(1),
        max: Duration::from_millis(20),
    };
    let config = ReflectorConfig {
        backoff,
        ..ReflectorConfig::default()
    };
    Reflector::spawn(
        server.client(),
        Target::core("configmaps").namespace("d"),
        config,
    )
}

/// What a consumer knows, with the rules that it relies on.
#[derive(Default)]
struct Consumer {
    picture: HashMap<String, String>,
    restarts: usize,
    last: u64,
}

impl Consumer {
    fn take(&mut self, event: Event) {
        match event {
            Event::Restarted(objects) => {
                self.restarts += 1;
                self.picture = objects.iter().map(|o| revision_of(o)).collect();
                let newest = self.picture.values().map(|r| r.parse().unwrap()).max();
                self.last = self.last.max(newest.unwrap_or(0));
            }
            Event::Applied(object) => {
                let (name, revision) = revision_of(&object);
                self.advance(&revision);
                self.picture.insert(name, revision);
            }
            Event::Deleted(object) => {
                let (name, revision) = revision_of(&object);
                self.advance(&revision);
                assert!(
                    self.picture.remove(&name).is_some(),
                    "{name} was deleted twice, or never told of"
                );
            }
        }
    }

    /// Changes come once and in order. (Our fake's revisions have no gaps, so neither may events: checked by the picture.)
    fn advance(&mut self, revision: &str) {
        let revision: u64 = revision.parse().unwrap();
        assert!(revision > self.last, "{revision} after {}", self.last);
        self.last = revision;
    }

    async fn until(&mut self, reflector: &mut Reflector, reached: impl Fn(&Consumer) -> bool) {
        let work = async {
            while !reached(self) {
                self.take(reflector.next().await.unwrap());
            }
        };
        tokio::time::timeout(Duration::from_secs(30), work)
            .await
            .expect("the reflector did not get there");
    }
}

#[tokio::test]
async fn a_new_consumer_gets_all_and_then_each_change() {
    let server = FakeServer::start().await;
    server.put("a");
    let mut reflector = reflect(&server);
    let mut consumer = Consumer::default();
    consumer.until(&mut reflector, |c| c.restarts == 1).await;
    assert_eq!(consumer.picture, server.picture());
    server.put("b");
    server.put("a");
    server.delete("b");
    consumer.until(&mut reflector, |c| c.last == 4).await;
    assert_eq!((consumer.picture, consumer.restarts), (server.picture(), 1));
}

#[tokio::test]
async fn servers_without_streaming_lists_are_listed() {
    let server = FakeServer::start().await;
    server.refuse_streaming_lists();
    server.put("a");
    let mut reflector = reflect(&server);
    let mut consumer = Consumer::default();
    consumer.until(&mut reflector, |c| c.restarts == 1).await;
    server.put("b");
    consumer.until(&mut reflector, |c| c.last == 2).await;
    assert_eq!(consumer.picture, server.picture());
}

#[tokio::test]
async fn broken_connections_cost_no_change_and_repeat_none() {
    let server = FakeServer::start().await;
    let mut reflector = reflect(&server);
    let mut consumer = Consumer::default();
    consumer.until(&mut reflector, |c| c.restarts == 1).await;
    for round in 0..30u64 {
        for i in 0..7 {
            server.put(&format!("o{}", (round * 7 + i) % 10));
        }
        server.cut_connections();
        server.put("x");
        server.delete("x");
        let target = (round + 1) * 9;
        consumer.until(&mut reflector, |c| c.last == target).await;
    }
    assert_eq!((consumer.picture, consumer.restarts), (server.picture(), 1));
}

#[tokio::test]
async fn lost_history_is_told_as_a_restart() {
    let server = FakeServer::start().await;
    server.put("a");
    server.put("b");
    let mut reflector = reflect(&server);
    let mut consumer = Consumer::default();
    consumer.until(&mut reflector, |c| c.restarts == 1).await;
    server.go_away();
    server.delete("a");
    server.put("c");
    server.compact();
    server.come_back();
    consumer.until(&mut reflector, |c| c.restarts == 2).await;
    assert_eq!(consumer.picture, server.picture());
}

#[tokio::test]
async fn the_connection_is_told_as_it_is() {
    let server = FakeServer::start().await;
    let reflector = reflect(&server);
    let mut connection = reflector.connection();
    let reach = |wanted: fn(&Connection) -> bool| {
        let mut connection = connection.clone();
        async move {
            tokio::time::timeout(Duration::from_secs(30), connection.wait_for(wanted))
                .await
                .unwrap()
                .map(drop)
                .unwrap()
        }
    };
    reach(|c| *c == Connection::Connected).await;
    server.go_away();
    reach(|c| matches!(c, Connection::Disconnected(_))).await;
    server.come_back();
    reach(|c| *c == Connection::Connected).await;
    connection.mark_unchanged();
}

#[tokio::test]
async fn a_single_object_is_watched_by_its_name() {
    let server = FakeServer::start().await;
    let target = Target::core("configmaps").namespace("d").name("a");
    let mut reflector = Reflector::spawn(server.client(), target, ReflectorConfig::default());
    assert_eq!(reflector.next().await, Some(Event::Restarted(Vec::new())));
    assert!(
        server.requests()[0].contains("fieldSelector=metadata.name%3Da&"),
        "{:?}",
        server.requests()
    );
}
