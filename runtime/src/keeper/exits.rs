//! Processes that end: noticing it, remembering it on disk, telling it.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use super::{Keeper, now_ns, report};
use crate::proto::{Event, ExitRecord, Message, Reply, WireErrorKind};
use crate::sys::process as sys_process;

impl Keeper {
    pub(super) fn check_deadlines(&mut self) {
        let now = Instant::now();
        let due: Vec<u32> = self
            .containers
            .iter()
            .filter(|(_, c)| c.deadline().is_some_and(|at| at <= now))
            .map(|(index, _)| *index)
            .collect();
        for index in due {
            self.drop_stalled(index, now);
            let lost = self
                .containers
                .get(&index)
                .is_some_and(|c| c.status_deadline.is_some_and(|at| at <= now));
            if lost {
                self.note_lost(index);
            }
        }
    }

    pub(super) fn take_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if info.ssi_signo == libc::SIGTERM as u32 {
                self.asked_to_end = true;
                self.quit = self.idle();
            }
        }
        self.reap();
    }

    /// Containers must not lose their keeper; without any, nobody needs one.
    fn idle(&self) -> bool {
        self.pending.is_empty() && self.containers.values().all(|c| c.life.exit.is_some())
    }

    /// Whether the last of the containers for which a keeper stayed has ended, and nobody is there who might start others: a machine that
    /// shuts down asks every process once, and then waits for those that stay.
    pub(super) fn is_left_alone(&self) -> bool {
        self.asked_to_end && self.clients.is_empty() && self.exited.is_empty() && self.idle()
    }

    /// Collects every ended child.
    pub(super) fn reap(&mut self) {
        loop {
            let mut status = 0;
            // SAFETY: the status lives across the call.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            if pid <= 0 {
                break;
            }
            self.ended(pid, status);
        }
        if self.pending.is_empty() {
            self.early.clear();
        }
    }

    /// A process has ended with this status.
    pub(super) fn ended(&mut self, pid: i32, status: i32) {
        let container = self
            .containers
            .iter()
            .find(|(_, c)| c.life.pid == pid && c.life.exit.is_none())
            .map(|(index, _)| *index);
        if let Some(index) = container {
            return self.note_exit(index, status, false);
        }
        let exec = self
            .execs
            .iter()
            .find(|(_, e)| e.pid == pid)
            .map(|(id, _)| *id);
        if let Some(exec_id) = exec {
            if let Some(exec) = self.execs.remove(&exec_id) {
                self.send(exec.client, &Message::ExecExited { exec_id, status }, &[]);
            }
            return;
        }
        let child = self.pending.iter().find(|(_, p)| p.child == pid);
        match child.map(|(fd, _)| *fd) {
            Some(fd) => self.child_ended(fd),
            None => self.early.push((pid, status)),
        }
    }

    pub(super) fn note_exit(&mut self, index: u32, status: i32, lost: bool) {
        if let Some(container) = self.containers.get_mut(&index)
            && container.life.exit.is_none()
            && !self.exited.iter().any(|(i, ..)| *i == index)
        {
            container.status_deadline = None;
            self.exited.push((index, status, lost));
        }
    }

    /// 255 is the kubelet's code for what it cannot know.
    pub(super) fn note_lost(&mut self, index: u32) {
        self.note_exit(index, 255 << 8, true);
    }

    /// Completes the exits noticed in this round: output drained, record on disk (one sync for all), then told.
    pub(super) fn finish_exits(&mut self) {
        if self.exited.is_empty() {
            return;
        }
        let exited = std::mem::take(&mut self.exited);
        for &(index, status, lost) in &exited {
            // A program may end before we have seen that it had started.
            self.settle_start(index);
            self.drain(index);
            let Some(container) = self.containers.get_mut(&index) else {
                continue;
            };
            let cgroup = &container.record.cgroup;
            if !container.record.own_pid_namespace {
                self.cgroups.kill(cgroup);
            }
            let exit = ExitRecord {
                status,
                oom: self.cgroups.oom_kills(cgroup).is_some_and(|n| n > 0),
                at: now_ns(),
                lost,
            };
            if let Err(e) = self.journal.append(&container.record.id, &exit) {
                report(&format!("exit journal: {e}"));
            }
            container.life.exit = Some(exit);
        }
        if let Err(e) = self.journal.sync() {
            report(&format!("exit journal: {e}"));
        }
        for (index, ..) in exited {
            self.after_exit(index);
        }
        if self.journal.wants_compaction() {
            let live = self
                .containers
                .values()
                .filter_map(|c| Some((c.record.id.as_str(), c.life.exit.as_ref()?)));
            if let Err(e) = self.journal.compact(live) {
                report(&format!("exit journal: {e}"));
            }
        }
    }

    pub(super) fn after_exit(&mut self, index: u32) {
        let Some(container) = self.containers.get_mut(&index) else {
            return;
        };
        let closing = [container.pidfd.take(), container.stdin.take()];
        let error = container.error.take();
        let start = container.starting.take();
        let removers = std::mem::take(&mut container.removing);
        let id = container.record.id.clone();
        let exit = container.life.exit.clone();
        for fd in closing.into_iter().chain([error]).flatten() {
            self.unwatch(fd.as_raw_fd());
        }
        self.end_subscribers(index);
        if let Some((client, seq)) = start {
            let text = format!("container {id} ended before it was started");
            self.refuse(client, seq, WireErrorKind::State, text);
        }
        if let Some(exit) = exit {
            self.broadcast(Event::Exited { id, exit });
        }
        if !removers.is_empty() {
            self.forget(index);
            for (client, seq) in removers {
                self.reply(client, seq, Ok(Reply::Done));
            }
        }
    }

    /// An adopted process has ended or was reaped: its status may be in the pidfd.
    pub(super) fn adopted_ended(&mut self, index: u32) {
        let Some(container) = self.containers.get_mut(&index) else {
            return;
        };
        let Some(pidfd) = &container.pidfd else {
            return;
        };
        match sys_process::pidfd_exit_status(pidfd.as_fd()) {
            Some(status) => self.note_exit(index, status, false),
            None => container.expect_status(),
        }
    }

    /// Removes a container from memory; its files are the caller's.
    pub(super) fn forget(&mut self, index: u32) {
        let Some(container) = self.containers.remove(&index) else {
            return;
        };
        for fd in container.descriptors() {
            self.unwatch(fd);
        }
        self.ids.remove(&container.record.id);
        self.broadcast(Event::Removed {
            id: container.record.id.clone(),
        });
    }
}
