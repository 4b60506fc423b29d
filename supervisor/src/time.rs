//! Time as people count it: dates, zones, and when crontab(5) says that something is due.

pub mod cron;
pub mod date;
pub mod zone;
