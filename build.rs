//! How the program is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A static program that may be loaded anywhere (ASLR) carries a list of its own pointers to be adjusted at start: 1.8 MB in
    // the classic form, some kilobytes packed (DT_RELR; glibc 2.36 and binutils 2.38 or newer know it, older linkers ignore it).
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu") {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
