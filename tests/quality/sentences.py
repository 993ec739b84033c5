"""Every sentence that the product can say to who operates it, read from the source: where it is raised, and its words.

A sentence is the text of a UserError or of one of its kinds (or of a ValueError in config.py, which becomes one); what
is filled in at run time stands as ``{}``. Faults of host/ are values with a table of their own,
tests/unit/test_host_errors.py. Reads text, imports nothing of the product. Called by test_sentences.py.
"""

import ast
from collections.abc import Iterator

from quality.tree import PRODUCT, python_files

ROOT_KIND = "UserError"
LISTED_ELSEWHERE = {"HostError"}


def kinds(trees: dict[str, ast.Module]) -> set[str]:
    """UserError and all that inherit from it."""
    bases = {node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
             for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}  # fmt: skip
    found = {ROOT_KIND}
    while grown := {name for name, of in bases.items() if of & found} - found:
        found |= grown
    return found - LISTED_ELSEWHERE


def sentences() -> list[str]:
    """``file: sentence``, sorted, each once."""
    trees = {path.relative_to(PRODUCT).as_posix(): ast.parse(path.read_text()) for path in python_files("weave_router")}
    family = kinds(trees)
    return sorted({f"{name}: {text}" for name, tree in trees.items() for text in _of_file(name, tree, family)})


def _of_file(name: str, tree: ast.Module, family: set[str]) -> Iterator[str]:
    family = family | {"ValueError"} if name == "config.py" else family
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            called = node.exc.func
            if isinstance(called, ast.Name) and called.id in family and node.exc.args:
                yield " ".join(words(node.exc.args[-1]).split())


def words(node: ast.expr) -> str:
    """The text with ``{}`` for what is filled in."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(words(part) if isinstance(part, ast.Constant) else "{}" for part in parts)
        case ast.BinOp(left=left, right=right):
            return words(left) + words(right)
        case ast.IfExp(body=body, orelse=orelse):
            return f"{words(body)} | {words(orelse)}"
    return f"{{{ast.unparse(node)}}}"
