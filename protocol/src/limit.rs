//! How often one address, or one network that belongs to one host, may connect: a bucket of tokens for each,
//! refilled with time.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// Most addresses that are remembered; beyond, those that have been quiet long enough are forgotten.
const ADDRESSES_MAX: usize = 4096;

/// Connections that an address may make.
#[derive(Debug)]
pub(crate) struct Limit {
    burst: f64,
    per_second: f64,
    buckets: BTreeMap<IpAddr, Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Duration,
}

impl Limit {
    /// At most `per_minute` in the long run, and as many at once.
    pub(crate) fn new(per_minute: u32) -> Self {
        let burst = f64::from(per_minute);
        Self { burst, per_second: burst / 60.0, buckets: BTreeMap::new() }
    }

    /// Whether `address` may connect at `now`.
    pub(crate) fn allows(&mut self, address: IpAddr, now: Duration) -> bool {
        let address = network(address);
        let (burst, per_second) = (self.burst, self.per_second);
        let filled = move |bucket: &Bucket| {
            let since = now.saturating_sub(bucket.at).as_secs_f64();
            (bucket.tokens + since * per_second).min(burst)
        };
        if self.buckets.len() >= ADDRESSES_MAX && !self.buckets.contains_key(&address) {
            self.buckets.retain(|_, bucket| filled(bucket) < burst);
            if self.buckets.len() >= ADDRESSES_MAX {
                return false;
            }
        }
        let bucket = self.buckets.entry(address).or_insert(Bucket { tokens: burst, at: now });
        *bucket = Bucket { tokens: filled(bucket), at: now };
        let allowed = bucket.tokens >= 1.0;
        bucket.tokens -= f64::from(u8::from(allowed));
        allowed
    }

    /// A connection that was allowed does not count.
    pub(crate) fn give_back(&mut self, address: IpAddr) {
        if let Some(bucket) = self.buckets.get_mut(&network(address)) {
            bucket.tokens = (bucket.tokens + 1.0).min(self.burst);
        }
    }
}

/// Who has one IPv6 address has all of its /64 network.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & u128::MAX << 64).into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn an_address_gets_its_burst_then_its_rate_and_others_do_not_suffer() {
        let mut limit = Limit::new(6);
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut count = |address, from: u64, to: u64| {
            let at = |second| Duration::from_secs(second);
            (from..to).filter(|&second| limit.allows(address, at(second))).count()
        };
        assert_eq!(count(a, 0, 6), 6);
        // One every ten seconds from then on.
        assert_eq!(count(a, 6, 66), 6);
        assert_eq!(count(b, 66, 72), 6);
    }

    #[test]
    fn what_is_given_back_may_be_used_again() {
        let mut limit = Limit::new(3);
        let address = IpAddr::from([10, 0, 0, 1]);
        for _ in 0..100 {
            assert!(limit.allows(address, Duration::ZERO));
            limit.give_back(address);
        }
        limit.give_back(address);
        let count = (0..10).filter(|_| limit.allows(address, Duration::ZERO)).count();
        assert_eq!(count, 3, "no more than the burst is ever there");
    }

    #[test]
    fn memory_is_bounded_and_quiet_addresses_make_room() {
        let mut limit = Limit::new(1);
        for number in 0..2 * ADDRESSES_MAX as u32 {
            limit.allows(Ipv4Addr::from(number).into(), Duration::from_secs(1));
            assert!(limit.buckets.len() <= ADDRESSES_MAX);
        }
        assert!(!limit.allows(Ipv4Addr::from(u32::MAX).into(), Duration::from_secs(2)));
        assert!(limit.allows(Ipv4Addr::from(u32::MAX).into(), Duration::from_secs(100)));
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_and_ipv4_in_ipv6_is_ipv4() {
        let parsed = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(network(parsed("2001:db8::1")), network(parsed("2001:db8::ffff:2:1")));
        assert_ne!(network(parsed("2001:db8::1")), network(parsed("2001:db8:0:1::1")));
        assert_eq!(network(parsed("::ffff:10.0.0.1")), parsed("10.0.0.1"));
    }
}
