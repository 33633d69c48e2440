//! Cron expressions, and their next times.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((after, expression)) = bytes.split_first_chunk::<8>() else {
        return;
    };
    let Ok(expression) = std::str::from_utf8(expression) else {
        return;
    };
    if let Ok(schedule) = wharf_cron::Schedule::parse(expression) {
        // Until the year 2500 or so, as well as any time at all.
        let after = i64::from_le_bytes(*after);
        for after in [after, after.rem_euclid(16_725_225_600_000)] {
            if let Some(next) = schedule.next_after(after) {
                assert!(next > after && next % 60_000 == 0, "{after} {next}");
            }
        }
    }
});
