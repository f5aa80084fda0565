//! Places of a listener: verified peers have theirs, and nobody else's connection takes one. Those that have not
//! attested yet share others, and where these are full the one with least to show gives way: of the networks that have
//! most of them, the oldest.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::limit::network;

/// Most verified peers at a time: four times the workers of a job, so that those who come back find a place while the
/// old connection is not yet known to be gone.
pub(super) const VERIFIED_MAX: usize = 256;
/// Most connections that have not attested yet, each with a TLS state and buffers; of one network, so that four
/// strangers do not take all; and of one that connects too often, which may be an ingress with honest peers behind it.
pub(super) const HALF_OPEN_MAX: usize = 256;
pub(super) const SHARE_MAX: usize = 64;
pub(super) const SHARE_OVER_RATE: usize = 8;

/// A connection that has not attested yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct HalfOpen {
    /// Which one; the older has the lower.
    pub(super) id: usize,
    pub(super) address: IpAddr,
    /// Its certificate was accepted: it is a genuine TD of accepted code, whose fresh quote is still to come.
    pub(super) has_certificate: bool,
}

/// Who has to go, if anybody, so that one more of `newcomer` may come, whose network has `share` places.
pub(super) fn displaced(all: &[HalfOpen], newcomer: IpAddr, share: usize) -> Option<usize> {
    let mut crowds: BTreeMap<IpAddr, Vec<&HalfOpen>> = BTreeMap::new();
    for half_open in all {
        crowds.entry(network(half_open.address)).or_default().push(half_open);
    }
    let least = |one: &&&HalfOpen| (one.has_certificate, one.id);
    let own = crowds.get(&network(newcomer)).filter(|own| own.len() >= share);
    if let Some(own) = own {
        return own.iter().min_by_key(least).map(|one| one.id);
    }
    // Networks that have as many are one crowd: who owns thousands of them chooses where in their order he stands.
    let most = crowds.values().map(Vec::len).max().filter(|_| all.len() >= HALF_OPEN_MAX)?;
    let crowd = crowds.values().filter(|crowd| crowd.len() == most).flatten();
    crowd.min_by_key(least).map(|one| one.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crowd(ids: std::ops::Range<usize>, address: [u8; 4]) -> Vec<HalfOpen> {
        let half_open = |id| HalfOpen { id, address: address.into(), has_certificate: false };
        ids.map(half_open).collect()
    }

    const CROWD: [u8; 4] = [10, 0, 0, 1];
    const OTHER: [u8; 4] = [10, 0, 0, 2];

    #[test]
    fn a_network_that_has_its_share_loses_its_own_oldest() {
        let all = [crowd(5..10, OTHER), crowd(10..10 + SHARE_MAX, CROWD)].concat();
        assert_eq!(displaced(&all, CROWD.into(), SHARE_MAX), Some(10));
        assert_eq!(displaced(&all, OTHER.into(), SHARE_MAX), None);
        assert_eq!(displaced(&all, [10, 0, 0, 3].into(), SHARE_MAX), None);
        assert_eq!(displaced(&all, OTHER.into(), 5), Some(5));
    }

    #[test]
    fn where_all_is_full_whoever_has_most_makes_room() {
        let crowds = (0..HALF_OPEN_MAX / SHARE_MAX).map(|number| {
            let ids = 100 + number * SHARE_MAX..100 + (number + 1) * SHARE_MAX;
            crowd(ids, [10, 1, 0, number as u8])
        });
        let mut all: Vec<HalfOpen> = crowds.flatten().skip(1).collect();
        all.push(crowd(1..2, OTHER)[0]);
        let gone = displaced(&all, OTHER.into(), SHARE_MAX).expect("full");
        assert!(gone >= 100, "not the one that came first, whose network has no other");
    }

    #[test]
    fn who_has_a_network_for_each_connection_pushes_out_his_own_oldest() {
        let one = |id: usize| crowd(id..id + 1, [10, 1, (id >> 8) as u8, id as u8])[0];
        let strangers: Vec<HalfOpen> = (0..HALF_OPEN_MAX - 1).map(one).collect();
        // Before or behind all of them.
        for honest in [[10, 0, 0, 1], [10, 9, 0, 1]] {
            let all = [strangers.clone(), crowd(1000..1001, honest)].concat();
            assert_eq!(displaced(&all, [10, 2, 0, 1].into(), SHARE_MAX), Some(0));
        }
        let mut all = [strangers, crowd(1000..1001, [10, 9, 0, 1])].concat();
        all[0].has_certificate = true;
        assert_eq!(displaced(&all, [10, 2, 0, 1].into(), SHARE_MAX), Some(1));
    }

    #[test]
    fn who_showed_a_certificate_goes_after_everybody_who_did_not() {
        let mut all = crowd(0..SHARE_MAX, CROWD);
        all[0].has_certificate = true;
        assert_eq!(displaced(&all, CROWD.into(), SHARE_MAX), Some(1));
        all.iter_mut().for_each(|one| one.has_certificate = true);
        assert_eq!(displaced(&all, CROWD.into(), SHARE_MAX), Some(0));
    }
}
