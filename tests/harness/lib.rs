//! The harness of the black-box suite.
