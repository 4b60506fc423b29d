//! Where a loader looks for a library, in its order.
