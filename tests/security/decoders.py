"""Which lines of the product read what a stranger, a peer, a runtime or an operator wrote, found by the mark they wear.

A decoder begins at every function whose name ends in ``_untrusted`` and at those of ``UNMARKED``, and takes in what it
calls in its own file, by name. ``lines`` gives their statements, for whoever measures which of them ran. Knows the
source text alone. Called by test_decoder_lines.py.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
MARK = "_untrusted"
UNMARKED: dict[str, tuple[str, ...]] = {
    "config.py": ("load", "parse_target", "parse_targets", "_text", "_number", "_switch", "_name", "_address", "_path",
                  "_bridge_address", "_range", "_init", "_subnet", "_words", "_subnets", "_tristate", "_one_of",
                  "_directory", "_run_directory", "_bridge", "_label", "api_server"),
    "cni/wishes.py": ("mac_of", "routes_of", "check_ipam"),
    "mesh/link.py": ("receive_data",),
    "mesh/targets.py": ("parse_target", "literal"),
    "tunnel/token.py": ("parse",),
    "tunnel/token_driver.py": ("load_tokens",),
}
"""File -> functions that raise the sentence of an operator's or a runtime's mistake instead of BadPacket, and the
stream of a link, whose decoders are methods."""


@dataclass(frozen=True)
class Decoder:
    """One function of a decoder. ``lines``: of its statements, without the ``def`` and the docstring."""

    file: str
    name: str
    lines: frozenset[int]


def decoders(package: Path) -> list[Decoder]:
    """Every function of every decoder in ``package``."""
    return [found for path in sorted(package.rglob("*.py")) for found in _in_file(path, str(path.relative_to(package)))]


def _in_file(path: Path, name: str) -> Iterator[Decoder]:
    functions: dict[str, list[Function]] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Function):
            functions.setdefault(node.name, []).append(node)
    unmarked = UNMARKED.get(name, ())
    missing = set(unmarked) - functions.keys()
    assert not missing, f"{name} has no {missing}: UNMARKED is out of date"
    waiting = [one for one in functions if one.endswith(MARK) or one in unmarked]
    taken: set[str] = set()
    while waiting:
        one = waiting.pop()
        if one in taken:
            continue
        taken.add(one)
        for node in functions[one]:
            yield Decoder(name, one, frozenset(_statements(node)))
            waiting += [called for called in _called(node) if called in functions]


def _called(function: Function) -> Iterator[str]:
    """Names that are called plainly, or as a method of ``self`` or ``cls``, or handed on as a hook."""
    for node in ast.walk(function):
        match node:
            case ast.Call(func=ast.Name(id=name)) | ast.Call(func=ast.Attribute(value=ast.Name(id="self" | "cls"),
                                                                                attr=name)):
                yield name
            case ast.keyword(value=ast.Name(id=name)):
                yield name


def _statements(function: Function) -> Iterator[int]:
    for node in ast.walk(function):
        if isinstance(node, ast.stmt) and node is not function and not _is_text(node) and not _is_ours(node):
            yield node.lineno


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_ours(node: ast.stmt) -> bool:
    """``raise RuntimeError``: what only a mistake of the product itself could reach."""
    return (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)
            and node.exc.func.id == "RuntimeError")
