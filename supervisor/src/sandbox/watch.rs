//! Where there is no Landlock
