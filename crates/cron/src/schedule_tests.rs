use jiff::civil::Weekday;
use proptest::prelude::*;

use super::*;

fn ms(text: &str) -> i64 {
    text.parse::<Timestamp>().unwrap().as_millisecond()
}

/// The next `count` times after a moment.
fn times(expression: &str, after: &str, count: usize) -> Vec<String> {
    let schedule = Schedule::parse(expression).unwrap();
    let mut at = ms(after);
    (0..count)
        .map(|_| {
            at = schedule.next_after(at).unwrap();
            Timestamp::from_millisecond(at).unwrap().to_string()
        })
        .collect()
}

fn next(expression: &str, after: &str) -> String {
    times(expression, after, 1).remove(0)
}

/// The examples of Cloudflare's documentation; 2026-01-01 is a Thursday.
#[test]
fn the_documented_examples_mean_what_cloudflare_says() {
    let start = "2026-01-01T00:00:00Z";
    assert_eq!(
        times("*/30 * * * *", start, 2),
        ["2026-01-01T00:30:00Z", "2026-01-01T01:00:00Z"]
    );
    assert_eq!(next("45 * * * *", start), "2026-01-01T00:45:00Z");
    // Sundays at 17:00.
    for sunday in ["0 17 * * sun", "0 17 * * 1"] {
        assert_eq!(
            times(sunday, start, 2),
            ["2026-01-04T17:00:00Z", "2026-01-11T17:00:00Z"]
        );
    }
    // Monday to Friday at 7:10.
    for workday in ["10 7 * * mon-fri", "10 7 * * 2-6"] {
        assert_eq!(
            times(workday, start, 3),
            [
                "2026-01-01T07:10:00Z",
                "2026-01-02T07:10:00Z",
                "2026-01-05T07:10:00Z"
            ]
        );
    }
    assert_eq!(next("0 15 1 * *", start), "2026-01-01T15:00:00Z");
    // The last Friday of the month at 18:00.
    for last_friday in ["0 18 * * 6L", "0 18 * * friL"] {
        assert_eq!(
            times(last_friday, start, 2),
            ["2026-01-30T18:00:00Z", "2026-02-27T18:00:00Z"]
        );
    }
    // The last weekday of the month at 23:59.
    assert_eq!(
        times("59 23 LW * *", start, 2),
        ["2026-01-30T23:59:00Z", "2026-02-27T23:59:00Z"]
    );
}

#[test]
fn the_other_forms_work_too() {
    let start = "2026-01-01T00:00:00Z";
    assert_eq!(next("0 0 L * *", start), "2026-01-31T00:00:00Z");
    assert_eq!(next("0 0 L 2 *", start), "2026-02-28T00:00:00Z");
    // The 15th of March 2026 is a Sunday, of August a Saturday.
    assert_eq!(next("0 0 15W 3 *", start), "2026-03-16T00:00:00Z");
    assert_eq!(next("0 0 15W 8 *", start), "2026-08-14T00:00:00Z");
    assert_eq!(next("0 0 * * 2#1", start), "2026-01-05T00:00:00Z");
    assert_eq!(next("0 0 * * MON#3", start), "2026-01-19T00:00:00Z");
    assert_eq!(next("0 0 * * 7", start), "2026-01-03T00:00:00Z");
    assert_eq!(next("0 0 1 aug *", start), "2026-08-01T00:00:00Z");
    assert_eq!(
        times("50/5 23 31 DEC *", start, 3),
        [
            "2026-12-31T23:50:00Z",
            "2026-12-31T23:55:00Z",
            "2027-12-31T23:50:00Z"
        ]
    );
    assert_eq!(
        times("0 0 13 * FRI", "2026-02-01T00:00:00Z", 3),
        [
            "2026-02-06T00:00:00Z",
            "2026-02-13T00:00:00Z",
            "2026-02-20T00:00:00Z"
        ],
        "either the day or the weekday"
    );
    assert_eq!(
        times("0 0 * * */3", start, 3),
        [
            "2026-01-03T00:00:00Z",
            "2026-01-04T00:00:00Z",
            "2026-01-07T00:00:00Z"
        ],
        "Sunday, Wednesday, Saturday"
    );
}

#[test]
fn a_leap_day_is_found_and_an_impossible_day_refused() {
    assert_eq!(
        next("0 0 29 2 *", "2026-01-01T00:00:00Z"),
        "2028-02-29T00:00:00Z"
    );
    let never = Schedule::parse("0 0 29 2 *").unwrap();
    assert_eq!(
        never.next_after(ms("2097-01-01T00:00:00Z")),
        None,
        "2100 is no leap year"
    );
    for impossible in ["0 0 30 2 *", "0 0 31 4,6,9,11 *"] {
        let error = Schedule::parse(impossible).unwrap_err().to_string();
        assert!(error.contains("no such day ever comes"), "{error}");
    }
    assert!(Schedule::parse("0 0 30 2 MON").is_ok(), "the weekday comes");
}

#[test]
fn errors_name_the_field_and_the_mistake() {
    for (expression, says) in [
        ("", "it has 0 fields; there must be five"),
        ("* * * *", "it has 4 fields"),
        ("0 * * * * *", "it has 6 fields"),
        ("@daily", "it has 1 fields"),
        (
            "60 * * * *",
            "\"60\" in the minute field: a value is a number from 0 to 59",
        ),
        ("* 24 * * *", "\"24\" in the hour field"),
        ("* * 0 * *", "\"0\" in the day of month field"),
        ("* * * 13 *", "from 1 to 12 or JAN to DEC"),
        ("* * * JANUARY *", "\"JANUARY\" in the month field"),
        (
            "* * * * 0",
            "\"0\" in the weekday field: a value is a number from 1 to 7 or SUN to SAT (1 is Sunday)",
        ),
        ("* * * * MON#6", "after # comes a number from 1 to 5"),
        (
            "*/0 * * * *",
            "\"/0\" in the minute field: a step is a number from 1 to 59",
        ),
        (
            "30-10 * * * *",
            "\"30-10\" in the minute field: the range goes backwards",
        ),
        ("* * L-3 * *", "only L and LW are"),
        ("* * 32W * *", "\"32\" in the day of month field"),
        ("1,,2 * * * *", "\"\" in the minute field"),
        ("+5 * * * *", "\"+5\""),
        ("? * * * *", "\"?\""),
        ("* * * * é", "weekday field"),
    ] {
        let error = Schedule::parse(expression).unwrap_err().to_string();
        assert!(error.contains(says), "{expression}: {error}");
        assert!(error.contains(expression), "{error}");
    }
}

/// A field as text and as a set; its values are named up to `max`, steps and `*` go to the field's `end`.
fn list(min: u32, max: u32, end: u32) -> impl Strategy<Value = (String, Vec<u32>)> {
    prop_oneof![
        2 => Just(("*".to_owned(), (min..=end).collect())),
        2 => prop::collection::btree_set(min..=max, 1..4).prop_map(|set| {
            let values: Vec<u32> = set.into_iter().collect();
            let text: Vec<String> = values.iter().map(u32::to_string).collect();
            (text.join(","), values)
        }),
        1 => (min..=max, min..=max).prop_map(|(a, b)| {
            let (a, b) = (a.min(b), a.max(b));
            (format!("{a}-{b}"), (a..=b).collect())
        }),
        1 => (min..=max, 1..=(max - min)).prop_map(move |(a, step)| {
            (format!("{a}/{step}"), (a..=end).step_by(step as usize).collect())
        }),
    ]
}

proptest! {
    #[test]
    fn the_next_time_is_later_matches_and_is_the_first(
        minutes in list(0, 59, 59), hours in list(0, 23, 23), days in list(1, 28, 31), months in list(1, 12, 12), weekdays in list(1, 7, 7),
        after_ms in 0i64..4_000_000_000_000,
    ) {
        let expression = format!("{} {} {} {} {}", minutes.0, hours.0, days.0, months.0, weekdays.0);
        let schedule = Schedule::parse(&expression).unwrap();
        let matches = |at: i64| {
            let at = TimeZone::UTC.to_datetime(Timestamp::from_millisecond(at).unwrap());
            let weekday = at.date().weekday().to_sunday_one_offset();
            let has = |set: &Vec<u32>, value: i8| set.contains(&u32::try_from(value).unwrap());
            let (day, week) = (has(&days.1, at.day()), has(&weekdays.1, weekday));
            let day_matches = match (days.0 == "*", weekdays.0 == "*") {
                (false, false) => day || week,
                (true, _) => week,
                (false, true) => day,
            };
            has(&minutes.1, at.minute()) && has(&hours.1, at.hour()) && has(&months.1, at.month()) && day_matches
        };
        let next = schedule.next_after(after_ms).unwrap();
        prop_assert!(next > after_ms);
        prop_assert_eq!(next % 60_000, 0);
        prop_assert!(matches(next), "{} does not match {}", next, expression);
        // Every minute between, as far as patience goes.
        let first = after_ms.div_euclid(60_000) + 1;
        for minute in (first..next / 60_000).take(3000) {
            prop_assert!(!matches(minute * 60_000), "{} was passed over", minute);
        }
    }

    #[test]
    fn no_text_makes_it_fail(text in "\\PC{0,30}", fields in "[0-9*/,LW#A-Z-]{1,4}( [0-9*/,LW#A-Z-]{1,4}){4}") {
        let _ = Schedule::parse(&text);
        if let Ok(schedule) = Schedule::parse(&fields) {
            let _ = schedule.next_after(0);
        }
    }
}

#[test]
fn sunday_is_one() {
    assert_eq!(Weekday::Sunday.to_sunday_one_offset(), 1);
}
