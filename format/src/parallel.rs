//! The same work by several threads: bundles are read, written, compared in pieces that do not depend on each other.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use crate::error::Error;

/// More threads than this only contend for the kernel's locks on folders.
const MOST_THREADS: usize = 8;

/// The number of threads worth using: the cores that this process may run on, sched_getaffinity(2). (Rust's own
/// count also reads cgroup limits, which a burst of a second does not care about, for 8 kB in every bundle.)
pub fn threads() -> usize {
    let set = sched_getaffinity(Pid::from_raw(0)).ok();
    let count = |set: CpuSet| (0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false)).count();
    set.map_or(1, count).clamp(1, MOST_THREADS)
}

/// Does `work` in so many threads at once, the caller's being one; where more cannot be had, in fewer. Returns the
/// first error.
pub fn run(threads: usize, work: impl Fn() -> Result<(), Error> + Sync) -> Result<(), Error> {
    std::thread::scope(|scope| {
        let helpers: Vec<_> =
            (1..threads).map_while(|_| std::thread::Builder::new().spawn_scoped(scope, &work).ok()).collect();
        let mine = work();
        helpers
            .into_iter()
            .fold(mine, |sum, helper| sum.and(helper.join().unwrap_or_else(|panic| resume_unwind(panic))))
    })
}

/// Calls `work` for each number below `count`, in any order. Threads take `batch` numbers at a time.
pub fn for_each(count: usize, batch: usize, work: &(dyn Fn(usize) + Sync)) {
    let next = AtomicUsize::new(0);
    let batch = batch.max(1);
    // Nothing in it fails.
    let _ = run(count.div_ceil(batch).min(threads()), || {
        loop {
            let start = next.fetch_add(batch, Ordering::Relaxed);
            if start >= count {
                return Ok(());
            }
            (start..count.min(start + batch)).for_each(work);
        }
    });
}
