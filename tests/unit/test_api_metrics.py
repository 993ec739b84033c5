"""metrics.py: what a scrape shows, read by the Prometheus client's own parser."""

import msgspec
from prometheus_client.parser import text_string_to_metric_families
from unit.api_router import CONNECTIONS, ID_A, ID_B, MemoryRouter

from weave_router.api.metrics import Metrics


def samples(router: MemoryRouter) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = Metrics(router).scrape().decode()
    found: dict = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sample.labels.items()))
            assert key not in found, f"{key} twice: Prometheus refuses the whole scrape"
            found[key] = sample.value
    return found


def test_weaves_names_where_they_mean_the_same() -> None:
    found = samples(MemoryRouter())
    connections = {labels: value for (name, labels), value in found.items() if name == "weave_connections"}
    assert connections == {
        (("encryption", ""), ("state", "failed"), ("type", "")): 1,
        (("encryption", ""), ("state", "pending"), ("type", "direct")): 1,
        (("encryption", ""), ("state", "self"), ("type", "")): 1,
        (("encryption", "plaintext"), ("state", "established"), ("type", "direct")): 1,
        (("encryption", "yes"), ("state", "established"), ("type", "direct")): 1,
    }
    assert found["weave_connection_terminations_total", ()] == 5
    assert found["weave_ips", (("state", "local-used"),)] == 2
    assert found["weave_max_ips", ()] == 1 << 20


def test_traffic_reasons_drops_and_counters() -> None:
    found = samples(MemoryRouter())
    peer = (("encryption", "aes-256-gcm"), ("nickname", "node-b"), ("peer", ID_B))
    assert found["weave_router_connection_tx_bytes_total", peer] == 1_258_291
    assert found["weave_router_connection_rx_packets_total", peer] == 900
    assert found["weave_router_connection_rtt_seconds", peer] == 0.00021
    assert found["weave_router_connection_path_mtu_bytes", peer] == 1500
    assert found["weave_router_connection_reason", (*peer, ("reason", "gso-refused"))] == 1
    assert sum(name == "weave_router_connection_reason" for name, _ in found) == 3
    assert found["weave_router_drops_total", (("reason", "bad_tag"),)] == 10
    assert found["weave_router_handshakes_total", ()] == 9
    assert found["weave_router_worker_frames_in_total", (("worker", "0"),)] == 10
    assert found["weave_router_worker_queue_bytes", (("worker", "0"),)] == 4096
    assert found["weave_router_peers", (("state", "unreachable"),)] == 1
    assert found["weave_router_token_nodes", (("token", "1a2b3c4d"), ("use", "accepted"))] == 2
    assert found["weave_router_info", tuple({
        "encryption": "aes-256-gcm (OpenSSL), chacha20-poly1305 (OpenSSL)", "id": ID_A, "nickname": "node-a",
        "version": "0.1.0",
    }.items())] == 1  # fmt: skip
    assert found["process_open_fds", ()] > 0


def test_encryption_is_the_first_label() -> None:
    for name, labels in samples(MemoryRouter()):
        if "encryption" in dict(labels):
            assert labels[0][0] == "encryption", name


def test_two_connections_of_one_peer_do_not_spoil_the_scrape() -> None:
    router = MemoryRouter()
    twice = (*CONNECTIONS, msgspec.structs.replace(CONNECTIONS[0], address="198.51.100.1:6783"))
    router.connections = lambda: twice  # type: ignore[method-assign]
    assert samples(router)["weave_router_peers", (("state", "reachable"),)] == 1


def test_nothing_is_asked_before_the_first_scrape() -> None:
    router = MemoryRouter()
    router.broken = True
    Metrics(router)
