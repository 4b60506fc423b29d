//! The same work for many things, by as many threads as there are cores.

use std::sync::atomic::{AtomicUsize, Ordering};

/// More threads than this only contend for the kernel's locks on folders.
const MOST_THREADS: usize = 8;

/// Calls `work` for each number below `count`, in any order. Threads take `batch` numbers at a time; where
/// threads cannot be had, the caller's does it all.
pub fn for_each(count: usize, batch: usize, work: &(dyn Fn(usize) + Sync)) {
    let next = AtomicUsize::new(0);
    let batch = batch.max(1);
    let run = || {
        loop {
            let start = next.fetch_add(batch, Ordering::Relaxed);
            if start >= count {
                break;
            }
            (start..count.min(start + batch)).for_each(work);
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = count.div_ceil(batch).min(cores).clamp(1, MOST_THREADS);
    std::thread::scope(|scope| {
        for _ in 1..threads {
            if std::thread::Builder::new().spawn_scoped(scope, run).is_err() {
                break;
            }
        }
        run();
    });
}
