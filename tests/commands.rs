//! The commands about a bundle as scripts type them, and operators at three in the morning.
