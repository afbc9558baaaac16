//! The default profile: what Docker and containerd allow, grouped by what the calls are for.
//!
//! Everything else fails with EPERM, `clone3` with ENOSYS (its flags are out of a filter's sight, and C libraries fall back to `clone`).

use super::{ArchMap, Arg, Filter, Op, Profile, Rule};

/// Calls that every container may make.
const ALLOWED: &[&str] = &[
    // processes and threads
    "arch_prctl capget capset execve execveat exit exit_group fork vfork getcpu getpgid getpgrp getpid getppid getsid gettid \
     get_robust_list set_robust_list get_thread_area set_thread_area set_tid_address kill tkill tgkill pidfd_open pidfd_send_signal \
     prctl prlimit64 process_mrelease rseq setpgid setsid wait4 waitid waitpid restart_syscall membarrier modify_ldt kcmp ptrace \
     process_vm_readv process_vm_writev seccomp uname sysinfo times getrusage getrlimit ugetrlimit setrlimit getpriority setpriority \
     ioprio_get ioprio_set landlock_create_ruleset landlock_add_rule landlock_restrict_self",
    // identity
    "getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getresuid getresuid32 getresgid getresgid32 getgroups \
     getgroups32 setuid setuid32 setgid setgid32 setreuid setreuid32 setregid setregid32 setresuid setresuid32 setresgid setresgid32 \
     setfsuid setfsuid32 setfsgid setfsgid32 setgroups setgroups32 umask",
    // scheduling
    "sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler \
     sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield",
    // memory
    "brk madvise memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap msync munlock munlockall munmap \
     pkey_alloc pkey_free pkey_mprotect remap_file_pages readahead cachestat map_shadow_stack mseal",
    // files: opening, reading, writing
    "open openat openat2 creat close close_range dup dup2 dup3 read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 \
     lseek _llseek fcntl fcntl64 ioctl fsync fdatasync sync syncfs sync_file_range sync_file_range2 arm_sync_file_range fadvise64 \
     fadvise64_64 arm_fadvise64_64 fallocate ftruncate ftruncate64 truncate truncate64 copy_file_range sendfile sendfile64 splice tee \
     vmsplice flock",
    // files: names and attributes
    "access faccessat faccessat2 chdir fchdir getcwd chmod fchmod fchmodat fchmodat2 chown chown32 fchown fchown32 fchownat lchown \
     lchown32 link linkat unlink unlinkat symlink symlinkat readlink readlinkat rename renameat renameat2 mkdir mkdirat rmdir mknod \
     mknodat getdents getdents64 stat stat64 fstat fstat64 lstat lstat64 newfstatat fstatat64 statx statfs statfs64 fstatfs fstatfs64 \
     utime utimes utimensat utimensat_time64 futimesat getxattr lgetxattr fgetxattr getxattrat setxattr lsetxattr fsetxattr setxattrat \
     listxattr llistxattr flistxattr listxattrat removexattr lremovexattr fremovexattr removexattrat name_to_handle_at fanotify_mark \
     inotify_init inotify_init1 inotify_add_watch inotify_rm_watch",
    // waiting and asynchronous I/O
    "select _newselect pselect6 pselect6_time64 poll ppoll ppoll_time64 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_wait \
     epoll_wait_old epoll_pwait epoll_pwait2 eventfd eventfd2 pause io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents \
     io_pgetevents_time64",
    // signals
    "rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 \
     rt_tgsigqueueinfo sigaction sigpending sigprocmask sigreturn sigsuspend signal sigaltstack signalfd signalfd4",
    // time
    "alarm adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep \
     clock_nanosleep_time64 gettimeofday getitimer setitimer nanosleep time timer_create timer_delete timer_getoverrun timer_gettime \
     timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64",
    // sockets and pipes
    "accept accept4 bind connect getpeername getsockname getsockopt setsockopt listen recv recvfrom recvmmsg recvmmsg_time64 recvmsg send \
     sendmmsg sendmsg sendto shutdown socketcall socketpair pipe pipe2",
    // System V and POSIX IPC, futexes
    "ipc msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget mq_open mq_unlink \
     mq_notify mq_getsetattr mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 futex futex_time64 futex_waitv \
     futex_wake futex_wait futex_requeue",
    // the rest
    "getrandom breakpoint cacheflush set_tls riscv_flush_icache",
];

/// Calls that come with a capability.
const WITH_CAPABILITY: &[(&str, &str)] = &[
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules mount \
         mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns statmount listmount \
         syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    (
        "CAP_SYS_TIME",
        "settimeofday stime clock_settime clock_settime64",
    ),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    (
        "CAP_SYS_NICE",
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node process_madvise migrate_pages move_pages",
    ),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// Every CLONE_NEW* flag that clone(2) takes.
const NAMESPACE_FLAGS: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP) as u32 as u64;

fn allow(names: &str) -> Rule {
    Rule {
        names: names.split_whitespace().map(str::to_string).collect(),
        action: "SCMP_ACT_ALLOW".into(),
        ..Rule::default()
    }
}

fn allow_if(names: &str, index: u32, op: Op, value: u64) -> Rule {
    Rule {
        args: Some(vec![Arg {
            index,
            value,
            value_two: 0,
            op,
        }]),
        ..allow(names)
    }
}

fn capability(name: &str) -> Filter {
    Filter {
        caps: vec![name.to_string()],
        ..Filter::default()
    }
}

pub(super) fn profile() -> Profile {
    let mut syscalls: Vec<Rule> = ALLOWED.iter().map(|names| allow(names)).collect();
    for (name, calls) in WITH_CAPABILITY {
        syscalls.push(Rule {
            includes: capability(name),
            ..allow(calls)
        });
    }
    // Execution domains: Linux, with and without address randomisation and old-kernel version numbers; asking.
    for value in [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        syscalls.push(allow_if("personality", 0, Op::Eq, value));
    }
    // Not AF_VSOCK: it reaches the host past the pod's network.
    syscalls.push(allow_if("socket", 0, Op::Ne, libc::AF_VSOCK as u64));
    syscalls.push(Rule {
        excludes: capability("CAP_SYS_ADMIN"),
        ..allow_if("clone", 0, Op::MaskedEq, NAMESPACE_FLAGS)
    });
    syscalls.push(Rule {
        action: "SCMP_ACT_ERRNO".into(),
        errno_ret: Some(libc::ENOSYS as u32),
        excludes: capability("CAP_SYS_ADMIN"),
        ..allow("clone3")
    });
    let map = |architecture: &str, others: &[&str]| ArchMap {
        architecture: architecture.into(),
        sub_architectures: others.iter().map(|o| o.to_string()).collect(),
    };
    Profile {
        default_action: "SCMP_ACT_ERRNO".into(),
        default_errno_ret: Some(libc::EPERM as u32),
        architectures: Vec::new(),
        arch_map: vec![
            map("SCMP_ARCH_X86_64", &["SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
            map("SCMP_ARCH_AARCH64", &["SCMP_ARCH_ARM"]),
        ],
        syscalls,
    }
}
