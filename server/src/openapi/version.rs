//! `/version`.

use serde_json::{Value, json};

/// The Kubernetes version whose API this is.
const MAJOR_MINOR: (&str, &str) = ("1", "36");

/// `version.Info`: clients read major and minor, and want a hexadecimal commit.
pub fn version() -> Value {
    let (major, minor) = MAJOR_MINOR;
    json!({
        "major": major,
        "minor": minor,
        "gitVersion": format!("v{major}.{minor}.0+amphipod"),
        "gitCommit": option_env!("AMPHIPOD_COMMIT").unwrap_or("0000000000000000000000000000000000000000"),
        "gitTreeState": "clean",
        "buildDate": option_env!("AMPHIPOD_BUILD_DATE").unwrap_or("1970-01-01T00:00:00Z"),
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("linux/{}", architecture()),
    })
}

/// The processor by Go's names, which images and node labels use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}
