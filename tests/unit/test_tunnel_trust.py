"""Which addresses trusted subnets hold: a table, and text of peers that is no network."""

import pytest

from weave_router.tunnel.trust import Trust

NETWORKS = ("10.0.0.0/8", "2001:db8::/32")


@pytest.mark.parametrize(
    ("networks", "hosts", "trusted"),
    [
        (NETWORKS, ["10.1.2.3"], True),
        (NETWORKS, ["10.1.2.3", "2001:db8::7"], True),
        (NETWORKS, ["::ffff:10.1.2.3"], True),
        (NETWORKS, ["10.1.2.3", "192.0.2.1"], False),
        (NETWORKS, ["::ffff:192.0.2.1"], False),
        (NETWORKS, ["11.0.0.0"], False),
        (NETWORKS, ["2001:db9::"], False),
        (NETWORKS, ["host.example"], False),
        (NETWORKS, [], False),
        ((), ["10.1.2.3"], False),
        (("10.0.0.1/8", "nonsense", ""), ["10.0.0.1"], False),
        (("::/0",), ["10.0.0.1"], False),
    ],
)
def test_all_addresses_must_be_inside(networks: tuple[str, ...], hosts: list[str], trusted: bool) -> None:
    assert Trust(networks).all_of([(host, 6783) for host in hosts]) is trusted
