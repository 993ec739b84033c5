"""Host numbers and what operators type for them."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from weave_router.errors import UsageError
from weave_router.ipam.number import Universe, mac_of, mac_text, parse_address, prefix_v6_of

UNIVERSE = Universe(IPv4Network("10.32.0.0/12"), prefix_v6_of(b"12345678"))


def test_one_number_in_three_clothes() -> None:
    number = parse_address(UNIVERSE, "10.32.0.65")
    assert mac_text(mac_of(number)) == "0a:58:0a:20:00:41"
    assert UNIVERSE.ipv4_of(number) == IPv4Address("10.32.0.65")
    assert UNIVERSE.number_of(UNIVERSE.ipv6_of(number)) == number


def test_prefix_is_a_ula_and_follows_the_domain() -> None:
    assert UNIVERSE.network_v6.subnet_of(IPv6Network("fd00::/8"))
    assert prefix_v6_of(b"12345678") != prefix_v6_of(b"12345679")
    assert len(UNIVERSE.prefix_v6) == 12


def test_other_networks_are_outside() -> None:
    assert UNIVERSE.number_of(IPv4Address("192.0.2.1")) is None
    assert UNIVERSE.number_of(IPv6Address("fd00::1")) is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("host", "host is not an IPv4 address: give one of 10.32.0.0/12"),
        ("192.0.2.1", "192.0.2.1 lies outside --ipalloc-range 10.32.0.0/12: give one inside"),
        ("10.32.0.0", "10.32.0.0 is the first or last address of 10.32.0.0/12, which are reserved"),
        ("10.47.255.255", "10.47.255.255 is the first or last address of 10.32.0.0/12, which are reserved"),
    ],
)
def test_sentences(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_address(UNIVERSE, text)
    assert str(error.value) == sentence
