//! Which free device each stopped guest should point at. Pure.

use crate::address::PciAddress;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// One pooled device of a stopped guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want<'a> {
    /// The guest.
    pub guest: &'a str,
    /// Its pool.
    pub pool: &'a str,
    /// What its definition points at.
    pub current: PciAddress,
}

/// Where each want is to point, in their order. The first one chooses first.
///
/// Each gets a free device of its own as long as there are enough; beyond that they share, evenly, and the first to be
/// started has it. What is free and not shared by more than need be stays, so that nothing is moved without need, nor
/// twice; with nothing free, all stay. A guest never gets a device twice, nor one that it has besides (`others`).
pub fn assign(
    wants: &[Want],
    free: &BTreeMap<&str, Vec<PciAddress>>,
    others: &BTreeMap<&str, BTreeSet<PciAddress>>,
) -> Vec<PciAddress> {
    let mut places =
        Places { wants, free, others, now: wants.iter().map(|want| want.current).collect(), shares: BTreeMap::new() };
    let members: HashSet<(&str, PciAddress)> =
        free.iter().flat_map(|(pool, members)| members.iter().map(|address| (*pool, *address))).collect();
    let mut homeless = Vec::new();
    for (index, want) in wants.iter().enumerate() {
        let is_free = members.contains(&(want.pool, want.current));
        let is_twice = wants[..index].iter().any(|other| other.guest == want.guest && other.current == want.current);
        let is_besides = others.get(want.guest).is_some_and(|others| others.contains(&want.current));
        if is_free && !is_twice && !is_besides {
            *places.shares.entry(want.current).or_insert(0) += 1;
        } else {
            homeless.push(index);
        }
    }
    for index in &homeless {
        if let Some(best) = places.least_shared(*index) {
            places.put(*index, best);
        }
    }
    // Each move makes the shares more even, so this ends.
    while places.even_out() {}
    places.now
}

/// Where the wants point for now.
struct Places<'a> {
    wants: &'a [Want<'a>],
    free: &'a BTreeMap<&'a str, Vec<PciAddress>>,
    others: &'a BTreeMap<&'a str, BTreeSet<PciAddress>>,
    now: Vec<PciAddress>,
    /// How many point at a free device.
    shares: BTreeMap<PciAddress, usize>,
}

impl Places<'_> {
    fn share(&self, address: PciAddress) -> usize {
        self.shares.get(&address).copied().unwrap_or(0)
    }

    fn put(&mut self, index: usize, address: PciAddress) {
        *self.shares.entry(address).or_insert(0) += 1;
        self.now[index] = address;
    }

    /// The free device to which fewest point, of those that the guest has nowhere else. One that it is just being moved
    /// from is none of these: libvirt has it until then.
    fn least_shared(&self, index: usize) -> Option<PciAddress> {
        let want = &self.wants[index];
        let siblings = self.wants.iter().zip(&self.now).enumerate();
        let own: BTreeSet<PciAddress> = siblings
            .filter(|(other, (sibling, _))| *other != index && sibling.guest == want.guest)
            .flat_map(|(_, (sibling, now))| [sibling.current, *now])
            .chain(self.others.get(want.guest).into_iter().flatten().copied())
            .collect();
        let mut best: Option<(usize, PciAddress)> = None;
        for address in self.free.get(want.pool)?.iter().filter(|address| !own.contains(address)) {
            let share = self.share(*address);
            if best.is_none_or(|(least, _)| share < least) {
                best = Some((share, *address));
            }
            if share == 0 {
                break;
            }
        }
        best.map(|(_, address)| address)
    }

    /// Moves those that share with more than they would elsewhere, but the first of each device; whether there were
    /// any.
    fn even_out(&mut self) -> bool {
        let mut seen = BTreeSet::new();
        let mut has_moved = false;
        for index in 0..self.wants.len() {
            let place = self.now[index];
            if seen.insert(place) || self.share(place) < 2 {
                continue;
            }
            if let Some(best) = self.least_shared(index).filter(|best| self.share(*best) + 2 <= self.share(place)) {
                *self.shares.entry(place).or_insert(0) -= 1;
                self.put(index, best);
                seen.insert(best);
                has_moved = true;
            }
        }
        has_moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(function: usize) -> PciAddress {
        format!("0000:01:10.{function}").parse().unwrap()
    }

    /// Guests as `name:pool:function`, free functions of pool `p`.
    fn assigned(wants: &[&str], free: &[usize]) -> Vec<String> {
        let split: Vec<Vec<&str>> = wants.iter().map(|want| want.split(':').collect()).collect();
        let wants: Vec<Want> = split
            .iter()
            .map(|want| Want { guest: want[0], pool: want[1], current: at(want[2].parse().unwrap()) })
            .collect();
        let free = BTreeMap::from([("p", free.iter().map(|function| at(*function)).collect())]);
        let others = BTreeMap::from([("busy", BTreeSet::from([at(0)]))]);
        let places = assign(&wants, &free, &others);
        wants.iter().zip(places).map(|(want, place)| format!("{}:{}", want.guest, &place.to_string()[11..])).collect()
    }

    #[test]
    fn each_has_its_own_as_long_as_there_are_enough() {
        assert_eq!(assigned(&["a:p:0", "b:p:0", "c:p:0"], &[0, 1, 2]), ["a:0", "b:1", "c:2"]);
        assert_eq!(assigned(&["a:p:7", "b:p:0", "c:p:7"], &[0, 1, 2]), ["a:1", "b:0", "c:2"], "what is good stays");
        assert_eq!(assigned(&["a:p:1", "b:p:1"], &[1, 0]), ["a:1", "b:0"]);
    }

    #[test]
    fn then_they_share_evenly() {
        assert_eq!(
            assigned(&["a:p:0", "b:p:0", "c:p:0", "d:p:7", "e:p:7"], &[0, 1]),
            ["a:0", "b:0", "c:0", "d:1", "e:1"]
        );
        assert_eq!(assigned(&["a:p:7", "b:p:7"], &[3]), ["a:3", "b:3"]);
    }

    #[test]
    fn without_a_free_one_all_stay() {
        assert_eq!(assigned(&["a:p:7", "b:p:7", "c:unknown:1"], &[]), ["a:7", "b:7", "c:1"]);
    }

    #[test]
    fn a_guest_never_has_a_device_twice() {
        assert_eq!(assigned(&["a:p:7", "a:p:6"], &[3]), ["a:3", "a:6"]);
        assert_eq!(assigned(&["a:p:3", "a:p:3"], &[3, 4]), ["a:3", "a:4"]);
        assert_eq!(assigned(&["busy:p:7"], &[0]), ["busy:7"]);
        assert_eq!(assigned(&["busy:p:7"], &[0, 1]), ["busy:1"]);
        assert_eq!(assigned(&["a:p:0", "a:p:1", "b:p:0"], &[0, 2]), ["a:0", "a:2", "b:0"]);
    }

    proptest! {
        /// Guests have up to two devices each, which point anywhere.
        #[test]
        fn nothing_is_moved_twice_nor_shared_without_need(
            wants in prop::collection::vec((0..6u8, 0..8usize), 0..10),
            free in prop::sample::subsequence((0..8).collect::<Vec<usize>>(), 0..=8),
        ) {
            let names: Vec<String> = wants.iter().map(|(guest, _)| format!("g{guest}")).collect();
            let mut wants: Vec<Want> = wants
                .iter()
                .zip(&names)
                .map(|((_, function), guest)| Want { guest, pool: "p", current: at(*function) })
                .collect();
            let free = BTreeMap::from([("p", free.iter().map(|function| at(*function)).collect::<Vec<_>>())]);
            let places = assign(&wants, &free, &BTreeMap::new());
            let is_alone = |want: &Want| names.iter().filter(|name| *name == want.guest).count() == 1;
            if wants.iter().all(is_alone) {
                // As even as can be.
                let shares: Vec<usize> =
                    free["p"].iter().map(|device| places.iter().filter(|place| *place == device).count()).collect();
                let (least, most) = (shares.iter().min().unwrap_or(&0), shares.iter().max().unwrap_or(&0));
                prop_assert!(most - least <= 1, "{shares:?}");
            }
            for (want, place) in wants.iter().zip(&places) {
                prop_assert!(*place == want.current || free["p"].contains(place));
            }
            for (want, place) in wants.iter_mut().zip(&places) {
                want.current = *place;
            }
            // A device that a guest has just been moved from may do for another one of its own next time.
            let mut runs = 1 + 2 * usize::from(!wants.iter().all(is_alone));
            let mut places = places;
            loop {
                let next = assign(&wants, &free, &BTreeMap::new());
                if next == places {
                    break;
                }
                runs -= 1;
                prop_assert!(runs > 0, "{places:?} -> {next:?}");
                for (want, place) in wants.iter_mut().zip(&next) {
                    want.current = *place;
                }
                places = next;
            }
        }
    }
}
