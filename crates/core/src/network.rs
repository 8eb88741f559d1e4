//! Networks of addresses: `10.0.0.0/8`, `2001:db8::/32`.
//!
//! An address is compared by its bits, however it is written; an IPv4 address that stands in an IPv6 one
//! (`::ffff:10.0.0.1`) is that IPv4 address, so that nobody gets past a list by the family of his socket.
//!
//! Read here and not by `core::net`, which takes three times the bytes in a module; tests hold it against that.

/// An address without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Of IPv4 only the first four count.
    bytes: [u8; 16],
    is_v4: bool,
}

/// All addresses with the same first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    first: Address,
    bits: u32,
}

impl Address {
    /// Reads an address; `None` if it is none.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut bytes = [0; 16];
        let Some(mut rest) = v6_part(text) else {
            *bytes.first_chunk_mut()? = dotted(text)?;
            return Some(Self { bytes, is_v4: true });
        };
        let mut at = 0;
        let mut gap = None;
        if let [b':', b':', after @ ..] = rest {
            (gap, rest) = (Some(0), after);
        }
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == b':').unwrap_or(rest.len());
            let (part, after) = rest.split_at_checked(end)?;
            if part.contains(&b'.') {
                *bytes.get_mut(at..)?.first_chunk_mut()? = dotted(part)?;
                at += 4;
            } else {
                let group = u16::try_from(number(part, 16)?).ok()?;
                *bytes.get_mut(at..)?.first_chunk_mut()? = group.to_be_bytes();
                at += 2;
            }
            rest = match after {
                [] => after,
                // Dots are the end.
                _ if part.contains(&b'.') => return None,
                [_, b':', rest @ ..] if gap.is_none() => {
                    gap = Some(at);
                    rest
                }
                [_] => return None,
                [_, rest @ ..] => rest,
            };
        }
        match gap {
            // Two colons stand for one group at least: what follows them goes to the end.
            Some(gap) if at <= 14 => {
                let moved = 16 - (at - gap);
                bytes.copy_within(gap..at, moved);
                bytes.get_mut(gap..moved)?.fill(0);
            }
            None if at == 16 => {}
            _ => return None,
        }
        if let [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] = bytes {
            bytes = [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            return Some(Self { bytes, is_v4: true });
        }
        Some(Self { bytes, is_v4: false })
    }

    /// The address with nothing but its first `bits`.
    fn cut(mut self, bits: u32) -> Self {
        let mut left = bits;
        for byte in &mut self.bytes {
            let kept = left.min(8);
            // The shift of a byte by 8 is one of a wider number.
            let [mask, _] = (0xff00_u16 >> kept).to_le_bytes();
            *byte &= mask;
            left -= kept;
        }
        self
    }
}

impl Network {
    /// What is wrong with what is no network, behind its text.
    pub const NONE: &'static str = "which is no network: write an address, a slash and how many of its first bits count, such as 10.0.0.0/8 or 2001:db8::/32";

    /// What is wrong with a network whose address says more than its bits.
    pub const TOO_LONG: &'static str =
        "whose address has more bits than those that count: the rest must be 0";

    /// Reads a network. `None` if `text` is the name of somebody, and an error if it is meant to be a network and is
    /// none.
    pub fn parse(text: &str) -> Option<Result<Self, &'static str>> {
        let slash = text.bytes().position(|byte| byte == b'/')?;
        let (address, bits) = text.as_bytes().split_at_checked(slash)?;
        let is_v6 = address.contains(&b':');
        let is_part = |byte: &u8| {
            matches!(byte, b'.' | b':')
                || if is_v6 { byte.is_ascii_hexdigit() } else { byte.is_ascii_digit() }
        };
        let has_parts = is_v6 || address.contains(&b'.');
        if !has_parts || !address.iter().all(is_part) {
            return None;
        }
        let (Some(first), Some(bits)) =
            (Address::parse(address), number(bits.get(1..).unwrap_or_default(), 10))
        else {
            return Some(Err(Self::NONE));
        };
        // What is written as IPv6 counts its bits as such.
        let skipped = if first.is_v4 && is_v6 { 96 } else { 0 };
        let most = if first.is_v4 { 32 } else { 128 };
        let Some(bits) = bits.checked_sub(skipped).filter(|bits| *bits <= most) else {
            return Some(Err(Self::NONE));
        };
        Some(if first.cut(bits) == first { Ok(Self { first, bits }) } else { Err(Self::TOO_LONG) })
    }

    /// Whether an address is one of the network's.
    pub fn contains(&self, address: Address) -> bool {
        self.first.is_v4 == address.is_v4 && address.cut(self.bits) == self.first
    }
}

/// What is to be read as IPv6, without the zone of a link-local address: that says where it is, and not who.
fn v6_part(text: &[u8]) -> Option<&[u8]> {
    text.contains(&b':').then(|| text.split(|byte| *byte == b'%').next().unwrap_or(text))
}

/// The bytes of `1.2.3.4`.
fn dotted(text: &[u8]) -> Option<[u8; 4]> {
    let mut bytes = [0; 4];
    let mut parts = text.split(|byte| *byte == b'.');
    for byte in &mut bytes {
        *byte = u8::try_from(number(parts.next()?, 10)?).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

/// A number of one to four digits. With decimal ones a leading zero is refused: some read what follows as octal.
fn number(text: &[u8], radix: u32) -> Option<u32> {
    let is_octal = radix == 10 && text.len() > 1 && text.starts_with(b"0");
    if text.is_empty() || text.len() > 4 || is_octal {
        return None;
    }
    text.iter()
        .try_fold(0, |number, byte| Some(number * radix + char::from(*byte).to_digit(radix)?))
}

#[cfg(test)]
mod tests {
    use alloc::{format, string::ToString as _};
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn network(text: &str) -> Network {
        Network::parse(text).unwrap().unwrap()
    }

    #[track_caller]
    fn check(text: &str, inside: &[&str], outside: &[&str]) {
        let network = network(text);
        let is_in = |address: &&str| network.contains(Address::parse(address.as_bytes()).unwrap());
        assert!(inside.iter().all(is_in), "{text}");
        assert!(!outside.iter().any(is_in), "{text}");
    }

    #[test]
    fn a_network_is_all_addresses_with_its_first_bits() {
        check(
            "10.0.0.0/8",
            &["10.0.0.0", "10.255.255.255"],
            &["11.0.0.0", "9.255.255.255", "a00::"],
        );
        check("127.0.0.2/31", &["127.0.0.2", "127.0.0.3"], &["127.0.0.1", "127.0.0.4"]);
        check("192.0.2.7/32", &["192.0.2.7", "::ffff:192.0.2.7"], &["192.0.2.6"]);
        check("0.0.0.0/0", &["0.0.0.0", "255.255.255.255", "::ffff:1.2.3.4"], &["::", "2001::"]);
        check("2001:db8::/32", &["2001:db8::1", "2001:0DB8:ffff::"], &["2001:db9::", "1.2.3.4"]);
        check("2001:db8::/33", &["2001:db8:7fff::"], &["2001:db8:8000::"]);
        check("::/0", &["::1", "fe80::1%eth0"], &["127.0.0.1"]);
        check("::ffff:10.0.0.0/104", &["10.1.2.3"], &["11.0.0.0"]);
    }

    #[test]
    fn a_name_with_a_slash_is_a_name() {
        for name in
            ["shop", "team/app", "a.b/8", "10/8", "svc:a/b", "", "/", "10.0.0.1", "x1.2.3.4/8"]
        {
            assert!(Network::parse(name).is_none(), "{name}");
        }
    }

    #[test]
    fn what_is_meant_as_a_network_and_is_none_is_refused() {
        for text in [
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/x",
            "10.0.0.0/+8",
            "10.0.0/8",
            "10.0.0.256/32",
            "010.0.0.0/8",
            "10.0.0.0/08",
            "10.0.0.0.0/8",
            "10..0.0/8",
            "2001:db8::/129",
            "2001:db8/32",
            "1::2::3/64",
            "::ffff:10.0.0.0/8",
            "12345::/16",
            ":1/8",
        ] {
            let problem = Network::parse(text).unwrap().unwrap_err();
            assert_eq!(problem, Network::NONE, "{text}");
        }
        let problem = Network::parse("10.0.0.1/8").unwrap().unwrap_err();
        assert_eq!(problem, Network::TOO_LONG);
    }

    proptest! {
        #[test]
        fn addresses_are_read_as_std_reads_them(text in "[0-9a-f:.]{0,20}|([0-9a-f]{0,4}:){1,8}[0-9a-f]{0,4}|([0-9]{1,3}\\.){3}[0-9]{1,3}") {
            let expected = text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
            let read = Address::parse(text.as_bytes());
            let bytes = read.map(|read| {
                let [a, b, c, d, ..] = read.bytes;
                if read.is_v4 { IpAddr::V4(Ipv4Addr::new(a, b, c, d)) } else { IpAddr::V6(Ipv6Addr::from(read.bytes)) }
            });
            prop_assert_eq!(bytes, expected);
        }

        #[test]
        fn a_network_contains_what_has_its_first_bits(first: u128, other: u128, near in 0_u32..128, bits in 0_u8..=128) {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            let start = first & mask;
            prop_assume!(Ipv6Addr::from(start).to_ipv4_mapped().is_none());
            let text = format!("{}/{bits}", Ipv6Addr::from(start));
            let network = network(&text);
            for address in [other, first ^ (1 << near)] {
                let written = Ipv6Addr::from(address);
                prop_assume!(written.to_ipv4_mapped().is_none());
                let read = Address::parse(written.to_string().as_bytes()).unwrap();
                prop_assert_eq!(network.contains(read), address & mask == start, "{} {}", text, written);
            }
        }
    }
}
