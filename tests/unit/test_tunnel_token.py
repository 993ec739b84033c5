"""Tokens: the line, the set, the file, and every sentence that an operator may read."""

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from weave_router.errors import UsageError
from weave_router.limits import TOKEN_FILE_MAX, TOKENS_MAX
from weave_router.tunnel.token import Token, TokenSet
from weave_router.tunnel.token_driver import load_tokens

DOMAIN, SECRET = bytes(range(8)), bytes(range(32))
LINE = "wr1.aaaqeayeaudao.aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypq.shgnosq"


def token(number: int = 0, domain: bytes = DOMAIN) -> Token:
    return Token(domain, bytes([number]) * 32)


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_line_is_stable_and_comes_back() -> None:
    assert str(Token(DOMAIN, SECRET)) == LINE
    assert Token.parse(LINE + "\n") == Token(DOMAIN, SECRET)
    assert Token.parse(LINE.upper()) == Token(DOMAIN, SECRET)


def test_derived_keys_are_stable_and_all_different() -> None:
    made = Token(DOMAIN, SECRET)
    keys = [made.mac1_key, made.psk, made.link_psk0, made.link_psk3]
    assert len(set(keys)) == 4
    assert all(len(key) == 32 for key in keys)
    assert made.id == 0xC3F40F93
    for label, key in (("id", made.id.to_bytes(4, "big")), ("mac1", made.mac1_key), ("psk", made.psk),
                       ("link psk0", made.link_psk0), ("link psk3", made.link_psk3)):
        oracle = HKDF(SHA256(), len(key), b"weave-router token 1", label.encode())
        assert oracle.derive(SECRET) == key
    assert Token(bytes(8), SECRET).psk == made.psk, "the domain is public and part of no key"


def test_new_takes_its_bytes_from_the_argument_and_keeps_a_domain() -> None:
    assert Token.new(lambda n: b"\1" * n).domain == b"\1" * 8
    assert Token.new(lambda n: b"\2" * n, DOMAIN).domain == DOMAIN


def test_secret_is_in_no_repr() -> None:
    assert SECRET.hex() not in repr(Token(DOMAIN, SECRET))
    assert "secret" not in repr(Token(DOMAIN, SECRET))
    assert repr(Token(DOMAIN, SECRET)).count("\\x1f") == 0


def test_any_single_changed_character_is_found() -> None:
    for at, character in enumerate(LINE):
        for other in "a7.1":
            if other != character:
                with pytest.raises(UsageError) as error:
                    Token.parse(LINE[:at] + other + LINE[at + 1:])
                assert "aaaqeayeaudaocaj" not in str(error.value), "the secret is in no error text"


@pytest.mark.parametrize(("line", "sentence"), [
    ("", "not a token line"),
    ("hello", "not a token line"),
    ("wr2." + LINE[4:], "not a token line"),
    (LINE.rsplit(".", 1)[0], "not a token line"),
    (LINE[:-1], "check sum is incomplete: copy the whole line again"),
    (LINE.replace("wr1.a", "wr1."), "domain is incomplete"),
    (LINE.replace("ocaj", "oc j"), "secret has characters that no token has"),
    (LINE.replace("eaud", "éaud"), "domain has characters that no token has"),
    (LINE[:-7] + "aaaaaaa", "a character was changed"),
])
def test_bad_line_has_one_sentence_with_the_way_out(line: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Token.parse(line)


def test_set_sends_with_the_first_and_accepts_all() -> None:
    tokens = TokenSet([token(1), token(2)])
    assert tokens.first == token(1)
    assert tokens.by_id(token(2).id) == token(2)
    assert tokens.by_id(0) is None
    assert tokens.ids == (token(1).id, token(2).id)
    assert len(tokens) == 2 and list(tokens) == [token(1), token(2)]
    assert tokens.domain == DOMAIN


@pytest.mark.parametrize(("tokens", "sentence"), [
    ([], "one to 4 lines, this one has 0"),
    ([token(n) for n in range(TOKENS_MAX + 1)], "one to 4 lines, this one has 5"),
    ([token(1), token(2, bytes(8))], "mixes domains"),
    ([token(1), token(1)], "names one token twice"),
])
def test_bad_set_has_one_sentence(tokens: list[Token], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        TokenSet(tokens)


def test_text_names_the_bad_line() -> None:
    with pytest.raises(UsageError, match="line 3: not a token line"):
        TokenSet.parse(f"{LINE}\n\nnonsense\n")
    assert len(TokenSet.parse(f"\n{LINE}\n  \n{token(1)}\n")) == 2


def test_file_of_the_owner_alone_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "token", LINE + "\n", 0o400)
    assert load_tokens(path).first == Token(DOMAIN, SECRET)
    link = tmp_path / "link"
    link.symlink_to(path)
    assert load_tokens(str(link)).first == Token(DOMAIN, SECRET), "Kubernetes mounts secrets as symbolic links"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o620, 0o601, 0o644, 0o666])
def test_file_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "token", LINE, mode)
    with pytest.raises(UsageError, match=f"may be read by others .mode {mode:04o}.: run `chmod 600 {path}`"):
        load_tokens(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: chown")
def test_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "token", LINE)
    os.chown(path, 12345, 0)
    with pytest.raises(UsageError, match="belongs to user 12345: run `chown 0"):
        load_tokens(path)


def test_files_that_are_none_have_one_sentence_each(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not exist: run `weave-router token new > .*` on the first node"):
        load_tokens(tmp_path / "missing")
    with pytest.raises(UsageError, match="is not a regular file"):
        load_tokens("/dev/null")
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(UsageError, match="is not a regular file"):
        load_tokens(tmp_path / "pipe")
    with pytest.raises(UsageError, match=f"larger than {TOKEN_FILE_MAX} bytes"):
        load_tokens(write(tmp_path / "large", "x" * (TOKEN_FILE_MAX + 1)))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "binary").chmod(0o600)
    with pytest.raises(UsageError, match="is not text"):
        load_tokens(tmp_path / "binary")
    with pytest.raises(UsageError, match="bad: line 1: not a token line"):
        load_tokens(write(tmp_path / "bad", "hello\n"))
    with pytest.raises(UsageError, match="cannot be opened"):
        load_tokens(write(tmp_path / "file", LINE) / "below")
