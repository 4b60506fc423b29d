//! What one ELF file says of itself: what it needs, where it looks, what it provides.
