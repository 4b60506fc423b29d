//! Ports: leased by binding, kept while their service does not run, published for others, remembered.
//!
//! A lease is two descriptors. A name in the abstract namespace of unix(7), `kitbag/port/tcp/8080`, decides between the
//! supervisors of a network namespace, whoever's they are; and a socket that is bound to the number, and does not listen,
//! keeps all other programs off. The kernel takes both back when the supervisor dies, however it dies: there is nothing to
//! clean up. What this takes of the kernel is tried in `tests/port_rules.rs`, a rule a test.

pub mod assignments;
mod diag;
pub mod holder;
pub mod lease;
pub mod looked;
pub mod range;
pub mod refused;
pub mod registry;
pub mod socket_folder;
pub mod sockets;
pub mod unix;
pub mod watch;
