"""A router looks for its host's addresses when the kernel told of a change, and then finds it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel.fastpath_pair import Namespace

from weave_router.host import kernel_driver
from weave_router.host.rtnl_driver import Rtnl


@pytest.fixture
def space() -> Iterator[Namespace]:
    space = Namespace()
    space.ip("link add under type veth peer name far", "link set under up", "link set far up")
    space.call(Path("/proc/sys/net/ipv6/conf/under/disable_ipv6").write_text, "0")
    yield space
    space.close()


def found(space: Namespace) -> list[str]:
    def ask() -> list[str]:
        with Rtnl() as rtnl:
            return kernel_driver.host_addresses(rtnl, own_links=("weave",))

    return space.call(ask)


def test_each_change_is_heard_once(space: Namespace) -> None:
    with space.call(kernel_driver.AddressChanges) as changes:
        assert changes.heard(), "what was before nobody knows"
        for change, addresses in (
            ("addr add 192.0.2.1/24 dev under", ["192.0.2.1"]),
            ("addr add 2001:db8::1/64 dev under nodad", ["192.0.2.1", "2001:db8::1"]),
            ("addr del 192.0.2.1/24 dev under", ["2001:db8::1"]),
            ("addr add 198.51.100.1 peer 198.51.100.2 dev under", ["198.51.100.1", "2001:db8::1"]),
            ("link set under down", []),
        ):
            assert not changes.heard()
            space.ip(change)
            assert changes.heard(), change
            assert found(space) == addresses
            while changes.heard():  # a link's state follows in several messages
                pass


def test_more_than_the_socket_holds_is_a_change(space: Namespace) -> None:
    """The kernel says ENOBUFS once and goes on."""
    with space.call(kernel_driver.AddressChanges) as changes:
        assert changes.heard()
        changes._socket.setsockopt(1, 8, 1)  # SO_RCVBUF: the least
        space.ip(*(f"addr add 192.0.2.{n}/32 dev under" for n in range(1, 60)))
        assert changes.heard()
        assert not changes.heard()
        space.ip("addr add 198.51.100.1/32 dev under")
        assert changes.heard()
