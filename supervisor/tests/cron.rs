//! When tasks are due, where clocks are changed too; and the zones that it hangs on.
#![allow(missing_docs)]

use std::path::PathBuf;

use kitbag_supervisor::time::cron::{CronError, Expression, Field, next_after};
use kitbag_supervisor::time::date::{date_of, days_of, weekday_of};
use kitbag_supervisor::time::zone::{Period, TzifError, Zone, ZoneError};

const BERLIN: &[u8] = include_bytes!("zoneinfo/Europe/Berlin");
const DUBLIN: &[u8] = include_bytes!("zoneinfo/Europe/Dublin");
const NEW_YORK: &[u8] = include_bytes!("zoneinfo/America/New_York");
const LORD_HOWE: &[u8] = include_bytes!("zoneinfo/Australia/Lord_Howe");

fn zone(bytes: &[u8]) -> Zone {
    Zone::from_tzif(bytes).expect("a zone")
}

fn cron(text: &str) -> Expression {
    Expression::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// `2026-03-29 02:30` as if it were UTC.
fn clock(text: &str) -> i64 {
    let mut numbers = text.split(['-', ' ', ':']).map(|number| number.parse::<i64>().expect(text));
    let mut next = || numbers.next().expect(text);
    let (year, month, day, hour, minute) = (next(), next(), next(), next(), next());
    days_of(year, month as u32, day as u32) * 86_400 + hour * 3600 + minute * 60
}

/// What a clock of the zone shows, with its offset: `2026-03-29 03:00 +120`.
fn local(at: i64, zone: &Zone) -> String {
    let offset = i64::from(zone.period_at(at).offset);
    let shown = at + offset;
    let (year, month, day) = date_of(shown.div_euclid(86_400));
    let minute = shown.rem_euclid(86_400) / 60;
    format!("{year}-{month:02}-{day:02} {:02}:{:02} {:+}", minute / 60, minute % 60, offset / 60)
}

/// The times after one of UTC.
fn due(text: &str, zone: &Zone, after: &str, count: usize) -> Vec<String> {
    let expression = cron(text);
    let mut at = clock(after);
    let mut next = || {
        at = next_after(&expression, at, zone)?;
        Some(local(at, zone))
    };
    (0..count).map_while(|_| next()).collect()
}

#[test]
fn lists_ranges_steps_and_names() {
    let utc = Zone::utc();
    let after = "2026-01-01 00:00";
    assert_eq!(
        due("*/20 * * * *", &utc, after, 3),
        ["2026-01-01 00:20 +0", "2026-01-01 00:40 +0", "2026-01-01 01:00 +0"]
    );
    assert_eq!(
        due("5,10-20/5 3 * * *", &utc, after, 4),
        ["2026-01-01 03:05 +0", "2026-01-01 03:10 +0", "2026-01-01 03:15 +0", "2026-01-01 03:20 +0"]
    );
    assert_eq!(due("0 0 1 JAN,jul *", &utc, after, 2), ["2026-07-01 00:00 +0", "2027-01-01 00:00 +0"]);
    // 2026-01-01 is a Thursday.
    assert_eq!(
        due("0 12 * * fri-sun", &utc, after, 3),
        ["2026-01-02 12:00 +0", "2026-01-03 12:00 +0", "2026-01-04 12:00 +0"]
    );
    assert_eq!(cron("0 0 * * 0"), cron("0 0 * * 7"));
    assert_eq!(cron("0 0 * * sun"), cron("0 0 * * 7"));
    assert_eq!(cron("0 0 * * 5-7"), cron("0 0 * * 0,5,6"));
    assert_eq!(cron("  0\t0  * * *  "), cron("@daily"));
}

#[test]
fn words_stand_for_expressions() {
    for (word, text) in [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@Annually", "0 0 1 1 *"),
    ] {
        assert_eq!(cron(word), cron(text), "{word}");
    }
}

#[test]
fn one_of_two_given_days_suffices() {
    let utc = Zone::utc();
    // The 13th, or a Friday.
    assert_eq!(
        due("0 0 13 * fri", &utc, "2026-01-01 00:00", 3),
        ["2026-01-02 00:00 +0", "2026-01-09 00:00 +0", "2026-01-13 00:00 +0"]
    );
    // With a `*` first it has to be both: Fridays on odd days.
    assert_eq!(
        due("0 0 */2 * fri", &utc, "2026-01-01 00:00", 3),
        ["2026-01-09 00:00 +0", "2026-01-23 00:00 +0", "2026-02-13 00:00 +0"]
    );
}

#[test]
fn days_that_are_rare_or_never() {
    let utc = Zone::utc();
    assert_eq!(Expression::parse("0 0 30 2 *"), Err(CronError::Never(30)));
    assert_eq!(Expression::parse("0 0 31 4,6,9,11 *"), Err(CronError::Never(31)));
    assert_eq!(due("0 0 29 2 *", &utc, "2096-02-29 00:00", 1), ["2104-02-29 00:00 +0"]);
    assert_eq!(due("0 0 29 2 *", &utc, "2396-02-29 00:00", 1), ["2400-02-29 00:00 +0"]);
    // With a `*` first both days count: the 1st or 29th of February on a Monday.
    assert_eq!(due("0 0 */28 2 mon", &utc, "2088-02-29 00:00", 1), ["2094-02-01 00:00 +0"]);
}

/// The rarest that are taken are due within the 400 years after which the calendar begins again; each that is refused
/// is on no day of those years.
#[test]
fn what_is_refused_as_never_due_is_never_due() {
    let lengths = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    for day in 28..=31 {
        for month in 1..=12 {
            let text = format!("0 0 {day} {month} *");
            let expected = if day <= lengths[month - 1] { Ok(()) } else { Err(CronError::Never(day)) };
            assert_eq!(Expression::parse(&text).map(drop), expected, "{text}");
            for weekdays in ["*", "*/6"] {
                if let Ok(expression) = Expression::parse(&format!("0 0 {day} {month} {weekdays}")) {
                    assert!(next_after(&expression, 0, &Zone::utc()).is_some(), "{text} {weekdays}");
                }
            }
            // The day of the week makes up for it.
            assert!(Expression::parse(&format!("0 0 {day} {month} mon")).is_ok());
        }
    }
}

#[test]
fn leap_years_to_2400() {
    let leap = due("0 0 29 2 *", &Zone::utc(), "1999-01-01 00:00", 200);
    let years: Vec<i64> =
        leap.iter().map(|text| text[..4].parse().expect("a year")).take_while(|year| *year <= 2400).collect();
    let expected: Vec<i64> =
        (2000..=2400).filter(|year| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)).collect();
    assert_eq!(years, expected);
}

#[test]
fn a_skipped_time_is_made_up_for_once() {
    // Berlin, 2026-03-29: 02:00 is 03:00 (01:00 UTC).
    let berlin = zone(BERLIN);
    let after = "2026-03-28 12:00";
    for text in ["30 2 * * *", "0,15,30 2 * * *", "0 2,3 * * *"] {
        assert_eq!(due(text, &berlin, after, 1), ["2026-03-29 03:00 +120"], "{text}");
    }
    assert_eq!(due("30 2 * * *", &berlin, after, 2)[1], "2026-03-30 02:30 +120");
    assert_eq!(due("0,15 2 * * *", &berlin, after, 2)[1], "2026-03-30 02:00 +120");
    assert_eq!(due("0 2,3 * * *", &berlin, after, 2)[1], "2026-03-30 02:00 +120");
    // It was due already, a second ago.
    assert_eq!(due("30 2 * * *", &berlin, "2026-03-29 01:00", 1), ["2026-03-30 02:30 +120"]);
    // New York, 2026-03-08: 02:00 is 03:00. Lord Howe, 2026-10-04: 02:00 is 02:30.
    assert_eq!(due("59 2 * * *", &zone(NEW_YORK), "2026-03-08 00:00", 1), ["2026-03-08 03:00 -240"]);
    let lord_howe = zone(LORD_HOWE);
    assert_eq!(due("15 2 * * *", &lord_howe, "2026-10-03 12:00", 1), ["2026-10-04 02:30 +660"]);
    assert_eq!(due("45 2 * * *", &lord_howe, "2026-10-03 12:00", 1), ["2026-10-04 02:45 +660"]);
}

#[test]
fn a_time_that_comes_twice_is_used_once() {
    // Berlin, 2026-10-25: 03:00 is 02:00 (01:00 UTC).
    let berlin = zone(BERLIN);
    let after = "2026-10-24 12:00";
    assert_eq!(due("30 2 * * *", &berlin, after, 2), ["2026-10-25 02:30 +120", "2026-10-26 02:30 +60"]);
    assert_eq!(due("0 3 * * *", &berlin, after, 1), ["2026-10-25 03:00 +60"]);
    assert_eq!(
        due("30 1 * * *", &zone(NEW_YORK), "2026-11-01 00:00", 2),
        ["2026-11-01 01:30 -240", "2026-11-02 01:30 -300"]
    );
    // Lord Howe, 2026-04-05: 02:00 is 01:30.
    let lord_howe = zone(LORD_HOWE);
    assert_eq!(
        due("15,45 1 * * *", &lord_howe, "2026-04-04 12:00", 3),
        ["2026-04-05 01:15 +660", "2026-04-05 01:45 +660", "2026-04-06 01:15 +630"]
    );
    // Asked in the second hour.
    assert_eq!(due("30 2 * * *", &berlin, "2026-10-25 01:10", 1), ["2026-10-26 02:30 +60"]);
}

#[test]
fn a_star_in_minute_or_hour_goes_by_real_time() {
    let berlin = zone(BERLIN);
    assert_eq!(
        due("30 * * * *", &berlin, "2026-10-25 00:00", 3),
        ["2026-10-25 02:30 +120", "2026-10-25 02:30 +60", "2026-10-25 03:30 +60"]
    );
    assert_eq!(
        due("30 * * * *", &berlin, "2026-03-29 00:00", 2),
        ["2026-03-29 01:30 +60", "2026-03-29 03:30 +120"]
    );
    assert_eq!(due("*/30 2 * * *", &berlin, "2026-03-28 12:00", 1), ["2026-03-30 02:00 +120"]);
}

#[test]
fn rules_of_the_footer_hold_for_later_years() {
    assert_eq!(
        due("30 2 28 3 *", &zone(BERLIN), "2400-01-01 00:00", 2),
        ["2400-03-28 02:30 +120", "2401-03-28 02:30 +120"]
    );
    assert_eq!(
        due("0 12 1 1,7 *", &zone(BERLIN), "2399-12-01 00:00", 2),
        ["2400-01-01 12:00 +60", "2400-07-01 12:00 +120"]
    );
    assert_eq!(
        due("0 12 1 1,7 *", &zone(DUBLIN), "2399-12-01 00:00", 2),
        ["2400-01-01 12:00 +0", "2400-07-01 12:00 +60"]
    );
}

#[test]
fn errors_name_the_field_and_what_it_may_have() {
    let error = |text: &str| Expression::parse(text).expect_err(text);
    assert_eq!(error(""), CronError::Fields(0));
    assert_eq!(error("* * * *"), CronError::Fields(4));
    assert_eq!(error("0 * * * * *"), CronError::Fields(6));
    for (text, field, part) in [
        ("60 * * * *", Field::Minute, "60"),
        ("* 24 * * *", Field::Hour, "24"),
        ("* * 0 * *", Field::DayOfMonth, "0"),
        ("* * * 13 *", Field::Month, "13"),
        ("* * * mon *", Field::Month, "mon"),
        ("* * * * 8", Field::DayOfWeek, "8"),
        ("* * * * monday", Field::DayOfWeek, "monday"),
        ("* * L * *", Field::DayOfMonth, "L"),
        ("1,,2 * * * *", Field::Minute, ""),
        ("+1 * * * *", Field::Minute, "+1"),
        ("-1 * * * *", Field::Minute, "-1"),
        ("1- * * * *", Field::Minute, "1-"),
        ("*/x * * * *", Field::Minute, "*/x"),
        ("*/1/2 * * * *", Field::Minute, "*/1/2"),
        ("*5 * * * *", Field::Minute, "*5"),
        ("99999999999 * * * *", Field::Minute, "99999999999"),
    ] {
        assert_eq!(error(text), CronError::Value(field, part.to_owned()), "{text}");
    }
    assert_eq!(error("* 5-3 * * *"), CronError::Range(Field::Hour, "5-3".to_owned()));
    for (text, longest) in [("*/0", 59), ("*/60", 59), ("1-5/9", 4)] {
        assert_eq!(
            error(&format!("{text} * * * *")),
            CronError::Step(Field::Minute, text.to_owned(), longest)
        );
    }
    assert_eq!(error("0 0 30,31 2 *"), CronError::Never(30));
}

/// A generator of numbers that is the same each time (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % limit
    }
}

/// The same by hand: a field's text and its values, star or not.
fn random_field(random: &mut Random, least: u64, most: u64) -> (String, Vec<u64>, bool) {
    match random.below(4) {
        0 => ("*".to_owned(), (least..=most).collect(), true),
        1 => {
            let step = 1 + random.below(most - least);
            (format!("*/{step}"), (least..=most).step_by(step as usize).collect(), true)
        }
        2 => {
            let first = least + random.below(most - least + 1);
            let last = first + random.below(most - first + 1);
            (format!("{first}-{last}"), (first..=last).collect(), false)
        }
        _ => {
            let values: Vec<u64> =
                (0..=random.below(3)).map(|_| least + random.below(most - least + 1)).collect();
            (values.iter().map(u64::to_string).collect::<Vec<_>>().join(","), values, false)
        }
    }
}

/// Walks minute by minute with a clock on the wall, as the documentation tells it.
fn walk(fits: &dyn Fn(i64) -> bool, real_time: bool, zone: &Zone, from: i64, to: i64) -> Vec<i64> {
    let shows = |at: i64| at + i64::from(zone.period_at(at).offset);
    // What was shown on the two days before counts as shown.
    let mut latest = shows(from - 2 * 86_400);
    let mut found = Vec::new();
    for at in (from - 2 * 86_400..to).step_by(60) {
        let shown = shows(at);
        let is_due = if real_time {
            fits(shown)
        } else {
            // All that the clock has skipped to come here, and what it shows, unless it was shown before.
            (latest + 60..=shown).step_by(60).any(fits)
        };
        latest = latest.max(shown);
        if is_due && at >= from {
            found.push(at);
        }
    }
    found
}

#[test]
fn what_is_due_is_what_a_walk_by_the_minute_finds() {
    let zones = [
        ("Berlin", zone(BERLIN)),
        ("New York", zone(NEW_YORK)),
        ("Lord Howe", zone(LORD_HOWE)),
        ("UTC", Zone::utc()),
    ];
    // Around changes of the clock, and in the rules' years.
    let days = [
        "2026-03-27",
        "2026-10-23",
        "2026-03-06",
        "2026-10-30",
        "2026-04-03",
        "2026-10-02",
        "2060-10-29",
        "1987-04-03",
    ];
    let mut random = Random(4);
    for round in 0..250 {
        let (name, zone) = &zones[random.below(4) as usize];
        let (minute, minutes, minute_star) = random_field(&mut random, 0, 59);
        // Most changes are in the first hours.
        let most_hour = if random.below(2) == 0 { 23 } else { 4 };
        let (hour, hours, hour_star) = match random_field(&mut random, 0, most_hour) {
            (_, _, true) if most_hour == 4 => ("1-3".to_owned(), vec![1, 2, 3], false),
            field => field,
        };
        let (day, dates, date_star) = random_field(&mut random, 1, 31);
        let (weekday, weekdays, weekday_star) = random_field(&mut random, 0, 6);
        let (day, dates, date_star) = if random.below(2) == 0 {
            ("*".into(), (1..=31).collect(), true)
        } else {
            (day, dates, date_star)
        };
        let fits = |shown: i64| {
            let days = shown.div_euclid(86_400);
            let (by_date, by_week) = (
                dates.contains(&u64::from(date_of(days).2)),
                weekdays.contains(&u64::from(weekday_of(days))),
            );
            let in_day = shown.rem_euclid(86_400) as u64;
            hours.contains(&(in_day / 3600))
                && minutes.contains(&(in_day / 60 % 60))
                && if date_star || weekday_star { by_date && by_week } else { by_date || by_week }
        };
        let text = format!("{minute} {hour} {day} * {weekday}");
        let from = clock(&format!("{} 00:00", days[random.below(days.len() as u64) as usize]))
            + random.below(1440) as i64 * 60;
        let to = from + 4 * 86_400;
        let expected = walk(&fits, minute_star || hour_star, zone, from, to);
        let expression = cron(&text);
        let mut at = from - 1;
        let mut found = Vec::new();
        while let Some(next) = next_after(&expression, at, zone).filter(|next| *next < to) {
            assert!(next > at);
            found.push(next);
            at = next;
        }
        let readable = |list: &[i64]| list.iter().map(|at| local(*at, zone)).collect::<Vec<_>>();
        assert_eq!(readable(&found), readable(&expected), "round {round}: `{text}` in {name} from {from}");
    }
}

#[test]
fn instants_far_away_are_answered() {
    for zone in [Zone::utc(), zone(BERLIN), zone(LORD_HOWE)] {
        for at in [i64::MIN, i64::MIN + 1, -1, 0, i64::MAX - 1, i64::MAX] {
            let Period { start, end, .. } = zone.period_at(at);
            assert!(start <= at && (at < end || at == i64::MAX), "{start} {at} {end}");
            next_after(&cron("30 2 * * *"), at, &zone).expect("it is due some day");
        }
    }
}

#[test]
fn offsets_are_those_of_history() {
    let offset = |bytes: &[u8], text: &str| zone(bytes).period_at(clock(text)).offset / 60;
    assert_eq!(offset(BERLIN, "1900-01-01 00:00"), 60);
    assert_eq!(offset(BERLIN, "1945-06-01 00:00"), 180);
    assert_eq!(offset(BERLIN, "1970-07-01 00:00"), 60);
    assert_eq!(offset(BERLIN, "2026-03-29 00:59"), 60);
    assert_eq!(offset(BERLIN, "2026-03-29 01:00"), 120);
    assert_eq!(offset(NEW_YORK, "2026-07-01 00:00"), -240);
    assert_eq!(offset(LORD_HOWE, "2026-07-01 00:00"), 630);
    assert_eq!(offset(LORD_HOWE, "2026-01-01 00:00"), 660);
    assert_eq!(offset(DUBLIN, "2026-01-01 00:00"), 0);
    // The file's first time, in seconds.
    assert_eq!(zone(BERLIN).period_at(i64::MIN).offset, 53 * 60 + 28);
}

#[test]
fn texts_of_tz_are_rules() {
    let offset = |text: &str, at: &str| Zone::from_posix(text).expect(text).period_at(clock(at)).offset / 60;
    assert_eq!(offset("EST5EDT", "2026-07-01 00:00"), -240);
    assert_eq!(offset("<+0330>-3:30", "2026-07-01 00:00"), 210);
    assert_eq!(offset("<-03>3<-02>,M3.5.0/-2,M10.5.0/-1", "2026-03-29 00:59"), -180);
    assert_eq!(offset("<-03>3<-02>,M3.5.0/-2,M10.5.0/-1", "2026-03-29 01:00"), -120);
    // Day 60 is March 1 in each year; day 59 counted from 0 is February 29 where there is one.
    assert_eq!(offset("AAA0BBB,J60/0,J300/0", "2024-02-29 23:59"), 0);
    assert_eq!(offset("AAA0BBB,J60/0,J300/0", "2024-03-01 00:00"), 60);
    assert_eq!(offset("AAA0BBB,59/0,300/0", "2024-02-29 00:00"), 60);
    // Summer time all year (RFC 9636, section 3.3.1).
    let always = Zone::from_posix("XXX3EDT4,0/0,J365/23").expect("a zone");
    for month in 1..=12 {
        assert_eq!(always.period_at(clock(&format!("2026-{month}-01 04:30"))).offset, -4 * 3600, "{month}");
    }
    for text in [
        "",
        "CET",
        "CE-1",
        "CET-25",
        "CET-1CEST,M3.5.0",
        "CET-1CEST,M13.1.0,M1.1.0",
        "CET-1CEST,M3.5.0,M10.5.0/168",
        "<CET-1",
        "CET-1CEST,M3.5.0,M10.5.0,",
        "CET1:60",
        "CET-1CEST,J0,J1",
        "CET-0001",
    ] {
        assert_eq!(Zone::from_posix(text), None, "{text}");
    }
}

#[test]
fn zones_are_found_by_name() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/zoneinfo");
    let nowhere = folder.join("nowhere");
    let folders = [nowhere.clone(), folder.clone()];
    assert_eq!(Zone::load("Europe/Berlin", None, &folders), Ok(zone(BERLIN)));
    assert_eq!(Zone::load("UTC", None, &[]), Ok(Zone::utc()));
    let unknown = ZoneError::Unknown("Europe/Atlantis".into(), folders.to_vec());
    assert_eq!(Zone::load("Europe/Atlantis", None, &folders), Err(unknown));
    assert_eq!(
        Zone::load("Europe", None, &folders),
        Err(ZoneError::Unknown("Europe".into(), folders.to_vec()))
    );
    for name in
        ["", "/etc/localtime", "../tests", "Europe/../Europe/Berlin", "Europe//Berlin", "a b", "Europe/"]
    {
        assert_eq!(Zone::load(name, None, &folders), Err(ZoneError::Name(name.into())), "{name}");
    }
    let local = |tz: &str| Zone::load("local", Some(tz), &folders);
    assert_eq!(local(""), Ok(Zone::utc()));
    for tz in ["Europe/Berlin", ":Europe/Berlin"] {
        assert_eq!(local(tz), Ok(zone(BERLIN)));
    }
    assert_eq!(local(&folder.join("Europe/Berlin").display().to_string()), Ok(zone(BERLIN)));
    assert_eq!(local("CET-1"), Ok(Zone::from_posix("CET-1").expect("a zone")));
    assert!(local("local").is_err() && local("Atlantis").is_err());
    let readme = folder.join("README.md").display().to_string();
    assert_eq!(local(&readme), Err(ZoneError::Damaged(readme.into(), TzifError::Magic)));
    assert!(Zone::load("local", None, &folders).is_ok(), "the host's");
}

#[test]
fn files_cut_anywhere_are_refused() {
    for bytes in [BERLIN, LORD_HOWE] {
        for length in 0..bytes.len() {
            assert!(Zone::from_tzif(&bytes[..length]).is_err(), "{length} bytes");
        }
    }
}

#[test]
fn damaged_files_do_no_harm() {
    let mut random = Random(9);
    let mut good = 0;
    for _ in 0..5_000 {
        let mut bytes = [BERLIN, LORD_HOWE, NEW_YORK, DUBLIN][random.below(4) as usize].to_vec();
        for _ in 0..=random.below(6) {
            let length = bytes.len() as u64;
            // Headers and the footer more often than the rest.
            let at = match random.below(4) {
                0 => random.below(44),
                1 => length - 1 - random.below(40),
                _ => random.below(length),
            };
            bytes[at as usize] = random.below(256) as u8;
        }
        let Ok(zone) = Zone::from_tzif(&bytes) else { continue };
        good += 1;
        for _ in 0..4 {
            let at = random.below(u64::MAX).cast_signed() >> random.below(63);
            let Period { start, end, .. } = zone.period_at(at);
            assert!(start <= at && at < end, "{start} {at} {end}");
        }
        next_after(&cron("30 2 1 * *"), clock("2026-01-01 00:00"), &zone);
    }
    assert!(good > 250, "{good} of 5,000 were read");
}
