//! Who waits for whom: plain counters over services and tasks, so that no event looks at more than its neighbours.
//!
//! A service starts when all that it needs is ready, or done; it stops when nothing that needs it is active.

use crate::state::State;

/// Number of a service or task in the bundle.
pub type Part = usize;

/// What is known of a service's or task's units.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Node {
    needs: Vec<Part>,
    needed_by: Vec<Part>,
    /// Units that it has; retired ones do not count.
    units: u32,
    /// Of them, ready or well done.
    good: u32,
    /// Of them, failed for good.
    failed: u32,
    /// Units that run or are going to, retired ones too.
    active: u32,
    /// Of the parts that need it directly, those that hold it.
    holders: u32,
}

/// How things stand with what a part needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// All is ready, or done.
    Met,
    /// Not yet.
    Open,
    /// This one has failed for good.
    Failed(Part),
}

/// The needs of a bundle and where its parts stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Order {
    nodes: Vec<Node>,
}

impl Order {
    /// An order of parts with these needs, which are free of cycles (the bundler, and `Manifest::fault`, see to that).
    /// No part has a unit yet.
    pub fn new(needs: Vec<Vec<Part>>) -> Self {
        let mut nodes: Vec<Node> = needs.iter().map(|_| Node::default()).collect();
        for (part, needed) in needs.into_iter().enumerate() {
            for &one in &needed {
                if let Some(node) = nodes.get_mut(one) {
                    node.needed_by.push(part);
                }
            }
            nodes[part].needs = needed;
        }
        Self { nodes }
    }

    /// A part has one unit more, in this state.
    pub fn add(&mut self, part: Part, state: &State) {
        self.change(part, |node| {
            node.units += 1;
            node.count(state, 1, false);
        });
    }

    /// A unit in this state is no longer wanted. What becomes of it is told by [`Self::moved`] as before.
    pub fn retire(&mut self, part: Part, state: &State) {
        let node = &mut self.nodes[part];
        node.count(state, -1, false);
        node.count(state, 1, true);
        node.units -= 1;
    }

    /// A retired unit is wanted again.
    pub fn revive(&mut self, part: Part, state: &State) {
        let node = &mut self.nodes[part];
        node.count(state, -1, true);
        node.count(state, 1, false);
        node.units += 1;
    }

    /// A unit went from one state to another. True if its neighbours have to be looked at.
    pub fn moved(&mut self, part: Part, before: &State, after: &State, retired: bool) -> bool {
        let seen = |node: &Node| (node.is_good(), node.failed > 0, node.active);
        let old = seen(&self.nodes[part]);
        self.change(part, |node| {
            node.count(before, -1, retired);
            node.count(after, 1, retired);
        });
        old != seen(&self.nodes[part])
    }

    /// Counts, and tells what the part needs if it holds that from now on, or does no more.
    fn change(&mut self, part: Part, count: impl FnOnce(&mut Node)) {
        let node = &mut self.nodes[part];
        let held = node.holds();
        count(node);
        let holds = node.holds();
        let mut open = Vec::new();
        if holds != held {
            open.push(part);
        }
        while let Some(part) = open.pop() {
            for at in 0..self.nodes[part].needs.len() {
                let need = self.nodes[part].needs[at];
                let node = &mut self.nodes[need];
                let held = node.holds();
                node.holders = node.holders.saturating_add_signed(if holds { 1 } else { -1 });
                if node.holds() != held {
                    open.push(need);
                }
            }
        }
    }

    /// How things stand with what a part needs.
    pub fn needs(&self, part: Part) -> Needs {
        let mut all = Needs::Met;
        for &one in &self.nodes[part].needs {
            let node = &self.nodes[one];
            if node.failed > 0 {
                return Needs::Failed(one);
            }
            if !node.is_good() {
                all = Needs::Open;
            }
        }
        all
    }

    /// What a part needs, directly.
    pub fn needs_of(&self, part: Part) -> &[Part] {
        &self.nodes[part].needs
    }

    /// True if nothing of it runs, nor is going to.
    pub fn is_at_rest(&self, part: Part) -> bool {
        self.nodes[part].active == 0
    }

    /// What a part needs that is not ready.
    pub fn open_needs(&self, part: Part) -> impl Iterator<Item = Part> {
        self.nodes[part].needs.iter().copied().filter(|one| !self.nodes[*one].is_good())
    }

    /// True if nothing that needs the part, directly or not, is active: it may stop.
    pub fn is_free(&self, part: Part) -> bool {
        self.nodes[part].holders == 0
    }

    /// What may be free now that the part has stopped: of what it needs, and of what that needs, as far as it is at rest.
    pub fn freed_by(&self, part: Part) -> Vec<Part> {
        let (mut freed, mut seen, mut open) = (Vec::new(), Vec::new(), vec![part]);
        while let Some(part) = open.pop() {
            for &need in &self.nodes[part].needs {
                if !self.is_free(need) {
                    continue;
                }
                // Who needs nothing needs no table.
                seen.resize(self.nodes.len(), false);
                if !std::mem::replace(&mut seen[need], true) {
                    freed.push(need);
                    if self.is_at_rest(need) {
                        open.push(need);
                    }
                }
            }
        }
        freed
    }

    /// What needs the part, directly.
    pub fn needed_by(&self, part: Part) -> &[Part] {
        &self.nodes[part].needed_by
    }

    /// These parts and all that they need, directly or not; what is needed stands before what needs it.
    pub fn needs_first(&self, parts: impl IntoIterator<Item = Part>) -> Vec<Part> {
        self.closure(parts, |node| &node.needs)
    }

    /// The part and all that needs it, directly or not; what needs another stands before it.
    pub fn with_dependents(&self, part: Part) -> Vec<Part> {
        self.closure([part], |node| &node.needed_by)
    }

    /// Parts and whatever is to be reached from them on one side, each behind all that is to be reached from it.
    fn closure(
        &self,
        parts: impl IntoIterator<Item = Part>,
        side: impl Fn(&Node) -> &Vec<Part>,
    ) -> Vec<Part> {
        let mut seen = vec![false; self.nodes.len()];
        let (mut all, mut open) = (Vec::new(), Vec::new());
        for root in parts {
            let mut next = Some(root);
            loop {
                if let Some(part) = next.take().filter(|part| !std::mem::replace(&mut seen[*part], true)) {
                    open.push((part, side(&self.nodes[part]).iter()));
                }
                let Some((part, neighbours)) = open.last_mut() else { break };
                next = neighbours.next().copied();
                if next.is_none() {
                    all.push(*part);
                    open.pop();
                }
            }
        }
        all
    }
}

impl Node {
    const fn is_good(&self) -> bool {
        self.good == self.units
    }

    /// True if what it needs may not stop: it is active, or it stands between that and somebody who is.
    const fn holds(&self) -> bool {
        self.active > 0 || self.holders > 0
    }

    fn count(&mut self, state: &State, by: i32, retired: bool) {
        let add = |counter: &mut u32| *counter = counter.saturating_add_signed(by);
        if !state.is_at_rest() {
            add(&mut self.active);
        }
        if retired {
            return;
        }
        if state.is_good() {
            add(&mut self.good);
        }
        if state.has_failed() {
            add(&mut self.failed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Outcome, Run};

    const RUN: Run = Run { group: 7, since: 0 };
    const READY: State = State::Ready { run: RUN, next: None, strikes: 0, reloading: None };
    const RUNNING: State = State::Running { run: RUN, late_at: None, next: None };
    const STOPPED: State = State::Ended(Outcome::Stopped);

    /// 0 is a database, 1 a web server in two instances that needs it, 2 a proxy that needs 1.
    fn chain() -> Order {
        let mut order = Order::new(vec![vec![], vec![0], vec![1]]);
        for part in [0, 1, 1, 2] {
            order.add(part, &State::New);
        }
        order
    }

    #[test]
    fn a_part_waits_until_every_unit_that_it_needs_is_ready() {
        let mut order = chain();
        assert_eq!([order.needs(0), order.needs(1)], [Needs::Met, Needs::Open]);
        assert!(!order.moved(1, &State::New, &State::New, false));
        assert!(order.moved(0, &State::New, &READY, false));
        assert_eq!(order.needs(1), Needs::Met);
        order.moved(1, &State::New, &READY, false);
        assert_eq!(order.needs(2), Needs::Open, "one of two");
        assert_eq!(order.open_needs(2).collect::<Vec<_>>(), [1]);
        order.moved(1, &State::New, &READY, false);
        assert_eq!(order.needs(2), Needs::Met);
    }

    #[test]
    fn a_need_that_fails_is_named_and_one_that_is_done_is_good() {
        let mut order = chain();
        order.moved(0, &State::New, &State::Ended(Outcome::GivenUp), false);
        assert_eq!(order.needs(1), Needs::Failed(0));
        order.moved(0, &State::Ended(Outcome::GivenUp), &State::Ended(Outcome::Succeeded), false);
        assert_eq!(order.needs(1), Needs::Met);
    }

    #[test]
    fn a_part_is_free_when_all_that_need_it_are_at_rest() {
        let mut order = chain();
        for part in [0, 1, 1, 2] {
            order.moved(part, &State::New, &RUNNING, false);
        }
        assert_eq!([order.is_free(0), order.is_free(1), order.is_free(2)], [false, false, true]);
        order.moved(2, &RUNNING, &STOPPED, false);
        order.moved(1, &RUNNING, &STOPPED, false);
        assert_eq!([order.is_free(0), order.is_free(1)], [false, true]);
        assert!(order.moved(1, &RUNNING, &STOPPED, false));
        assert!(order.is_free(0));
    }

    #[test]
    fn a_task_that_is_done_hides_nobody_behind_it() {
        // 0 is a database, 1 a migration that needs it, 2 a web server that needs the migration.
        let mut order = chain();
        order.moved(0, &State::New, &READY, false);
        order.moved(1, &State::New, &State::Ended(Outcome::Succeeded), false);
        order.moved(2, &State::New, &RUNNING, false);
        assert!(!order.is_free(0), "the web server still runs");
        assert!(order.moved(2, &RUNNING, &STOPPED, false));
        assert_eq!((order.freed_by(2), order.is_free(0)), (vec![1, 0], true));
    }

    #[test]
    fn a_retired_unit_is_waited_for_at_a_stop_and_by_nobody_else() {
        let mut order = chain();
        order.moved(1, &State::New, &READY, false);
        assert_eq!(order.needs(2), Needs::Open);
        order.retire(1, &State::New);
        assert_eq!(order.needs(2), Needs::Met);
        order.revive(1, &State::New);
        order.moved(1, &State::New, &READY, false);
        order.retire(1, &READY);
        assert_eq!(order.needs(2), Needs::Met);
        order.moved(1, &READY, &STOPPED, false);
        assert!(!order.is_free(0), "the retired one still runs");
        order.moved(1, &READY, &STOPPED, true);
        assert!(order.is_free(0));
    }

    #[test]
    fn closures_reach_far_and_end() {
        let order = chain();
        assert_eq!(order.with_dependents(0), [2, 1, 0]);
        assert_eq!(order.needs_first([2]), [0, 1, 2]);
        assert_eq!(order.needs_first([1, 0, 2]), [0, 1, 2]);
        // 1 is needed by 0, and by 3 far behind it.
        let order = Order::new(vec![vec![1, 2], vec![], vec![3], vec![1]]);
        assert_eq!(order.needs_first([0]), [1, 3, 2, 0]);
        // A cycle, which no manifest has.
        assert_eq!(Order::new(vec![vec![1], vec![0]]).needs_first([0]), [1, 0]);
    }
}
