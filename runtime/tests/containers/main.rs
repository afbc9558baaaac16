//! Whole-runtime tests: real containers from Debian's static busybox, one keeper per test, everything in a mount namespace and cgroup of
//! its own. No test harness: this program is also the keeper (it starts itself again), and it must enter its namespace before it has
//! threads.
//!
//! `cargo test -p amphipod-runtime --test containers [NAME...]` runs the tests whose names hold one of the words.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod adoption;
mod confinement;
mod exec;
mod lifecycle;
mod logs;
mod sandboxes;
mod support;

use std::process::ExitCode;
use std::time::Instant;

type Test = (&'static str, fn());

/// Declares a test: an async function that gets a fresh [`support::Box`].
macro_rules! tests {
    ($($module:ident :: $name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), || support::run($module::$name))),*]
    };
}

const TESTS: &[Test] = tests![
    lifecycle::a_container_runs_and_its_exit_code_is_known,
    lifecycle::a_signal_is_told_as_128_plus_its_number,
    lifecycle::a_created_container_waits_until_it_is_started,
    lifecycle::layers_lie_over_each_other_and_writes_stay_in_the_container,
    lifecycle::many_containers_start_at_once,
    lifecycle::a_missing_program_is_told_in_known_words_and_leaves_nothing,
    lifecycle::a_file_that_is_no_program_fails_at_start,
    lifecycle::labels_and_states_are_listed,
    lifecycle::a_running_container_can_be_removed,
    lifecycle::a_removal_that_was_cut_short_can_be_finished,
    lifecycle::ids_are_unique_and_unknown_ones_are_told,
    lifecycle::images_of_many_layers_work,
    lifecycle::creation_is_quick,
    confinement::the_process_is_who_it_should_be,
    confinement::the_working_directory_is_made_when_missing,
    confinement::capabilities_are_exactly_those_asked_for,
    confinement::what_the_box_lacks_is_clipped_not_refused,
    confinement::the_default_seccomp_profile_bites,
    confinement::seccomp_holds_for_exec_too,
    confinement::a_profile_from_a_file_is_obeyed,
    confinement::the_root_can_be_read_only,
    confinement::privileged_containers_see_devices_and_write_sys,
    confinement::unprivileged_containers_cannot_use_device_files_they_make,
    confinement::given_devices_work_as_given,
    confinement::kernel_files_are_masked,
    confinement::memory_limits_kill_with_137_and_say_so,
    confinement::process_limits_hold,
    confinement::limits_change_while_running,
    confinement::stats_tell_cpu_and_memory,
    confinement::mounts_are_where_they_should_be,
    confinement::host_mounts_reach_a_container_that_asks_for_them,
    confinement::nothing_stays_in_the_cgroup_after_removal,
    logs::both_streams_are_logged_in_cri_format,
    logs::logs_rotate_without_losing_a_line,
    logs::a_line_without_end_is_logged,
    logs::output_before_the_exit_event_is_in_the_log,
    exec::a_command_runs_in_the_container_with_its_streams,
    exec::exit_codes_of_commands_are_told,
    exec::a_missing_command_is_told_in_known_words,
    exec::a_terminal_has_a_size_that_changes,
    exec::a_command_that_takes_too_long_is_killed,
    exec::commands_run_as_the_container_unless_told_otherwise,
    exec::commands_are_in_the_container_s_cgroup,
    exec::commands_need_a_running_container,
    exec::attach_copies_output_and_gives_input,
    exec::attach_to_a_terminal_can_talk_to_a_shell,
    exec::input_once_ends_with_the_first_client,
    exec::a_slow_client_loses_nothing,
    exec::exec_is_quick,
    sandboxes::containers_of_a_pod_share_its_network_and_names,
    sandboxes::loopback_is_up_and_sysctls_are_set,
    sandboxes::a_shared_pid_namespace_has_an_init,
    sandboxes::shared_memory_is_shared_and_limited,
    sandboxes::host_namespaces_are_the_hosts,
    sandboxes::removal_takes_everything_along,
    sandboxes::sandboxes_are_quick,
    adoption::containers_and_exit_codes_survive_the_keeper,
    adoption::an_exit_while_there_is_no_keeper_is_not_lost,
    adoption::logs_go_on_after_the_keeper_died,
    adoption::however_often_the_keeper_dies_each_line_is_logged_once,
    adoption::a_running_command_survives_the_keeper,
    adoption::a_forgotten_command_does_not_hold_up_its_container,
    adoption::containers_survive_the_agent,
    adoption::containers_survive_keeper_and_agent_together,
    adoption::a_keeper_that_was_asked_to_end_stays_for_its_containers_and_no_longer,
    adoption::a_create_that_dies_half_way_leaves_nothing,
    adoption::the_keeper_upgrades_itself_in_place,
    adoption::a_failed_upgrade_changes_nothing,
    adoption::after_a_reboot_containers_are_known_as_lost,
    adoption::the_keeper_is_small,
];

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    if let Some(code) = amphipod_runtime::run_hidden_command(&args) {
        std::process::exit(code);
    }
    if args.get(1).is_some_and(|a| a == "agent") {
        adoption::agent(&args[2], &args[3]);
        return ExitCode::SUCCESS;
    }
    let words: Vec<String> = args[1..]
        .iter()
        .map(|a| a.to_string_lossy().into_owned())
        .filter(|a| !a.starts_with("--"))
        .collect();
    if args.iter().any(|a| a == "--list") {
        for (name, _) in TESTS {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: containers need root");
        return ExitCode::SUCCESS;
    }
    support::enter_namespace();
    support::make_image();
    let mut failed = Vec::new();
    let wanted = |name: &str| words.is_empty() || words.iter().any(|w| name.contains(w.as_str()));
    for (name, test) in TESTS.iter().filter(|(name, _)| wanted(name)) {
        print!("test {name} ... ");
        let start = Instant::now();
        let result = std::panic::catch_unwind(test);
        let took = start.elapsed().as_millis();
        match result {
            Ok(()) => println!("ok ({took} ms)"),
            Err(_) => {
                println!("FAILED ({took} ms)");
                failed.push(name);
            }
        }
    }
    support::remove_image();
    println!("\n{} failed {failed:?}", failed.len());
    ExitCode::from(u8::from(!failed.is_empty()))
}
