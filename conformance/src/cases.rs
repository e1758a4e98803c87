//! The list of all cases: the one place where their ids stand. `needs` names the capability without which a broker refuses.

/// Calls a macro with every case: `group case [needs]`.
#[doc(hidden)]
#[macro_export]
macro_rules! for_each_case {
    ($callback:path, $($with:tt)*) => { $callback! { ($($with)*)
        publish {
            confirmed_is_received_byte_for_byte [], empty_payload [], tombstone_is_not_empty [], largest_usable_payload [],
            one_byte_over_fails_before_io [], non_utf8_payload [], null_empty_and_binary_keys [],
            every_header_shape_repeated_and_typed [], every_attribute_comes_back [], header_bounds_refused_before_io [],
            thousand_pipelined_all_confirm [], every_seventh_unroutable_fails_alone [], publish_all_answers_each [],
            order_of_a_key_under_pipelining [], per_key_order_across_a_cut [], missing_channel_fails_in_time [],
            send_after_close_is_an_error [], close_resolves_every_send [], stalled_broker_bounds_memory [],
            deadline_while_disconnected_is_failed [], two_publishers_interleave [], a_second_copy_is_handled_as_declared [],
            hops_are_never_dropped [],
        }
        receive {
            new_group_reads_what_was_there [Replay], start_latest [], start_time [StartTime], two_groups_both_get_all [],
            members_share_without_doubles [], ephemeral_groups_each_get_a_copy [Ephemeral], twenty_channels_are_isolated [],
            receive_never_exceeds_max [], cancelled_receive_loses_nothing [], close_ends_the_stream [],
            window_in_messages_holds [], window_in_bytes_holds [], full_window_stops_and_settling_resumes [],
            long_handler_runs_once [], pause_and_resume [], seek_goes_back [Seek], lag_is_told [Lag],
            foreign_record_is_readable [], foreign_headers_are_carried [], structured_cloud_event_is_read [],
            retention_leaves_a_gap [Gaps],
        }
        settle {
            ack_is_not_redelivered_after_restart [], give_back_is_redelivered [], give_back_keeps_the_keys_order [],
            delayed_give_back_is_not_early [Delay], dropped_delivery_is_given_back [], out_of_order_acks_survive_restart [],
            stale_settle_is_harmless [], ack_while_the_broker_is_away [], flush_waits_for_the_broker [],
            ten_thousand_from_sixteen_tasks [], late_result_after_reassignment [Partitions],
        }
        order {
            sixteen_keys_stay_in_order [KeyOrder], retried_key_keeps_its_order [KeyOrder], blocked_key_delays_no_other [KeyOrder],
            graceful_hand_over_has_no_overlap [KeyOrder], killed_holder_hands_over [KeyOrder],
            another_partition_count_is_refused [Partitions], keyless_messages_all_come [],
        }
        failure {
            error_is_retried_then_dead_lettered [], permanent_goes_straight [], panic_is_retried_and_the_service_lives [],
            timeout_is_retried [], undecodable_keeps_its_bytes [], unknown_type_and_version [], expired_by_policy [],
            dead_letter_headers_are_true [], poison_blocks_nobody [], outputs_are_confirmed_first [], output_ids_repeat [],
            oversize_headers_are_dead_lettered [], batch_with_a_failed_middle [],
            dead_letter_channel_comes_back [],
            crash_loop_is_judged [CrashLoops], clean_restarts_are_no_crash_loop [CrashLoops],
            breaker_pauses_probes_and_closes [], breaker_open_and_drain [], rate_limit_holds [],
            full_bulkhead_leaves_the_others [], total_retry_time_is_bounded [],
        }
        outputs {
            missing_reader_runs_the_handler_once [], deleted_channel_runs_the_handler_once [],
            stop_returns_the_message_of_waiting_outputs [], killed_process_leaves_the_message_of_waiting_outputs [],
            broker_away_runs_the_handler_once [], too_large_output_is_dead_lettered_after_one_run [],
            batch_with_one_failed_output [],
        }
        retry {
            broker_keeps_the_message [DurableRetry], attempts_survive_a_restart [DurableRetry], waiting_blocks_nobody [DurableRetry],
            group_alone_is_reached [GroupAddress], group_address_is_checked [GroupAddress],
        }
        letters {
            reading_disturbs_no_group [Letters], closed_ones_stay_closed [Letters],
            many_closed_at_once_stay_closed [Letters], two_readers_miss_nothing [Letters],
            dropped_reader_holds_nothing [Letters], missing_channel_is_told [Letters],
            cut_off_reader_closes_what_it_says [Letters], closing_given_up_is_no_lie [Letters],
            letter_of_large_foreign_headers [Letters],
        }
        redrive {
            goes_to_the_failed_group_alone [Letters], letters_of_one_id_never_vanish [Letters],
            acting_headers_act_no_more [Letters], largest_message_comes_back [Letters],
            broker_made_letters_are_readable [Letters], corrected_letter_takes_its_place [Letters],
            interrupted_between_confirm_and_close [Letters], its_identity_is_opened_again [Letters],
        }
        idempotency {
            completed_duplicate_is_skipped [], concurrent_duplicates_run_once [], business_key_beats_the_id [], scope_is_the_group [],
            dead_lettered_duplicate_is_acknowledged [], giving_back_lets_go [], killed_before_complete [], killed_after_complete [],
            lease_runs_out [], foreign_record_has_the_brokers_name_or_none [],
        }
        lifecycle {
            drain_finishes_what_runs [], drain_starts_nothing_new [], deadline_gives_the_rest_back [],
            shutdown_in_a_retry_is_no_failure [], health_is_told [], connect_to_nothing_names_the_address [],
            wrong_credentials_are_clear [], routes_of_one_group_are_independent [], subscribe_close_cycles_leak_nothing [],
            broker_killed_under_load_loses_nothing [], paused_broker_is_waited_for [],
        }
        inventory {
            channels_and_groups_are_listed [Inventory], named_ones_are_looked_up [], examining_finds_no_failure [],
        }
        faults {
            broker_killed_while_publishing [], broker_killed_while_consuming [], connection_reset_each_second [],
            half_open_connection_is_found [], members_come_and_go [], channel_deleted_and_made_again [],
            group_deleted_by_the_server [], alarm_blocks_publishing_only [],
            consumer_killed_around_its_effect [], credentials_taken_away_and_given_back [],
        }
    } };
}

/// One test for each case, on what `$factory` makes.
///
/// `ignore = "…"` gives each test `#[ignore]` with that reason: `cargo test` skips them where no broker runs, and
/// `cargo test -- --include-ignored` runs them.
#[macro_export]
macro_rules! conformance {
    ($factory:expr) => {
        $crate::for_each_case! { $crate::__tests, [] $factory }
    };
    ($factory:expr, ignore = $reason:literal) => {
        $crate::for_each_case! { $crate::__tests, [#[ignore = $reason]] $factory }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __tests {
    (($attributes:tt $factory:expr) $($group:ident { $($case:ident [$($needs:ident)?],)* })*) => {
        $(mod $group {
            #[allow(unused_imports, reason = "the factory may be named by a path of its own")]
            use super::*;
            $(
                $crate::__test! { $attributes fn $case() {
                    $crate::__private::tokio::runtime::Builder::new_multi_thread()
                        .worker_threads(2)
                        .enable_all()
                        .build()
                        .expect("a runtime starts")
                        .block_on($crate::__private::run(
                            $factory,
                            $crate::Case::new(stringify!($group), stringify!($case), $crate::__needs!($($needs)?)),
                            $crate::groups::$group::$case,
                        ));
                } }
            )*
        })*
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __test {
    ([$($attribute:tt)*] $($function:tt)*) => {
        #[test]
        $($attribute)*
        $($function)*
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __needs {
    () => {
        None
    };
    ($needs:ident) => {
        Some($crate::groups::Capability::$needs)
    };
}
