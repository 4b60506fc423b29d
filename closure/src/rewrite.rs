//! The few bytes of an ELF file that change, so that it finds its loader and libraries in the bundle alone.
