//! Symbols that libraries refer to and this program never calls. Defining them here keeps what they name, and all
//! that it names in turn, out of the runtime.
//!
//! The linker takes a library's own definition if another symbol needs the same object file. It then reports a
//! duplicate symbol: nothing here can silently get into use in place of the real thing.
#![allow(unsafe_code, reason = "symbols that libraries look for")]

use std::ffi::{c_int, c_void};

/// Defines functions that end the process, as one that calls them is not the one we know.
macro_rules! never_called {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name() -> ! {
            std::process::abort()
        }
    )*};
}
#[cfg(less_glibc)]
pub(crate) use never_called;

/// Walks the callers of a function (Itanium C++ ABI: exception handling), of which there are none: the tables that it
/// would need are left out (`runtime.ld`). std's message about a panic asks for it to print a backtrace, and because
/// the compiler sees here that nothing is done with a frame, the reader of debug information goes too: 210 kB.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Backtrace(_step: *const c_void, _argument: *mut c_void) -> c_int {
    /// `_URC_END_OF_STACK`.
    const END_OF_STACK: c_int = 5;
    END_OF_STACK
}

// The rest of the unwinder, which `panic = "abort"` leaves without a caller.
never_called! {
    _Unwind_ForcedUnwind
    _Unwind_GetCFA
    _Unwind_GetDataRelBase
    _Unwind_GetIP
    _Unwind_GetIPInfo
    _Unwind_GetLanguageSpecificData
    _Unwind_GetRegionStart
    _Unwind_GetTextRelBase
    _Unwind_Resume
    _Unwind_SetGR
    _Unwind_SetIP
}

// BLAKE3's features `no_avx512` and `no_sse2` choose other code at run time and keep the references: 41 kB.
#[cfg(target_arch = "x86_64")]
never_called! {
    blake3_compress_in_place_avx512
    blake3_compress_in_place_sse2
    blake3_compress_xof_avx512
    blake3_compress_xof_sse2
    blake3_hash_many_avx512
    blake3_hash_many_sse2
    blake3_xof_many_avx512
}
