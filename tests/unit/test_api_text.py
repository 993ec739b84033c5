"""text.py: the status page in the layout that Weave's users know, with the encryption first on every connection."""

import msgspec
import pytest
from unit.api_router import ID_B, POD, SERVICE, STARTED_AT, MemoryRouter

from weave_router.api import schema, text
from weave_router.api.router_api import status_report

NOW = STARTED_AT + 1


@pytest.fixture
def report() -> schema.StatusReport:
    return status_report(MemoryRouter())


PAGE = """\
        Version: 0.1.0

        Service: router
         Status: ready
       Protocol: weave-router 1..1
           Name: 0a1b2c3d4e5f(node-a)
     Encryption: enabled (aes-256-gcm (OpenSSL), chacha20-poly1305 (OpenSSL))
  PeerDiscovery: enabled
        Targets: 2
    Connections: 5 (2 established, 1 failed, 1 pending, 1 self)
          Peers: 2 (with 2 established connections)
 TrustedSubnets: none
          Token: 1a2b3c4d (2 accepted)
         PodMTU: 1368 (differs: b1b1b1b1b1b1(node-b) 1268)
         Uptime: 1h2m

        Service: ipam
         Status: manual
          Range: 10.32.0.0/12
  DefaultSubnet: 10.32.0.0/12
      RangeIPv6: fd00::/96
  BridgeAddress: 10.32.0.1
    Attachments: 1
      Conflicts: 10.32.0.9

        Service: fastpath
         Bridge: weave
        Workers: 1
     BundleFill: 1.50
SegmentsPerSend: 31.25
SegmentsPerRecv: 12.00
SegmentsPerWrit: -
     QueueDepth: 4KiB
          Drops: 12 (10 bad_tag, 2 replay)

        Service: firewall
BridgeNetfilter: on
        Hairpin: on
   ForwardDrops: ip filter FORWARD (policy drop): accepted at DOCKER-USER; ip6 x y (policy drop): NOT answered
        PutBack: 2 times"""


def test_the_page(report) -> None:
    assert text.render(report, "", NOW) == PAGE


def test_plaintext_and_an_empty_router_say_so() -> None:
    service = msgspec.structs.replace(SERVICE, encryption="plaintext", discovery=False, refused=("uso",))
    page = text.page(schema.StatusReport(service=service, warnings=("two nodes are called node-a",)), NOW)
    assert "     Encryption: plaintext\n" in page
    assert "  PeerDiscovery: disabled\n" in page
    assert "    Connections: 0\n" in page
    assert "        Refused: uso\n" in page
    assert page.endswith("warning: two nodes are called node-a")
    for subject in text.SUBJECTS:
        assert text.render(schema.StatusReport(service=SERVICE), subject, NOW)


CONNECTIONS = """\
aes-256-gcm       -> 192.0.2.12:6783          established direct b1b1b1b1b1b1(node-b) mtu=1368 path-mtu=1500 \
rtt=0.21ms tx=1.2MiB/1043 rx=999B/900 [gso-refused: the path refuses UDP_SEGMENT: datagrams are sent one by one] \
since=2027-01-15T08:00:00Z
plaintext         <- 192.0.2.15:6783          established direct c2c2c2c2c2c2(node-c) mtu=1268 path-mtu=1400 \
tx=0B/0 rx=0B/0
-                 <- 192.0.2.13:6783          pending     direct d3d3d3d3d3d3(node-d) (link up, data no answer)
-                 -> 192.0.2.14:6783          failed      \
[no-proof: no proof from peer (wrong token, or not a weave-router)] retry in 3s
-                 -> 192.0.2.11:6783          self        [self: address is this node's own]"""


def test_connections(report) -> None:
    assert text.render(report, "connections", NOW) == CONNECTIONS


def test_peers_show_the_topology_from_any_node(report) -> None:
    assert text.render(report, "peers", NOW).splitlines() == [
        "0a1b2c3d4e5f(node-a)",
        "   -> 192.0.2.12:6783          b1b1b1b1b1b1(node-b)           established",
        "b1b1b1b1b1b1(node-b) - unreachable!",
        "   <- 192.0.2.11:40112         0a1b2c3d4e5f(node-a)           established",
    ]


def test_a_healthy_target_is_the_address_alone(report) -> None:
    assert text.render(report, "targets", NOW).splitlines() == ["192.0.2.12", "192.0.2.14"]
    sick = schema.Target(address="192.0.2.14", state="failed", detail="no route to host")
    shown = text.targets(schema.StatusReport(service=SERVICE, targets=(sick,)), NOW)
    assert shown == "192.0.2.14               failed: no route to host"


def test_ipam_and_attachments(report) -> None:
    assert text.render(report, "ipam", NOW).splitlines() == [
        "0a1b2c3d4e5f(node-a)                  1 IPs (0.0% of total) (1 active)",
        "conflict: 10.32.0.9 belongs to 0a1b2c3d4e5f, also announced by b1b1b1b1b1b1",
    ]
    heads, row = text.render(report, "attachments", NOW).splitlines()
    assert heads.split() == ["POD", "CONTAINER", "INTERFACE", "MAC", "ADDRESS", "IPV6", "PORT", "NAMESPACE"]
    assert row.split() == ["-", "blue", "eth0", POD.mac, POD.address, POD.ipv6, POD.port, POD.netns]


def test_workers_show_the_three_figures_and_only_counters_that_moved(report) -> None:
    assert [line.split() for line in text.render(report, "workers", NOW).splitlines()] == [
        ["WORKER", "BUNDLE", "FILL", "SEGS/SEND", "SEGS/RECEIVE", "SEGS/WRITE", "QUEUE", "CLASS"],
        ["0", "1.50", "31.25", "12.00", "-", "4KiB", "realtime"],
        [],
        ["COUNTER", "WORKER", "0"],
        ["frames_in", "10"],
        ["frames_out", "20"],
    ]


def test_drops_worst_first(report) -> None:
    assert [line.split() for line in text.render(report, "drops", NOW).splitlines()] == [
        ["REASON", "FRAMES"], ["bad_tag", "10"], ["replay", "2"],
    ]  # fmt: skip


def test_tokens_say_what_is_safe_next(report) -> None:
    shown = text.render(report, "tokens", NOW)
    assert "1a2b3c4d: in use by 0a1b2c3d4e5f(node-a), b1b1b1b1b1b1(node-b); accepted by all, safe to send with" in shown
    assert "5e6f7081: not yet accepted by b1b1b1b1b1b1(node-b); add it" in shown
    use = schema.TokenUse(peer=ID_B, nickname="node-b", sending="22222222", accepted=("11111111", "22222222"))
    after = schema.Tokens(sending="22222222", accepted=("11111111", "22222222"), nodes=(use,))
    assert "next edit: safe, all nodes have the tokens of this one" in text.rotation(after)
    behind = msgspec.structs.replace(after, next_edit="wait", waits_for=("b", "c"))
    assert "next edit: wait for b, c, which have other tokens than this node" in text.rotation(behind)
    away = msgspec.structs.replace(after, away=("d",))
    assert "unreachable, with other tokens when last heard: d; copy the file there first" in text.rotation(away)
    assert "11111111: accepted by all, sent by none; safe to send with, or to remove" in text.rotation(after)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-1, "0s"), (0.9, "0s"), (59, "59s"), (60, "1m0s"), (3599, "59m59s"), (3600, "1h0m"), (90_061, "1d1h")],
)
def test_durations(seconds, shown) -> None:
    assert text.duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0B"), (999, "999B"), (1000, "0.977KiB"), (1 << 20, "1MiB"), (1 << 50, "1.02e+03TiB")],
)
def test_sizes(count, shown) -> None:
    assert text.size(count) == shown
