//! Which free device each stopped guest should point at. Pure.

use crate::address::PciAddress;
use std::collections::{BTreeMap, BTreeSet};

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

/// Where each want is to point, in their order. Whoever comes first chooses first.
///
/// Each gets a free device of its own as long as there are enough; beyond that they share, evenly, and the first to be
/// started has it. What is free and nobody else's stays, so that nothing is moved without need; with nothing free, all
/// stay. A guest never gets a device twice, nor one that it has besides (`others`).
pub fn assign(
    wants: &[Want],
    free: &BTreeMap<&str, Vec<PciAddress>>,
    others: &BTreeMap<&str, BTreeSet<PciAddress>>,
) -> Vec<PciAddress> {
    let mut guests_at: BTreeMap<PciAddress, usize> = BTreeMap::new();
    let mut result: Vec<PciAddress> = wants.iter().map(|want| want.current).collect();
    let is_free: BTreeMap<&str, BTreeSet<PciAddress>> =
        free.iter().map(|(pool, members)| (*pool, members.iter().copied().collect())).collect();
    let mut unsettled = Vec::new();
    for (index, want) in wants.iter().enumerate() {
        let stays = is_free.get(want.pool).is_some_and(|free| free.contains(&want.current));
        if stays && !guests_at.contains_key(&want.current) {
            guests_at.insert(want.current, 1);
        } else {
            unsettled.push(index);
        }
    }
    for index in unsettled {
        let want = &wants[index];
        let siblings = wants.iter().zip(&result).enumerate();
        let own: BTreeSet<PciAddress> = siblings
            .filter(|(other, (sibling, _))| *other != index && sibling.guest == want.guest)
            .flat_map(|(_, (sibling, now))| [sibling.current, *now])
            .chain(others.get(want.guest).into_iter().flatten().copied())
            .collect();
        let members = free.get(want.pool).into_iter().flatten().filter(|address| !own.contains(address));
        let best =
            members.min_by_key(|address| (guests_at.get(address).copied().unwrap_or(0), **address != want.current));
        if let Some(best) = best {
            *guests_at.entry(*best).or_insert(0) += 1;
            result[index] = *best;
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ["a:0", "b:1", "c:0", "d:1", "e:0"]
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
}
