"""Child of test_fastpath_allocation.py: sends every kind of frame and prints how often the workers called the heap.

One line of JSON: calls while parking (which does allocate, so that the count is seen to work), then calls per kind.
"""

import ctypes
import json
import random
import threading

from kernel.fastpath_pair import LEFT, RIGHT, THIRD, Pair, mac, pair
from kernel.fastpath_peer import ACK, PSH, TCP, ethernet, ip_packet, opened, tcp, udp, vnet

from weave_router.fastpath import engine as fp

A, B = LEFT + 2, RIGHT + 2
PAIR = "10.32.0.2", "10.32.0.66"
GROUP = bytes.fromhex("01005e010203")


def ip_frame(protocol: int, body: bytes, ident: int = 0) -> bytes:
    return ethernet(mac(B), mac(A), 0x0800, ip_packet(*PAIR, protocol, body, ident=ident))


def kinds() -> dict[str, list[bytes | tuple[bytes, bytes]]]:
    rng = random.Random(1)
    superframe = ip_frame(TCP, tcp(*PAIR, rng.randbytes(60000), flags=ACK | PSH))
    datagrams = [ip_frame(17, udp(*PAIR, bytes(200)), i) for i in range(100)]
    arp = b"\0\1\x08\0\6\4\0\1" + mac(A) + A.to_bytes(4, "big") + bytes(6) + B.to_bytes(4, "big")
    return {
        "small": [ethernet(mac(B), mac(A), 0x1234, bytes(46))] * 500,
        "full": [ethernet(mac(B), mac(A), 0x1234, bytes(1368))] * 500,
        "superframes": [(opened(superframe), vnet(superframe, 1316))] * 30,
        "joined": [(opened(f), vnet(f)) for f in datagrams] * 5,
        "fragmented": [ethernet(mac(B), mac(A), 0x1234, bytes(6000))] * 100,
        "flooded": [ethernet(GROUP, mac(A), 0x1234, bytes(46))] * 50,
        "answered": [ethernet(b"\xff" * 6, mac(A), 0x0806, arp)] * 100,
        "dropped": [ethernet(mac(LEFT + 0x9000), mac(A), 0x1234, bytes(46))] * 100,
    }


def measure(both: Pair, shim: ctypes.CDLL) -> dict[str, int]:
    both.left.engine.groups_set(2, [GROUP])
    frames = kinds()
    for some in frames.values():  # the first window, partial frame and lazy binding of each kind
        both.exchange(some)
    for thread in threading.enumerate():
        if thread.name.startswith("worker-"):
            shim.watch(thread.native_id)
    shim.heap_calls()
    both.left.engine.node_set(3, flags=0, pod_mtu=1368)
    both.left.engine.route_set(THIRD, 26, 3)
    both.exchange([ethernet(mac(THIRD + 1), mac(A), 0x1234, bytes(46))] * 10)
    found = {"parked": int(shim.heap_calls())}
    both.left.engine.node_del(3)
    both.left.engine.route_del(THIRD, 26)
    while both.left.engine.drops()["no_session"] < 10:
        both.exchange([])
    shim.heap_calls()
    for name, some in frames.items():
        both.exchange(some)
        found[name] = int(shim.heap_calls())
    return found


if __name__ == "__main__":
    results = {}
    for name, suite, flags in (("aesgcm", fp.SUITE_AESGCM, 0), ("chachapoly", fp.SUITE_CHACHAPOLY, 0),
                               ("plaintext", fp.SUITE_AESGCM, fp.SESSION_PLAINTEXT)):  # fmt: skip
        with pair(suite=suite, session_flags=flags) as made:
            results[name] = measure(made, ctypes.CDLL(None))
    print(json.dumps(results))
