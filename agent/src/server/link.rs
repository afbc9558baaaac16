//! Whether the server can be reached, as the pods' reflector last saw it.

use amphipod_api::reflector::Connection;
use tokio::sync::watch;

/// Cheap to clone.
#[derive(Clone)]
pub struct Link {
    state: watch::Receiver<Connection>,
}

impl Link {
    pub fn new(state: watch::Receiver<Connection>) -> Self {
        Self { state }
    }

    pub fn connected(&self) -> bool {
        *self.state.borrow() == Connection::Connected
    }

    /// Returns once the server can be reached (again).
    pub async fn wait_connected(&self) {
        let mut state = self.state.clone();
        if state
            .wait_for(|s| *s == Connection::Connected)
            .await
            .is_err()
        {
            std::future::pending::<()>().await;
        }
    }

    /// After a failed request: waits until the server is there, but at least a moment, so that a server that answers with
    /// errors is not asked in a tight loop.
    pub async fn wait_retry(&self, failures: u32) {
        let delay = amphipod_api::reflector::Backoff::default().delay(failures);
        tokio::time::sleep(delay).await;
        self.wait_connected().await;
    }
}
