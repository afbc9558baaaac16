//! The Kubernetes API on SQLite, the scheduler and the controllers
