//! Waits of the kernel's that others could make long, cut short.
//!
//! A descriptor that was passed to this process, received or not, is let go in a system call of this process. If it was the
//! last one for a socket with `SO_LINGER` (socket(7)), that call waits until the other side has taken what was written, as
//! long as the option says: for ever, if whoever passed it likes. The wait ends when a signal is to be handled, which a timer
//! sends here.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;

use super::signal;

/// Nanoseconds that such a wait takes at most.
const LONGEST: i64 = 1_000_000;

/// Cuts waits of the thread that made it.
#[derive(Debug)]
pub struct Hurry {
    /// The kernel's number of a timer that is not set; `None` where there is none left (`RLIMIT_SIGPENDING`).
    timer: Option<c_int>,
}

impl Hurry {
    /// Makes the timer, and has SIGALRM do nothing but end waits. Programs get its default action back (execve(2)).
    pub fn of_this_thread() -> Self {
        let mut timer: c_int = 0;
        // SAFETY: all-zero is a valid `sigevent`; the kernel reads it, and writes the timer's number. The call is the kernel's
        // own, as libc's keeps a record of timers.
        let made = unsafe {
            let mut event: libc::sigevent = MaybeUninit::zeroed().assume_init();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = libc::SIGALRM;
            event.sigev_notify_thread_id = libc::gettid();
            libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, &raw const event, &raw mut timer)
        };
        let is_made = made == 0 && signal::handle_with_nothing(libc::SIGALRM).is_ok();
        Self { timer: is_made.then_some(timer) }
    }

    /// Does this. Each wait in it that a signal ends is over after a millisecond: what it does has to bear `EINTR`.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        let Some(timer) = self.timer else { return work() };
        let before = signal::change_mask(!(1 << (libc::SIGALRM - 1)));
        set(timer, LONGEST);
        let done = work();
        set(timer, 0);
        signal::set_mask(before);
        done
    }
}

impl Drop for Hurry {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            // SAFETY: timer_delete(2) takes a number, which is this one's.
            unsafe { libc::syscall(libc::SYS_timer_delete, timer) };
        }
    }
}

/// Lets it go off again and again, each time after so many nanoseconds; 0: never.
fn set(timer: c_int, nanoseconds: i64) {
    // SAFETY: `itimerspec` holds numbers; the kernel reads it, and writes nothing to a null pointer.
    unsafe {
        let mut times: libc::itimerspec = MaybeUninit::zeroed().assume_init();
        times.it_value.tv_nsec = nanoseconds;
        times.it_interval.tv_nsec = nanoseconds;
        libc::syscall(libc::SYS_timer_settime, timer, 0, &raw const times, ptr::null_mut::<c_void>());
    }
}

#[cfg(test)]
#[allow(missing_docs)]
pub mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use nix::sys::socket::{setsockopt, sockopt};

    /// A socket that closes only when the other side, which comes with it, has taken what was written, which it never does, or
    /// after a quarter of a minute.
    pub fn lingering() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut socket = TcpStream::connect(listener.local_addr().expect("one")).expect("a listener");
        let (other, _) = listener.accept().expect("a connection");
        socket.set_nonblocking(true).expect("an option");
        while socket.write(&[0; 65_536]).is_ok() {}
        let linger = libc::linger { l_onoff: 1, l_linger: 15 };
        setsockopt(&socket, sockopt::Linger, &linger).expect("an option");
        (socket, other)
    }
}
