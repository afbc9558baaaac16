//! How an instance ended, told as `state.terminated` tells it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use amphipod_runtime::Exit as RuntimeExit;
use jiff::Timestamp;

use crate::pod::observed::Exit;

/// Most bytes of a termination message.
const MESSAGE_LIMIT: u64 = 4096;
/// Most bytes and lines of log shown instead (FallbackToLogsOnError).
const LOG_LIMIT: usize = 2048;
const LOG_LINES: usize = 80;

/// The exit of an instance in the API's terms.
pub fn describe(
    id: &str,
    exit: &RuntimeExit,
    started_at: Option<Timestamp>,
    message: String,
) -> Exit {
    let reason = if exit.lost {
        "ContainerStatusUnknown"
    } else if exit.oom_killed {
        "OOMKilled"
    } else if exit.code == 0 {
        "Completed"
    } else {
        "Error"
    };
    let message = match (exit.lost, message.is_empty()) {
        (true, true) => {
            "The container could not be located when the pod was terminated".to_string()
        }
        _ => message,
    };
    Exit {
        id: id.to_string(),
        code: if exit.lost { 137 } else { exit.code },
        signal: None,
        reason: reason.into(),
        message,
        started_at,
        finished_at: Some(exit.finished_at),
    }
}

/// What the container left in its termination log, or (if it may and it failed) the end of its log.
pub fn message(file: &Path, log: &Path, fallback: bool, failed: bool) -> String {
    let mut text = String::new();
    if let Ok(f) = File::open(file) {
        let mut bytes = Vec::new();
        let _ = f.take(MESSAGE_LIMIT).read_to_end(&mut bytes);
        text = String::from_utf8_lossy(&bytes).into_owned();
    }
    if text.is_empty() && fallback && failed {
        text = log_tail(log).unwrap_or_default();
    }
    text
}

/// The last lines of a CRI log (`TIME stdout F text`), without their prefixes.
fn log_tail(log: &Path) -> std::io::Result<String> {
    let mut f = File::open(log)?;
    let size = f.metadata()?.len();
    // Prefixes take room too; 16 KiB hold 80 lines of 2048 bytes together.
    f.seek(SeekFrom::Start(size.saturating_sub(16 * 1024)))?;
    let mut bytes = Vec::new();
    f.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines().filter(|l| !l.is_empty()) {
        let mut parts = line.splitn(4, ' ');
        let (Some(_), Some(_), Some(tag), content) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next().unwrap_or_default(),
        ) else {
            continue;
        };
        let mut line = content.to_string();
        if tag.starts_with('F') {
            line.push('\n');
        }
        lines.push(line);
    }
    let from = lines.len().saturating_sub(LOG_LINES);
    let tail = lines[from..].concat();
    let mut cut = tail.len().saturating_sub(LOG_LIMIT);
    while !tail.is_char_boundary(cut) {
        cut += 1;
    }
    Ok(tail[cut..].to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_failed_container_without_message_shows_the_end_of_its_log_if_asked() {
        let dir = std::env::temp_dir().join(format!("amphipod-termination-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (file, log) = (dir.join("m"), dir.join("l"));
        std::fs::write(&log, "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:00Z stderr P tw\n2026-01-01T00:00:00Z stderr F o\n").unwrap();
        assert_eq!(message(&file, &log, true, true), "one\ntwo\n");
        assert_eq!(message(&file, &log, true, false), "");
        assert_eq!(message(&file, &log, false, true), "");
        std::fs::write(&file, "why").unwrap();
        assert_eq!(message(&file, &log, true, true), "why");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
