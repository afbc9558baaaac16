//! Seccomp profiles: from Kubernetes' choice to a compiled filter.
//!
//! A filter is compiled once for all containers with the same profile and capabilities and kept as a file: compiling takes libseccomp
//! longer than the rest of a container's creation.

mod default;

use std::fs;
use std::io::{Read, Seek};
use std::os::fd::FromRawFd;
use std::path::{Path, PathBuf};

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::error::{Error, IoContext, Result};
use crate::spec::Seccomp;
use crate::sys::caps;

/// A profile in the JSON form that Docker, containerd and CRI-O share.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Arg>>,
    #[serde(default)]
    includes: Filter,
    #[serde(default)]
    excludes: Filter,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Arg {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: Op,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Op {
    #[serde(rename = "SCMP_CMP_NE")]
    Ne,
    #[serde(rename = "SCMP_CMP_LT")]
    Lt,
    #[serde(rename = "SCMP_CMP_LE")]
    Le,
    #[serde(rename = "SCMP_CMP_EQ")]
    Eq,
    #[serde(rename = "SCMP_CMP_GE")]
    Ge,
    #[serde(rename = "SCMP_CMP_GT")]
    Gt,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEq,
}

/// When a rule counts. Of `minKernel` we only know that every kernel we run on is younger.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Filter {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
}

/// System calls that Debian 12's libseccomp has no names for. Their numbers are the same on every architecture of ours.
const NEW_CALLS: [(&str, u32); 19] = [
    ("cachestat", 451),
    ("fchmodat2", 452),
    ("map_shadow_stack", 453),
    ("futex_wake", 454),
    ("futex_wait", 455),
    ("futex_requeue", 456),
    ("statmount", 457),
    ("listmount", 458),
    ("lsm_get_self_attr", 459),
    ("lsm_set_self_attr", 460),
    ("lsm_list_modules", 461),
    ("mseal", 462),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
    ("open_tree_attr", 467),
    ("file_getattr", 468),
    ("file_setattr", 469),
];

/// The last number that libseccomp itself may know.
const LAST_NAMED: u32 = 450;

/// Names of this machine's architecture in profiles: Go's and libseccomp's.
fn native() -> (&'static str, &'static str) {
    match std::env::consts::ARCH {
        "x86_64" => ("amd64", "SCMP_ARCH_X86_64"),
        "x86" => ("386", "SCMP_ARCH_X86"),
        "aarch64" => ("arm64", "SCMP_ARCH_AARCH64"),
        "arm" => ("arm", "SCMP_ARCH_ARM"),
        "riscv64" => ("riscv64", "SCMP_ARCH_RISCV64"),
        _ => ("", ""),
    }
}

fn arch(name: &str) -> Option<ScmpArch> {
    Some(match name {
        "SCMP_ARCH_X86_64" => ScmpArch::X8664,
        "SCMP_ARCH_X86" => ScmpArch::X86,
        "SCMP_ARCH_X32" => ScmpArch::X32,
        "SCMP_ARCH_ARM" => ScmpArch::Arm,
        "SCMP_ARCH_AARCH64" => ScmpArch::Aarch64,
        "SCMP_ARCH_RISCV64" => ScmpArch::Riscv64,
        _ => return None,
    })
}

fn action(name: &str, errno: Option<u32>) -> Result<ScmpAction> {
    let errno = errno.map_or(libc::EPERM, |e| e as i32);
    Ok(match name {
        "SCMP_ACT_ALLOW" => ScmpAction::Allow,
        "SCMP_ACT_ERRNO" => ScmpAction::Errno(errno),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => ScmpAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => ScmpAction::KillProcess,
        "SCMP_ACT_TRAP" => ScmpAction::Trap,
        "SCMP_ACT_LOG" => ScmpAction::Log,
        other => {
            let text = format!("seccomp profile: action {other:?} is not supported");
            return Err(Error::Invalid(text));
        }
    })
}

impl Rule {
    fn counts(&self, capabilities: u64) -> bool {
        let has = |name: &String| caps::bit(name).is_some_and(|bit| capabilities & bit != 0);
        let here = |name: &String| name == native().0;
        let included = self.includes.caps.iter().all(has)
            && (self.includes.arches.is_empty() || self.includes.arches.iter().any(here));
        let excluded = self.excludes.caps.iter().any(has) || self.excludes.arches.iter().any(here);
        included && !excluded
    }
}

impl Profile {
    fn architectures(&self) -> Vec<ScmpArch> {
        let mapped = self
            .arch_map
            .iter()
            .filter(|m| m.architecture == native().1)
            .flat_map(|m| std::iter::once(&m.architecture).chain(&m.sub_architectures));
        mapped
            .chain(&self.architectures)
            .filter_map(|name| arch(name))
            .collect()
    }

    /// A program for seccomp(2): an array of `struct sock_filter`.
    fn compile(&self, capabilities: u64) -> Result<Vec<u8>> {
        let invalid =
            |e: libseccomp::error::SeccompError| Error::Invalid(format!("seccomp profile: {e}"));
        let default = action(&self.default_action, self.default_errno_ret)?;
        let mut context = ScmpFilterContext::new(default).map_err(invalid)?;
        for arch in self.architectures() {
            context.add_arch(arch).map_err(invalid)?;
        }
        context.set_ctl_nnp(false).map_err(invalid)?;
        // A search tree instead of a list: a tenth of the instructions per call. Older libraries only have the list.
        let _ = context.set_ctl_optimize(2);
        let mut new_calls = Vec::new();
        for rule in self.syscalls.iter().filter(|r| r.counts(capabilities)) {
            let act = action(&rule.action, rule.errno_ret)?;
            if act == default {
                continue;
            }
            let args = rule.args.as_deref().unwrap_or_default();
            for name in &rule.names {
                if let Some((_, number)) = NEW_CALLS.iter().find(|(n, _)| n == name) {
                    if act == ScmpAction::Allow && args.is_empty() {
                        new_calls.push(*number);
                    }
                    continue;
                }
                // Not on this architecture, or unknown here: the default action holds.
                let Ok(call) = ScmpSyscall::from_name(name) else {
                    continue;
                };
                add_rule(&mut context, act, call, args).map_err(invalid)?;
            }
        }
        let program = export(&context)?;
        let denies = matches!(default, ScmpAction::Errno(_));
        new_calls.sort_unstable();
        Ok(with_new_calls(denies, &new_calls, program))
    }
}

/// libseccomp 2.5 writes its programs to files only.
fn export(context: &ScmpFilterContext) -> Result<Vec<u8>> {
    let what = || "export a seccomp filter".to_string();
    // SAFETY: a constant name; the result is a new descriptor or an error.
    let raw = unsafe { libc::memfd_create(c"seccomp".as_ptr(), libc::MFD_CLOEXEC) };
    let raw = nix::errno::Errno::result(raw).context(what)?;
    // SAFETY: as above.
    let mut file = unsafe { fs::File::from_raw_fd(raw) };
    context
        .export_bpf(&file)
        .map_err(|e| Error::Invalid(format!("seccomp profile: {e}")))?;
    let mut program = Vec::new();
    file.rewind().context(what)?;
    file.read_to_end(&mut program).context(what)?;
    Ok(program)
}

/// libseccomp compares each argument at most once per rule; several conditions on one argument are alternatives, as in runc.
fn add_rule(
    context: &mut ScmpFilterContext,
    act: ScmpAction,
    call: ScmpSyscall,
    args: &[Arg],
) -> std::result::Result<(), libseccomp::error::SeccompError> {
    let compare = |a: &Arg| {
        let op = match a.op {
            Op::Ne => ScmpCompareOp::NotEqual,
            Op::Lt => ScmpCompareOp::Less,
            Op::Le => ScmpCompareOp::LessOrEqual,
            Op::Eq => ScmpCompareOp::Equal,
            Op::Ge => ScmpCompareOp::GreaterEqual,
            Op::Gt => ScmpCompareOp::Greater,
            // OCI: `value` is the mask, `valueTwo` what is expected.
            Op::MaskedEq => ScmpCompareOp::MaskedEqual(a.value),
        };
        let datum = if a.op == Op::MaskedEq {
            a.value_two
        } else {
            a.value
        };
        ScmpArgCompare::new(a.index, op, datum)
    };
    let comparisons: Vec<ScmpArgCompare> = args.iter().map(compare).collect();
    let mut indexes: Vec<u32> = args.iter().map(|a| a.index).collect();
    indexes.sort_unstable();
    let repeated = indexes.windows(2).any(|w| w[0] == w[1]);
    if comparisons.is_empty() {
        context.add_rule(act, call)?;
    } else if repeated {
        for comparison in comparisons {
            context.add_rule_conditional(act, call, &[comparison])?;
        }
    } else {
        context.add_rule_conditional(act, call, &comparisons)?;
    }
    Ok(())
}

/// Puts in front of libseccomp's program what it cannot say: the named new calls are allowed, and, where the default is an error, calls
/// younger than the profile do not exist (ENOSYS) rather than being forbidden, since C libraries fall back only then.
fn with_new_calls(denies: bool, allowed: &[u32], program: Vec<u8>) -> Vec<u8> {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
    const JUMP_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const RET_ALLOW: u32 = 0x7fff_0000;
    const RET_ENOSYS: u32 = 0x0005_0000 | libc::ENOSYS as u32;
    /// x32 calls have this bit; they are left to libseccomp.
    const X32: u32 = 0x4000_0000;
    if allowed.is_empty() && !denies {
        return program;
    }
    let n = allowed.len() as u8;
    let tail = if denies { 2 } else { 1 };
    let mut prefix: Vec<(u16, u8, u8, u32)> = vec![(LOAD, 0, 0, 0)];
    // To the end of the prefix.
    prefix.push((JUMP_AT_LEAST, n + tail + 1, 0, X32));
    prefix.push((JUMP_GREATER, 0, n + tail, LAST_NAMED));
    for (i, number) in (0u8..).zip(allowed) {
        // To RET_ALLOW, which is last.
        prefix.push((JUMP_EQUAL, n - i - 1 + tail - 1, 0, *number));
    }
    if denies {
        prefix.push((RETURN, 0, 0, RET_ENOSYS));
        prefix.push((RETURN, 0, 0, RET_ALLOW));
    } else {
        // Not named: past RET_ALLOW, to libseccomp's program.
        let last = prefix.len() - 1;
        prefix[last].2 = 1;
        prefix.push((RETURN, 0, 0, RET_ALLOW));
    }
    let mut bytes = Vec::with_capacity(prefix.len() * 8 + program.len());
    for (code, if_true, if_false, k) in prefix {
        bytes.extend_from_slice(&code.to_ne_bytes());
        bytes.extend_from_slice(&[if_true, if_false]);
        bytes.extend_from_slice(&k.to_ne_bytes());
    }
    bytes.extend(program);
    bytes
}

/// The file with the compiled filter for a container, made if there is none yet; `None` = unconfined.
pub(crate) fn filter_file(
    directory: &Path,
    choice: &Seccomp,
    capabilities: u64,
) -> Result<Option<PathBuf>> {
    let (name, profile) = match choice {
        Seccomp::Unconfined => return Ok(None),
        Seccomp::RuntimeDefault => (
            format!("default-{}-{capabilities:x}", env!("CARGO_PKG_VERSION")),
            None,
        ),
        Seccomp::Localhost(path) => {
            let text =
                fs::read(path).context(|| format!("read seccomp profile {}", path.display()))?;
            let hash = Sha256::digest(&text);
            let hex: String = hash.iter().map(|b| format!("{b:02x}")).collect();
            (format!("{hex}-{capabilities:x}"), Some(text))
        }
    };
    let file = directory.join(name);
    if file.exists() {
        return Ok(Some(file));
    }
    let profile = match profile {
        None => default::profile(),
        Some(text) => serde_json::from_slice(&text)
            .map_err(|e| Error::Invalid(format!("seccomp profile: {e}")))?,
    };
    let program = profile.compile(capabilities)?;
    let what = || format!("write seccomp filter {}", file.display());
    fs::create_dir_all(directory).context(what)?;
    // Whole or not at all: others may be about to make the same one.
    let new = directory.join(format!("new-{}", crate::unique()));
    fs::write(&new, program).context(what)?;
    fs::rename(&new, &file).context(what)?;
    Ok(Some(file))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Runs a filter as the kernel would: enough of classic BPF for what libseccomp and we make.
    fn run(program: &[u8], nr: u32, args: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend_from_slice(&nr.to_ne_bytes());
        let arch: u32 = match std::env::consts::ARCH {
            "x86_64" => 0xc000_003e,
            "aarch64" => 0xc000_00b7,
            other => panic!("no audit arch for {other}"),
        };
        data.extend_from_slice(&arch.to_ne_bytes());
        data.extend_from_slice(&0u64.to_ne_bytes());
        for arg in args {
            data.extend_from_slice(&arg.to_ne_bytes());
        }
        let word = |at: u32| {
            let at = at as usize;
            u32::from_ne_bytes(data[at..at + 4].try_into().unwrap())
        };
        let (mut pc, mut a) = (0usize, 0u32);
        loop {
            let i = &program[pc * 8..pc * 8 + 8];
            let code = u16::from_ne_bytes([i[0], i[1]]);
            let k = u32::from_ne_bytes(i[4..8].try_into().unwrap());
            pc += 1;
            let holds = match code {
                0x20 => {
                    a = word(k);
                    continue;
                }
                0x54 => {
                    a &= k;
                    continue;
                }
                0x05 => {
                    pc += k as usize;
                    continue;
                }
                0x06 => return k,
                0x15 => a == k,
                0x25 => a > k,
                0x35 => a >= k,
                other => panic!("instruction {other:#x}"),
            };
            pc += usize::from(if holds { i[2] } else { i[3] });
        }
    }

    const ALLOW: u32 = 0x7fff_0000;
    const fn errno(e: i32) -> u32 {
        0x0005_0000 | e as u32
    }

    #[test]
    fn the_default_profile_allows_work_and_forbids_the_host() {
        let program = default::profile().compile(0).unwrap();
        let call = |nr: libc::c_long| run(&program, nr as u32, [0; 6]);
        assert_eq!(call(libc::SYS_read), ALLOW);
        assert_eq!(call(libc::SYS_clone), ALLOW, "threads and processes");
        assert_eq!(call(libc::SYS_unshare), errno(libc::EPERM));
        assert_eq!(call(libc::SYS_keyctl), errno(libc::EPERM));
        assert_eq!(call(libc::SYS_mount), errno(libc::EPERM));
        assert_eq!(call(libc::SYS_bpf), errno(libc::EPERM));
        assert_eq!(
            call(libc::SYS_clone3),
            errno(libc::ENOSYS),
            "C libraries fall back"
        );
        assert_eq!(
            run(
                &program,
                libc::SYS_clone as u32,
                [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]
            ),
            errno(libc::EPERM)
        );
        assert_eq!(
            run(&program, libc::SYS_socket as u32, [40, 0, 0, 0, 0, 0]),
            errno(libc::EPERM),
            "vsock"
        );
        assert_eq!(
            run(&program, libc::SYS_socket as u32, [2, 0, 0, 0, 0, 0]),
            ALLOW
        );
    }

    #[test]
    fn capabilities_open_the_calls_that_they_are_for() {
        let admin = caps::bit("SYS_ADMIN").unwrap();
        let program = default::profile().compile(admin).unwrap();
        let call = |nr: libc::c_long| run(&program, nr as u32, [0; 6]);
        assert_eq!(call(libc::SYS_mount), ALLOW);
        assert_eq!(call(libc::SYS_clone3), ALLOW);
        assert_eq!(call(libc::SYS_reboot), errno(libc::EPERM));
    }

    #[test]
    fn calls_younger_than_the_library_are_known_and_unknown_ones_do_not_exist() {
        let program = default::profile().compile(0).unwrap();
        assert_eq!(run(&program, 452, [0; 6]), ALLOW, "fchmodat2");
        assert_eq!(run(&program, 462, [0; 6]), ALLOW, "mseal");
        assert_eq!(run(&program, 467, [0; 6]), errno(libc::ENOSYS));
        assert_eq!(run(&program, 9999, [0; 6]), errno(libc::ENOSYS));
    }

    #[test]
    fn a_deny_list_profile_keeps_its_default() {
        let json = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
            {"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":13},
            {"names":["chmod"],"action":"SCMP_ACT_ERRNO","includes":{"caps":["CAP_SYS_TIME"]}},
            {"names":["nosuchcall"],"action":"SCMP_ACT_ERRNO"}]}"#;
        let profile: Profile = serde_json::from_str(json).unwrap();
        let program = profile.compile(0).unwrap();
        assert_eq!(run(&program, libc::SYS_mkdirat as u32, [0; 6]), errno(13));
        assert_eq!(run(&program, libc::SYS_read as u32, [0; 6]), ALLOW);
        assert_eq!(run(&program, 9999, [0; 6]), ALLOW);
    }

    #[test]
    fn an_unknown_action_is_an_error_that_names_it() {
        let json = r#"{"defaultAction":"SCMP_ACT_DANCE"}"#;
        let profile: Profile = serde_json::from_str(json).unwrap();
        let text = profile.compile(0).unwrap_err().to_string();
        assert!(text.contains("SCMP_ACT_DANCE"), "{text}");
    }
}
