//! How the program is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=packaging/no-unwind.ld");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    if !is("CARGO_CFG_TARGET_ENV", "gnu") {
        return;
    }
    // A static program that may be loaded anywhere (ASLR) carries a list of its own pointers to be adjusted at start: 1.8 MB in
    // the classic form, some kilobytes packed (DT_RELR; glibc 2.36 and binutils 2.38 or newer know it, older linkers ignore it).
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    // A release does not unwind (its panics abort). `-C force-unwind-tables=no` hardly helps: functions that once had something to clean up keep
    // their tables, and so does the standard library.
    if is("PROFILE", "release") {
        let here = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{here}/packaging/no-unwind.ld");
    }
}
