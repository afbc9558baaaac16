//! The last steps of a process before it becomes the container's program. Runs in forked children, inside the container's namespaces.
//!
//! libcontainer has its own version of these steps. Ours exist because they need an order that it does not have: a seccomp program that
//! was compiled once for all containers is loaded while the process still may, exec'd processes get the same confinement as the
//! container's first one, and errors carry the words that users of containers know.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::sys::{caps, socket};

/// What a process shall be: `process.json` in a container's run directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessPlan {
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// Bits of capabilities(7).
    pub capabilities: u64,
    pub no_new_privileges: bool,
    /// File with a compiled filter.
    #[serde(default)]
    pub seccomp: Option<PathBuf>,
    /// Resource number, soft, hard.
    #[serde(default)]
    pub rlimits: Vec<(i32, u64, u64)>,
    #[serde(default)]
    pub oom_score_adj: Option<i32>,
    #[serde(default)]
    pub terminal: bool,
}

/// A step failed; the text is for users.
#[derive(Debug)]
pub(crate) struct Failure(pub String);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Describes an errno as Go programs (and so runc's users) see it: in lower case, without the number.
pub(crate) fn errno_text(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_lowercase(),
        None => error.to_string(),
    }
}

fn fail(what: &str) -> impl FnOnce(io::Error) -> Failure + '_ {
    move |error| Failure(format!("{what}: {}", errno_text(&error)))
}

/// Supplementary groups: always set, also to none, or the keeper's own would stay.
pub(crate) fn set_groups(groups: &[u32]) -> Result<(), Failure> {
    // SAFETY: pointer and length describe the slice.
    let rc = unsafe { libc::setgroups(groups.len(), groups.as_ptr()) };
    if rc != 0 {
        let error = io::Error::last_os_error();
        // Refused in user namespaces without a group map, where there are none to lose.
        if error.raw_os_error() != Some(libc::EPERM) || !groups.is_empty() {
            return Err(fail("set supplementary groups")(error));
        }
    }
    Ok(())
}

/// Enters the working directory, making it when missing.
pub(crate) fn enter_cwd(cwd: &str) -> Result<(), Failure> {
    let cwd = if cwd.is_empty() { "/" } else { cwd };
    let what = || format!("mkdir {cwd}");
    if let Err(error) = std::env::set_current_dir(cwd) {
        if error.kind() != io::ErrorKind::NotFound {
            return Err(fail(&format!("chdir to cwd ({cwd:?}) set in config"))(
                error,
            ));
        }
        make_directories(Path::new(cwd)).map_err(|e| fail(&what())(e))?;
        std::env::set_current_dir(cwd)
            .map_err(|e| fail(&format!("chdir to cwd ({cwd:?}) set in config"))(e))?;
    }
    // A path through /proc/self/fd would lead out of the container: getcwd says so.
    match nix::unistd::getcwd() {
        Ok(path) if path.is_absolute() => Ok(()),
        _ => Err(Failure(
            "current working directory is outside of container mount namespace root".into(),
        )),
    }
}

/// As `mkdir -p`, mode 0755, owned by root whoever we are (capabilities are still there).
fn make_directories(path: &Path) -> io::Result<()> {
    let mut done = PathBuf::new();
    for part in path.components() {
        done.push(part);
        match fs::create_dir(&done) {
            Ok(()) => {
                fs::set_permissions(&done, fs::Permissions::from_mode(0o755))?;
                std::os::unix::fs::chown(&done, Some(0), Some(0))?;
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(_) if done.is_dir() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Finds the program as execvp(3) would, with the texts of runc.
pub(crate) fn find_program(args: &[String], env: &[String]) -> Result<CString, Failure> {
    let name = match args.first() {
        Some(name) if !name.is_empty() => name,
        _ => return Err(Failure("exec: \"\": no command given".into())),
    };
    let c_string = |path: &Path| {
        CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| Failure(format!("exec: {name:?}: name holds a zero byte")))
    };
    if name.contains('/') {
        return match check_program(Path::new(name)) {
            Ok(()) => c_string(Path::new(name)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Failure(format!(
                "exec: {name:?}: stat {name}: no such file or directory"
            ))),
            Err(e) => Err(Failure(format!("exec: {name:?}: {}", errno_text(&e)))),
        };
    }
    let path = env
        .iter()
        .find_map(|e| e.strip_prefix("PATH="))
        .unwrap_or_default();
    let mut forbidden = false;
    for directory in path.split(':') {
        let candidate = if directory.is_empty() {
            Path::new(".").join(name)
        } else {
            Path::new(directory).join(name)
        };
        match check_program(&candidate) {
            Ok(()) => return c_string(&candidate),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => forbidden = true,
            Err(_) => {}
        }
    }
    Err(Failure(if forbidden {
        format!("exec: {name:?}: permission denied")
    } else {
        format!("exec: {name:?}: executable file not found in $PATH")
    }))
}

fn check_program(path: &Path) -> io::Result<()> {
    let meta = fs::metadata(path)?;
    if meta.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    if meta.mode() & 0o111 == 0 {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    Ok(())
}

/// Makes a terminal in the container's devpts, sends its master through `result`, and makes it our controlling terminal and stdio.
/// The caller is a session leader. `console`: also put it on /dev/console.
pub(crate) fn set_up_terminal(result: RawFd, uid: u32, console: bool) -> Result<(), Failure> {
    let what = "set up terminal";
    let master = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags_noctty()
        .open("/dev/ptmx")
        .map_err(fail("open /dev/ptmx"))?;
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) })
        .map_err(fail(what))?;
    // SAFETY: TIOCGPTPEER takes open flags and returns a new descriptor.
    let slave = check(unsafe {
        libc::ioctl(
            master.as_raw_fd(),
            libc::TIOCGPTPEER,
            libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC,
        )
    })
    .map_err(fail(what))?;
    // SAFETY: as above, it is new and ours.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    // SAFETY: integers only. Best effort: the file belongs to whoever opened the master, usually the same user.
    unsafe { libc::fchown(slave.as_raw_fd(), uid, u32::MAX) };
    if console {
        put_on_console(&slave);
    }
    // SAFETY: the caller owns `result` for the whole life of this process.
    let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(result) };
    socket::send(socket, br#""Terminal""#, &[master.as_raw_fd()]).map_err(fail(what))?;
    // SAFETY: integers only.
    check(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) }).map_err(fail(what))?;
    for fd in 0..3 {
        nix::unistd::dup2(slave.as_raw_fd(), fd).map_err(|e| fail(what)(e.into()))?;
    }
    Ok(())
}

/// Best effort: few programs want /dev/console, and it needs rights that a user namespace may not have.
fn put_on_console(slave: &OwnedFd) {
    let Ok(name) = fs::read_link(format!("/proc/self/fd/{}", slave.as_raw_fd())) else {
        return;
    };
    let console = Path::new("/dev/console");
    if fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags_noctty()
        .open(console)
        .is_ok()
    {
        let _ = crate::sys::mount::bind(&name, console);
    }
}

trait NoControllingTerminal {
    fn custom_flags_noctty(&mut self) -> &mut Self;
}

impl NoControllingTerminal for fs::OpenOptions {
    fn custom_flags_noctty(&mut self) -> &mut Self {
        std::os::unix::fs::OpenOptionsExt::custom_flags(self, libc::O_NOCTTY)
    }
}

fn check(rc: libc::c_int) -> io::Result<libc::c_int> {
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(rc)
    }
}

/// Takes on user and group, keeping the permitted capabilities for the steps that follow.
pub(crate) fn become_user(uid: u32, gid: u32) -> Result<(), Failure> {
    let what = "set user and group";
    // SAFETY: integers only, all four.
    unsafe {
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0)).map_err(fail(what))?;
        check(libc::setresgid(gid, gid, gid)).map_err(fail(what))?;
        check(libc::setresuid(uid, uid, uid)).map_err(fail(what))?;
        check(libc::prctl(libc::PR_SET_KEEPCAPS, 0, 0, 0, 0)).map_err(fail(what))?;
    }
    caps::raise_permitted().map_err(fail(what))
}

/// `HOME` from the container's /etc/passwd when nobody set it.
pub(crate) fn add_home(env: &mut Vec<String>, uid: u32) {
    if env.iter().any(|e| e.starts_with("HOME=") && e.len() > 5) {
        return;
    }
    env.retain(|e| e != "HOME=");
    let home = fs::read_to_string("/etc/passwd")
        .ok()
        .and_then(|text| {
            text.lines().find_map(|line| {
                let mut fields = line.split(':').skip(2);
                let id: u32 = fields.next()?.parse().ok()?;
                let home = fields.nth(2)?;
                (id == uid && !home.is_empty()).then(|| home.to_string())
            })
        })
        .unwrap_or_else(|| "/".into());
    env.push(format!("HOME={home}"));
}

/// The compiled seccomp filter of a plan, read while the host's files are still in reach.
pub(crate) fn read_filter(plan: &ProcessPlan) -> Result<Vec<u8>, Failure> {
    match &plan.seccomp {
        None => Ok(Vec::new()),
        Some(path) => fs::read(path).map_err(fail("read seccomp filter")),
    }
}

/// Confines this process and becomes the program. Returns only if that failed.
pub(crate) fn confine_and_exec(plan: &ProcessPlan, filter: &[u8], program: &CString) -> Failure {
    if let Err(failure) = set_rlimits(&plan.rlimits) {
        return failure;
    }
    if plan.no_new_privileges {
        // SAFETY: integers only.
        if let Err(e) = check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }) {
            return fail("set no_new_privs")(e);
        }
    }
    // Without no_new_privs only CAP_SYS_ADMIN may load a filter: so before capabilities go. With it, as late as possible.
    if !plan.no_new_privileges
        && let Err(e) = load_filter(filter)
    {
        return fail("load seccomp filter")(e);
    }
    if let Err(e) = caps::restrict_to(plan.capabilities) {
        return fail("restrict capabilities")(e);
    }
    if plan.no_new_privileges
        && let Err(e) = load_filter(filter)
    {
        return fail("load seccomp filter")(e);
    }
    let strings = |list: &[String]| -> Vec<CString> {
        list.iter()
            .filter_map(|s| CString::new(s.as_bytes()).ok())
            .collect()
    };
    let (args, env) = (strings(&plan.args), strings(&plan.env));
    let error = match nix::unistd::execve(program, &args, &env) {
        Ok(never) => match never {},
        Err(errno) => io::Error::from(errno),
    };
    let name = plan.args.first().map_or("", String::as_str);
    fail(&format!("exec {name}"))(error)
}

/// seccomp(2), SECCOMP_SET_MODE_FILTER.
fn load_filter(filter: &[u8]) -> io::Result<()> {
    if filter.is_empty() {
        return Ok(());
    }
    #[repr(C)]
    struct Program {
        len: u16,
        instructions: *const u8,
    }
    // struct sock_filter: eight bytes each, aligned as u64 to be safe.
    let words: Vec<u64> = filter
        .chunks_exact(8)
        .map(|c| u64::from_ne_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]))
        .collect();
    let program = Program {
        len: u16::try_from(words.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
        instructions: words.as_ptr().cast(),
    };
    // SAFETY: `program` and the instructions it points to live across the call.
    let rc = unsafe { libc::syscall(libc::SYS_seccomp, 1, 0, &raw const program) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets resource limits on the calling process.
fn set_rlimits(limits: &[(i32, u64, u64)]) -> Result<(), Failure> {
    for &(resource, soft, hard) in limits {
        let limit = libc::rlimit {
            rlim_cur: soft as libc::rlim_t,
            rlim_max: hard as libc::rlim_t,
        };
        // SAFETY: the structure lives across the call.
        check(unsafe { libc::setrlimit(resource as _, &raw const limit) })
            .map_err(fail("set resource limits"))?;
    }
    Ok(())
}

/// Lets the program open its own /dev/stdout and friends by name when it is not root.
pub(crate) fn own_stdio(uid: u32) {
    if uid == 0 {
        return;
    }
    for fd in 0..3 {
        // SAFETY: STDIN to STDERR are open; best effort.
        let stdio = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        if let Ok(stat) = nix::sys::stat::fstat(stdio.as_fd().as_raw_fd())
            && stat.st_mode & libc::S_IFMT == libc::S_IFIFO
        {
            // SAFETY: integers only.
            unsafe { libc::fchown(fd, uid, u32::MAX) };
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn find(name: &str, path: &str) -> Result<String, String> {
        find_program(&[name.into()], &[format!("PATH={path}")])
            .map(|p| p.to_string_lossy().into_owned())
            .map_err(|f| f.0)
    }

    #[test]
    fn programs_are_found_or_missed_in_the_words_of_runc() {
        assert_eq!(find("sh", "/nowhere:/bin").unwrap(), "/bin/sh");
        assert_eq!(
            find("foo", "/bin").unwrap_err(),
            r#"exec: "foo": executable file not found in $PATH"#
        );
        assert_eq!(
            find("/no/foo", "").unwrap_err(),
            r#"exec: "/no/foo": stat /no/foo: no such file or directory"#
        );
        assert_eq!(
            find("/etc", "").unwrap_err(),
            r#"exec: "/etc": is a directory"#
        );
        assert_eq!(
            find("/etc/passwd", "").unwrap_err(),
            r#"exec: "/etc/passwd": permission denied"#
        );
    }

    #[test]
    fn home_comes_from_passwd_unless_given() {
        let mut env = vec!["A=1".to_string()];
        add_home(&mut env, 0);
        assert_eq!(env, ["A=1", "HOME=/root"]);
        let mut env = vec!["HOME=/x".to_string()];
        add_home(&mut env, 0);
        assert_eq!(env, ["HOME=/x"]);
        let mut env = vec![];
        add_home(&mut env, 3_999_999);
        assert_eq!(env, ["HOME=/"]);
    }
}
