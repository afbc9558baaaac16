//! Which devices a container may use, where version 2 rules: a BPF program on its group (bpf(2), BPF_PROG_TYPE_CGROUP_DEVICE). Under version 1,
//! libcontainer writes the rules to the devices controller.
//!
//! The program is a list of rules; the first that matches allows, what none matches is refused.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// `access` bits, as the kernel has them.
pub(crate) const MKNOD: u8 = 1;
pub(crate) const READ: u8 = 2;
pub(crate) const WRITE: u8 = 4;

/// Devices that may be used; `None` = any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeviceRule {
    pub block: bool,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: u8,
}

/// What every container may use: runc's list. Making device files is allowed, using them is not.
fn standard() -> Vec<DeviceRule> {
    let all = READ | WRITE | MKNOD;
    let rule = |major, minor, access| DeviceRule {
        block: false,
        major,
        minor,
        access,
    };
    let any_block = DeviceRule {
        block: true,
        ..rule(None, None, MKNOD)
    };
    let mut rules = vec![rule(None, None, MKNOD), any_block];
    // null, zero, full, random, urandom; tty, console, ptmx; pts
    rules.extend([3, 5, 7, 8, 9].map(|minor| rule(Some(1), Some(minor), all)));
    rules.extend([0, 1, 2].map(|minor| rule(Some(5), Some(minor), all)));
    rules.push(rule(Some(136), None, all));
    rules
}

/// One instruction: linux/bpf.h, `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Load a 32-bit word from memory.
const LOAD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const SET: u8 = 0xb7;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_IF_NOT: u8 = 0x55;
const EXIT: u8 = 0x95;

// Registers: r1 is the context, then what we read from it.
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 0;

fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    let op = |code, registers, offset, immediate| Instruction {
        code,
        registers,
        offset,
        immediate,
    };
    // struct bpf_cgroup_dev_ctx: access and kind in one word, major, minor.
    let mut code = vec![
        op(LOAD, KIND | 1 << 4, 0, 0),
        op(MOVE, ACCESS | KIND << 4, 0, 0),
        op(SHIFT_RIGHT, ACCESS, 0, 16),
        op(AND, KIND, 0, 0xffff),
        op(LOAD, MAJOR | 1 << 4, 4, 0),
        op(LOAD, MINOR | 1 << 4, 8, 0),
    ];
    for rule in rules {
        let mut block = vec![
            op(JUMP_IF_NOT, KIND, 0, if rule.block { 1 } else { 2 }),
            // Something is wanted that the rule does not give?
            op(MOVE, SCRATCH | ACCESS << 4, 0, 0),
            op(AND, SCRATCH, 0, i32::from(7 & !rule.access)),
            op(JUMP_IF_NOT, SCRATCH, 0, 0),
        ];
        for (register, wanted) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
            if let Some(number) = wanted {
                block.push(op(JUMP_IF_NOT, register, 0, number as i32));
            }
        }
        block.push(op(SET, SCRATCH, 0, 1));
        block.push(op(EXIT, 0, 0, 0));
        let end = block.len();
        for (at, instruction) in block.iter_mut().enumerate() {
            if instruction.code == JUMP_IF_NOT {
                instruction.offset = (end - at - 1) as i16;
            }
        }
        code.extend(block);
    }
    code.push(op(SET, SCRATCH, 0, 0));
    code.push(op(EXIT, 0, 0, 0));
    code
}

/// Attaches a filter to the group: the standard devices and `more`. It lasts as long as the group.
pub(super) fn restrict(group: &Path, more: &[DeviceRule]) -> io::Result<()> {
    const PROG_LOAD: i32 = 5;
    const PROG_ATTACH: i32 = 8;
    const TYPE_CGROUP_DEVICE: u32 = 15;
    const ATTACH_CGROUP_DEVICE: u32 = 6;
    /// Together with what ancestors have.
    const ALLOW_MULTI: u32 = 2;

    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        rest: [u64; 12],
    }
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
        rest: [u64; 4],
    }
    let mut rules = standard();
    rules.extend_from_slice(more);
    let code = program(&rules);
    let load = Load {
        kind: TYPE_CGROUP_DEVICE,
        count: code.len() as u32,
        instructions: code.as_ptr() as usize as u64,
        license: c"Apache-2.0".as_ptr() as usize as u64,
        rest: [0; 12],
    };
    // SAFETY: the attributes and what they point to live across the call; unused ones are zero.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor (close-on-exec) that is ours.
    let filter = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let directory = File::open(group)?;
    let attach = Attach {
        target: directory.as_raw_fd() as u32,
        program: filter.as_raw_fd() as u32,
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
        rest: [0; 4],
    };
    // SAFETY: as above.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_ATTACH,
            &raw const attach,
            size_of::<Attach>(),
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would: the handful of instructions that we make.
    fn allows(code: &[Instruction], block: bool, access: u8, major: u32, minor: u32) -> bool {
        let kind = if block { 1 } else { 2 };
        let context = [u32::from(access) << 16 | kind, major, minor];
        let mut registers = [0u64; 8];
        let mut at = 0;
        loop {
            let i = code[at];
            let (to, from) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            at += 1;
            match i.code {
                LOAD => registers[to] = context[i.offset as usize / 4].into(),
                MOVE => registers[to] = registers[from],
                SET => registers[to] = i.immediate as u64,
                AND => registers[to] &= i.immediate as u64,
                SHIFT_RIGHT => registers[to] >>= i.immediate,
                JUMP_IF_NOT if registers[to] != i.immediate as u64 => at += i.offset as usize,
                JUMP_IF_NOT => {}
                EXIT => return registers[0] != 0,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn standard_devices_work_and_others_can_only_be_made() {
        let code = program(&standard());
        assert!(allows(&code, false, READ | WRITE, 1, 3), "null");
        assert!(allows(&code, false, READ | WRITE, 136, 77), "a terminal");
        assert!(allows(&code, true, MKNOD, 8, 0));
        assert!(!allows(&code, true, READ, 8, 0), "a disk");
        assert!(
            !allows(&code, true, READ | MKNOD, 8, 0),
            "not even together"
        );
        assert!(!allows(&code, false, WRITE, 1, 11), "the kernel log");
        assert!(
            !allows(&code, true, READ, 1, 3),
            "a block device of null's numbers"
        );
    }

    #[test]
    fn a_given_device_has_the_access_that_was_given() {
        let mut rules = standard();
        rules.push(DeviceRule {
            block: true,
            major: Some(8),
            minor: Some(1),
            access: READ,
        });
        let code = program(&rules);
        assert!(allows(&code, true, READ, 8, 1));
        assert!(!allows(&code, true, READ | WRITE, 8, 1));
        assert!(!allows(&code, true, READ, 8, 2));
    }
}
