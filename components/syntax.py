"""What of a Python file decides a result: a digest that sees no comment, docstring or layout; imports; names that are bound and used."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import ArtifactError


@dataclass(frozen=True)
class Import:
    """One name of an import statement: `from module import name`, or `import module` when `name` is empty."""

    module: str
    name: str = ""


def tree_digest(path: Path) -> str:
    """sha256 (hex) of a Python file's syntax tree, which comments, docstrings and layout do not change; raises ArtifactError."""
    return digest_of_tree(parsed(path))


def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file; raises ArtifactError when it is not Python."""
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise ArtifactError(f"{path} is not Python that can be read ({error}). Restore it, or install scalingnote again.") from None


def top_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements at a module's top, those in branches of `if`, `try` and `with` included."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If):
            yield from top_level([*_run(statement), *statement.orelse])
        elif isinstance(statement, ast.Try | ast.TryStar):
            handled = [inner for handler in statement.handlers for inner in handler.body]
            yield from top_level([*statement.body, *handled, *statement.orelse, *statement.finalbody])
        elif isinstance(statement, ast.With | ast.For | ast.While):
            yield from top_level(statement.body)


def _run(statement: ast.If) -> list[ast.stmt]:
    """The body of an `if`; nothing for one that only type checkers enter."""
    test = statement.test
    name = test.id if isinstance(test, ast.Name) else test.attr if isinstance(test, ast.Attribute) else ""
    return [] if name == "TYPE_CHECKING" else statement.body


def bound_names(statement: ast.stmt) -> set[str]:
    """Names to which a statement at a module's top gives a value."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import):
        return {alias.asname or alias.name.split(".")[0] for alias in statement.names}
    if isinstance(statement, ast.ImportFrom):
        return {alias.asname or alias.name for alias in statement.names}
    if isinstance(statement, ast.If | ast.Try | ast.TryStar | ast.With | ast.For | ast.While):
        return set()  # their statements are looked at one by one
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def binds(statement: ast.Import | ast.ImportFrom, found: Import, name: str) -> bool:
    """Whether the import `found` of `statement` is what `name` stands for."""
    for alias in statement.names:
        bound = alias.asname or (alias.name.split(".")[0] if isinstance(statement, ast.Import) else alias.name)
        if bound == name and alias.name == (found.name or found.module):
            return True
    return False


def imports_in(node: ast.AST, package: str) -> list[Import]:
    """All imports within `node` that can run. `package` is what relative ones start from."""
    found: list[Import] = []
    waiting: list[ast.AST] = [node]
    while waiting:
        current = waiting.pop()
        if isinstance(current, ast.Import):
            found += [Import(alias.name) for alias in current.names]
        elif isinstance(current, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - current.level] if current.level else []
            module = ".".join([*above, *([current.module] if current.module else [])])
            found += [Import(module, alias.name) for alias in current.names]
        elif isinstance(current, ast.If):
            waiting += [*_run(current), *current.orelse, current.test]
        else:
            waiting += list(ast.iter_child_nodes(current))
    return list(dict.fromkeys(found))


def templates_in(node: ast.AST) -> list[str]:
    """Names of templates, such as data/report.html.j2, that are written out within `node`."""
    words = (inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant) and isinstance(inner.value, str))
    return sorted({word for word in words if re.fullmatch(r"[\w./-]+\.j2", word)})


def used_names(node: ast.AST) -> set[str]:
    """Names that `node` reads when it runs: annotations of functions are left out, which nobody evaluates."""
    names: set[str] = set()
    waiting: list[ast.AST] = [node]
    while waiting:
        current = waiting.pop()
        if isinstance(current, ast.Name):
            names.add(current.id)
        skipped = ("annotation", "returns") if isinstance(current, ast.arg | ast.FunctionDef | ast.AsyncFunctionDef) else ()
        for name, value in ast.iter_fields(current):
            if name not in skipped:
                waiting += [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, ast.AST)]
    return names


def asked_for(node: ast.AST) -> Iterator[str]:
    """Names that `node` asks objects for: `x.name` and getattr(x, "name")."""
    for current in ast.walk(node):
        if isinstance(current, ast.Attribute):
            yield current.attr
        elif isinstance(current, ast.Call) and isinstance(current.func, ast.Name) and current.func.id in ("getattr", "hasattr"):
            yield from (word.value for word in current.args if isinstance(word, ast.Constant) and isinstance(word.value, str))


def find_definition(tree: ast.AST, names: list[str]) -> list[ast.AST]:
    """The definitions of the qualified name `names` in `tree`; of lambdas, which have no name, all in their place."""
    found: list[ast.AST] = [tree]
    for name in names:
        found = [node for outer in found for node in _inside(outer) if _name_of(node) == name]
    return found


def _inside(outer: ast.AST) -> Iterator[ast.AST]:
    """Functions and classes directly within `outer`, not those within others of them."""
    waiting = list(ast.iter_child_nodes(outer))
    while waiting:
        node = waiting.pop()
        if _name_of(node):
            yield node
        else:
            waiting += list(ast.iter_child_nodes(node))


def _name_of(node: ast.AST) -> str:
    if isinstance(node, ast.Lambda):
        return "<lambda>"
    return node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else ""


def digest_of_tree(node: ast.AST) -> str:
    """sha256 (hex) of a tree, or of a part of one, without what decides no result."""
    words: list[str] = []
    _write(node, words)
    return hashlib.sha256("\0".join(words).encode(errors="surrogatepass")).hexdigest()


def _write(value: Any, words: list[str]) -> None:
    """The tree as words, the same under every version of Python: fields that are empty are left out, so new ones change nothing."""
    if isinstance(value, ast.AST):
        words.append(type(value).__name__)
        words.append("(")
        for name, child in ast.iter_fields(value):
            kept = _deciding(value, name, child)
            if kept is not None and kept != [] and name not in ("ctx", "kind", "type_comment"):
                words.append(name)
                _write(kept, words)
        words.append(")")
    elif isinstance(value, list):
        words.append("[")
        for item in value:
            _write(item, words)
        words.append("]")
    else:
        words.append(repr(value))


def _deciding(node: ast.AST, name: str, child: Any) -> Any:
    """A field without what changes no result: docstrings and other bare strings, blocks for type checkers, descriptions of settings."""
    if isinstance(node, ast.If) and name == "body":
        child = _run(node)
    if name in ("body", "orelse", "finalbody") and isinstance(child, list):
        return [item for item in child if not _is_idle(item)]
    if isinstance(node, ast.Call) and name == "keywords" and isinstance(node.func, ast.Name) and node.func.id == "Field":
        return [item for item in child if item.arg != "description"]
    return child


def _is_idle(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.If):
        return not _run(statement) and not statement.orelse
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)
