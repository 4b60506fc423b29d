//! The walk over all needs: from the files that go in to everything that has to come along.
