//! Dates of the Gregorian calendar, as if it had always been in use, and days counted from 1970-01-01. By Howard Hinnant,
//! <https://howardhinnant.github.io/date_algorithms.html>.

/// Days from 1970-01-01 to a date of the Gregorian calendar; months and days from 1.
/// (`days_from_civil`)
pub const fn days_of(year: i64, month: u32, day: u32) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    // March is the first month: a leap day is a year's last.
    let day_of_year = (153 * ((month as i64 + 9) % 12) + 2) / 5 + day as i64 - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The year, month and day of so many days after 1970-01-01.
pub const fn date_of(days: i64) -> (i64, u32, u32) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month as u32, day as u32)
}

/// The day of the week of so many days after 1970-01-01, 0 is Sunday.
pub const fn weekday_of(days: i64) -> u32 {
    (days + 4).rem_euclid(7) as u32
}
