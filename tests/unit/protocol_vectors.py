"""The vectors of docs/protocol.md, made from fixed keys. Run as a program it prints them as they stand there.

Everything is made by the product's own functions from constants; test_protocol_doc.py compares with the document, so a
change of the wire shows as a change of the document.
"""

import struct

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from weave_router.mesh.record import Prefix, Record, sign_record
from weave_router.tunnel import handshake, wire
from weave_router.tunnel.control import Probe
from weave_router.tunnel.identity import Identity
from weave_router.tunnel.token import Token, TokenSet
from weave_router.tunnel.wire import SuiteCode


def _key(fill: int) -> bytes:
    return bytes([fill]) * 32


def public_of(secret: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def data_datagram() -> tuple[bytes, bytes]:
    """(plain body, datagram): an ARP request as KIND_FRAME on lane 0x10 (epoch 1, worker 0), counter 7."""
    frame = bytes.fromhex("ffffffffffff0a580a20000108060001080006040001" "0a580a2000010a2000010000000000000a200041")
    body = bytes([1, 0, 0, 0, 0, 0, 0, 0]) + frame
    header = struct.pack(">BBHIQ", 4, 0, 0, 0x00200003, (0x10 << 56) | 7)
    return body, header + AESGCM(_key(0x42)).encrypt(bytes(4) + header[8:], body, header)


def vectors() -> dict[str, bytes]:
    """Name -> bytes, in the document's order."""
    token = Token(bytes(range(8)), _key(0x11))
    initiator, responder = _key(0x21), _key(0x22)
    attempt, message_1 = handshake.write_request(
        token=token, suite=SuiteCode.AESGCM_SHA256, index=0x00100002, plaintext=False, static=initiator,
        remote_static=public_of(responder), ephemeral=_key(0x23), freshness=(5, 1001), now=0.0, endpoints=())
    head, used, body = wire.open_message_untrusted(message_1, _set(token))
    request = handshake.read_request_untrusted(
        head, used, body, static=responder, ephemeral=_key(0x24), plaintext=False)
    message_2, responder_send, responder_recv = handshake.write_response(
        request, index=0x00200003, incarnation=9, observed=("192.0.2.1", 6783))
    answer = handshake.read_response_untrusted(attempt, *_open(message_2, token))
    assert (answer.send_key, answer.recv_key) == (responder_recv, responder_send)
    plain, datagram = data_datagram()
    identity = Identity(_key(0x31), _key(0x32))
    record = sign_record(Record(
        domain=token.domain, ed25519_public=identity.ed25519_public, x25519_public=identity.x25519_public,
        incarnation=5, seq=2, run=bytes(16), name="h1", endpoints=(("192.0.2.1", 6783),),
        prefixes=(Prefix(0x0A200001, 32),), pod_mtu=1368, token_sent=token.id, tokens_accepted=(token.id,),
        version="0.1.0"), identity.sign)
    return {
        "token line": str(token).encode(),
        "token id": token.id.to_bytes(4, "big"),
        "mac1 key": token.mac1_key,
        "session psk": token.psk,
        "message 1": message_1,
        "message 2": message_2,
        "initiator's sending key": answer.send_key,
        "responder's sending key": answer.recv_key,
        "data body": plain,
        "data datagram": datagram,
        "control message, probe of 1,472 bytes": Probe(7, 1472).encode(),
        "node id": identity.node_id,
        "record": record.data,
    }


def _set(token: Token) -> TokenSet:
    return TokenSet([token])


def _open(message: bytes, token: Token) -> tuple[wire.Head, bytes]:
    head, _, body = wire.open_message_untrusted(message, _set(token))
    return head, body


def as_text(name: str, value: bytes) -> str:
    """One vector as it stands in the document."""
    if name == "token line":
        return f"{name}\n{value.decode()}\n"
    lines = [value.hex()[i : i + 96] for i in range(0, len(value.hex()), 96)]
    return "\n".join([name, *lines]) + "\n"


if __name__ == "__main__":
    print("\n".join(as_text(name, value) for name, value in vectors().items()))
