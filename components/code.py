"""What code a result depends on: the modules that a function reaches through their imports, and their templates, each by a digest.

The digest is taken of the syntax tree, so comments, docstrings, layout and descriptions of settings do not change it. Modules of
`components/` count as a whole. Those of `flows/` wire many steps in one file, so of them only the definitions count that are reached.
Imports inside functions count, those under TYPE_CHECKING do not: nothing runs them. A template belongs to the modules that write its
name out (see components.templates), and to the templates that include or import it.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

from components import settings, syntax
from components.artifacts import digest_of, file_sha256, read_json, write_json
from components.errors import ArtifactError
from components.syntax import (
    Import,
    asked_for,
    binds,
    bound_names,
    digest_of_tree,
    find_definition,
    imports_in,
    parsed,
    templates_in,
    top_level,
    used_names,
)

ROOT = Path(__file__).resolve().parents[1]
WHOLE, WIRING = "components", "flows"
# Modules (or rooms) that decide no result, with the reason. They are neither counted nor followed.
UNDECIDING: Mapping[str, str] = {
    "components.errors": "a step that fails has no result",
    "components.settings": "says where files lie and what settings may be, not what is in them",
    "components.code": "makes the keys themselves",
    "components.syntax": "makes the keys themselves",
    "components.tracking": "records and finds results; what it finds has its digest in the key",
    "components.data.config": "the values of all settings that a step reads are in its key",
    "components.towers.config": "the values of all settings that a step reads are in its key",
    "components.distillation.config": "the values of all settings that a step reads are in its key",
    "components.index.config": "the values of all settings that a step reads are in its key",
    "components.evaluation.config": "the values of all settings that a step reads are in its key",
    "components.gates.config": "the values of all settings that a step reads are in its key",
    "components.index.workers": "says how many threads a worker takes, and shows progress",
    "flows.encoding_runners": "says where shards are encoded; every runner calls the same function",
    "flows.reporting": "shows what is printed, and looks at progress bars",
}
# Modules of `flows/` whose classes decide no result when a value of them is at hand, with the reason. Their functions count as all others.
HANDED: Mapping[str, str] = {
    "flows.config": "the values of all settings that a step reads are in its key",
    "flows.studies.context": "hands out settings, whose values are in the key, and artifacts, whose digests are",
    "flows.candidate": "hands out artifacts, whose digests are in the key",
    "flows.recorder": "hands out what is recorded about a release: provenance and lineage",
}
# Imports that are not followed: (importing module, module or room) -> reason. Other ways to the same module count.
UNFOLLOWED: Mapping[tuple[str, str], str] = {
    **{
        ("components.serving.loader", f"components.{room}"): "finds and verifies a release, whose digest is in the key"
        for room in ("release", "signing")
    },
    ("flows.candidate", "components.towers.train"): "reads the log of a finished training, whose digest is in the key",
    ("flows.candidate", "components.distillation.train"): "reads the log of a finished training, whose digest is in the key",
}
# Modules that load others by a name which is in no import statement, with the reason why that needs no place in a key.
LOADED_BY_NAME: Mapping[str, str] = {
    "components.towers.base_models": "packages of models, whose weights are held against a digest in the module itself",
}
DISTRIBUTIONS = {"faiss": "faiss-cpu", "yaml": "pyyaml", "Stemmer": "pystemmer"}
# Libraries that decide no result, with the reason.
UNDECIDING_LIBRARIES: Mapping[str, str] = {
    "tqdm": "progress bars",
    "pydantic": "checks values, which are in the key",
    "prefect": "runs the steps",
    "prefect_dask": "runs the steps",
    "dask": "runs the steps",
    "distributed": "runs the steps",
    "mlflow": "records and finds results",
    "cryptography": "signs results",
    "huggingface_hub": "fetches models, whose commit is in the key",
}
KNOWN_FILES = 2000  # entries of the file of known digests, beyond which it is begun anew


@dataclass(frozen=True)
class Source:
    """What matters of one file: its digest, what it imports when it runs, and the templates that it names."""

    digest: str
    imports: tuple[Import, ...]
    templates: tuple[str, ...]


@dataclass
class Reached:
    """What a function reaches: digests of modules and definitions by their place, and versions of libraries by name."""

    code: dict[str, str] = field(default_factory=dict)
    libraries: dict[str, str] = field(default_factory=dict)


def reached_by(function: Callable[..., Any], root: Path = ROOT) -> Reached:
    """The code that a call of `function` can run, its closure's functions and modules included, as it stands in the files below `root`.

    Raises ArtifactError for a module that is gone or cannot be read. A function from outside the project reaches nothing by itself.
    """
    walk = _Walk(_project(root))
    walk.function(function)
    walk.project.keep_known()
    return Reached(dict(sorted(walk.code.items())), library_versions(frozenset(walk.libraries)))


@cache
def library_versions(names: frozenset[str]) -> dict[str, str]:
    """Versions of the libraries that are imported by these names; 'absent' where one is not installed."""
    found = {}
    for name in sorted(names - set(UNDECIDING_LIBRARIES)):
        distribution = DISTRIBUTIONS.get(name, name.replace("_", "-"))
        try:
            found[distribution] = version(distribution)
        except PackageNotFoundError:  # such as faiss from faiss-gpu; looking all of them up is slow
            others = packages_distributions().get(name, ())
            found[distribution] = version(others[0]) if others else "absent"
    return found


@cache
def _project(root: Path) -> _Project:
    return _Project(root)


class _Project:
    """The files of the project, each read once in this process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._paths: dict[str, Path | None] = {}
        self._sources: dict[str, Source] = {}
        self._trees: dict[str, ast.Module] = {}
        self._names: dict[str, dict[str, list[ast.stmt]]] = {}
        self._known: dict[str, Any] | None = None
        self._new = False

    def path(self, module: str) -> Path | None:
        """The file of a module or package; None when there is none."""
        if module not in self._paths:
            place = self.root.joinpath(*module.split("."))
            self._paths[module] = next((path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()), None)
        return self._paths[module]

    def file(self, module: str, importer: str) -> Path:
        """The file of a module that has to be there."""
        path = self.path(module)
        if path is None:
            raise ArtifactError(
                f"The code is incomplete: there is no module {module}, which {importer} needs. Restore it, or install scalingnote again."
            )
        return path

    def package(self, module: str, importer: str) -> str:
        """What relative imports of a module start from."""
        return module if self.file(module, importer).name == "__init__.py" else module.rpartition(".")[0]

    def place(self, module: str) -> str:
        """Its file as people write it: components/towers/losses.py."""
        return self.file(module, module).relative_to(self.root).as_posix()

    def source(self, module: str, importer: str) -> Source:
        """Digest and imports of a module. They are kept in a file by the digest of the bytes, since parsing 100 modules takes 0.4 s."""
        if module not in self._sources:
            path, package = self.file(module, importer), self.package(module, importer)
            key = hashlib.sha256(f"{package}\0".encode() + path.read_bytes()).hexdigest()
            known = _as_source(self._known_files().get(key))
            if known is None:
                tree = parsed(path)
                known = Source(digest_of_tree(tree), tuple(imports_in(tree, package)), tuple(templates_in(tree)))
                imports = [[found.module, found.name] for found in known.imports]
                self._known_files()[key] = [known.digest, imports, list(known.templates)]
                self._new = True
            self._sources[module] = known
        return self._sources[module]

    def tree(self, module: str, importer: str) -> ast.Module:
        """Its syntax tree, for modules whose definitions are looked at one by one."""
        if module not in self._trees:
            self._trees[module] = parsed(self.file(module, importer))
        return self._trees[module]

    def named(self, module: str, importer: str) -> dict[str, list[ast.stmt]]:
        """The statements at a module's top that give a name its value."""
        if module not in self._names:
            names: dict[str, list[ast.stmt]] = {}
            for statement in top_level(self.tree(module, importer).body):
                for name in bound_names(statement):
                    names.setdefault(name, []).append(statement)
            self._names[module] = names
        return self._names[module]

    def keep_known(self) -> None:
        """Write the digests that were found anew; a file that cannot be written costs the next run time and nothing else."""
        if not self._new:
            return
        self._new = False
        known = self._known_files()
        kept = known if len(known) <= KNOWN_FILES else {}
        with suppress(OSError):
            write_json(_known_path(), {"format": _known_format(), "files": kept})

    def _known_files(self) -> dict[str, Any]:
        if self._known is None:
            try:
                raw = read_json(_known_path())
            except (ArtifactError, OSError):
                raw = None
            fits = isinstance(raw, dict) and raw.get("format") == _known_format() and isinstance(raw.get("files"), dict)
            self._known = raw["files"] if fits else {}
        return self._known


class _Walk:
    """Follows imports and names from a function on, and gathers what it meets."""

    def __init__(self, project: _Project) -> None:
        self.project = project
        self.code: dict[str, str] = {}
        self.libraries: set[str] = set()
        self._seen: set[object] = set()

    def function(self, function: Any) -> None:
        """A function, method or partial: its own definition, what its names stand for, and the values that it was closed over."""
        if isinstance(function, partial):
            asked = self._asked_for(function.func)
            for part in (function.func, *function.args, *function.keywords.values()):
                self._value(part, asked)
            return
        if isinstance(function, MethodType):
            self._value(function.__self__)
            function = function.__func__
        if not isinstance(function, FunctionType) or function in self._seen or _covered(function.__module__, UNDECIDING):
            return
        self._seen.add(function)
        if _ours(function.__module__):
            self._wired(function)
        attributes = self._asked_for(function)
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # a name that gets its value later
                self._value(cell.cell_contents, attributes)
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._value(value, attributes)

    def _asked_for(self, function: Any) -> set[str]:
        """Names that a function of the project asks the values for that it is given or closed over."""
        while isinstance(function, partial):
            function = function.func
        if not isinstance(function, FunctionType) or not _ours(function.__module__):
            return set()
        return {name for node in self._nodes(function) for name in asked_for(node)}

    def _value(self, value: Any, attributes: Iterable[str] = ()) -> None:
        """A value that a function is given or was closed over: functions, modules and classes are code; what they hold is in the key."""
        if isinstance(value, list | tuple | set | frozenset | Mapping):
            if id(value) not in self._seen:
                self._seen.add(id(value))
                for item in [*value, *(value.values() if isinstance(value, Mapping) else ())]:
                    self._value(item, attributes)
        elif isinstance(value, ModuleType) and value.__name__.split(".")[0] == WHOLE:
            self._own_import(Import(value.__name__), value.__name__)
        elif isinstance(value, ModuleType) and _ours(value.__name__):
            for name in attributes:
                self.definition(value.__name__, name, value.__name__, optional=True)
        elif isinstance(value, FunctionType | MethodType | partial):
            self.function(value)
        elif isinstance(wrapped := getattr(value, "__wrapped__", None), FunctionType):  # such as a function with a cache
            self.function(wrapped)
        else:
            owner = value if isinstance(value, type) else type(value)
            if _ours(owner.__module__) and owner.__module__ not in HANDED:
                self._own_import(Import(owner.__module__, owner.__qualname__.partition(".")[0]), owner.__module__)

    def _wired(self, function: FunctionType) -> None:
        module = function.__module__
        if module.split(".")[0] == WHOLE:
            self._own_import(Import(module), module)
            return
        outer, _, _ = function.__qualname__.partition(".<locals>")
        nodes = find_definition(self.project.tree(module, module), outer.split("."))
        self.code[f"{self.project.place(module)}:{outer}"] = digest_of([digest_of_tree(node) for node in nodes])
        for node in self._nodes(function):
            self._names_in(node, module)

    def _nodes(self, function: FunctionType) -> list[ast.AST]:
        """The function in its module's tree; raises ArtifactError when the file has changed since it was loaded."""
        module = function.__module__
        names = [name for name in function.__qualname__.split(".") if name == "<lambda>" or not name.startswith("<")]
        found = find_definition(self.project.tree(module, module), names)
        if not found:
            raise ArtifactError(
                f"{self.project.place(module)} has no {function.__qualname__} any more: it was changed while this program ran. "
                "Start it again."
            )
        return found

    def definition(self, module: str, name: str, importer: str, *, optional: bool = False) -> None:
        """A name at the top of a module of `flows/`, and what it refers to."""
        if _covered(module, UNDECIDING) or (module, name) in self._seen:
            return
        self._seen.add((module, name))
        statements = self.project.named(module, importer).get(name, [])
        if not statements and not optional and self.project.path(f"{module}.{name}") is None:
            raise ArtifactError(f"The code is incomplete: {module} has no {name}, which {importer} needs. Restore it, or install again.")
        for statement in statements:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                imports = imports_in(statement, self.project.package(module, module))
                self._imported([found for found in imports if binds(statement, found, name)], module)
            else:
                key = f"{self.project.place(module)}:{name}"
                self.code[key] = digest_of([self.code.get(key), digest_of_tree(statement)])
                self._names_in(statement, module)

    def _names_in(self, node: ast.AST, module: str) -> None:
        """Follow the imports within `node` and the names of the module's top that it uses. Annotations are not evaluated."""
        self._imported(imports_in(node, self.project.package(module, module)), module)
        for template in templates_in(node):
            self.template(template, self.project.place(module))
        for name in used_names(node) & self.project.named(module, module).keys():
            self.definition(module, name, module)

    def _imported(self, imports: Iterable[Import], importer: str) -> None:
        for found in imports:
            top = found.module.split(".")[0]
            if _ours(found.module):
                self._own_import(found, importer)
            elif top not in sys.stdlib_module_names:
                self.libraries.add(top)

    def _own_import(self, found: Import, importer: str) -> None:
        target = f"{found.module}.{found.name}" if found.name and self.project.path(f"{found.module}.{found.name}") else found.module
        if _covered(target, UNDECIDING) or any(importer == start and _covered(target, (end,)) for start, end in UNFOLLOWED):
            return
        if target.split(".")[0] == WHOLE:
            self._require_name(found, target, importer)
            self.module(target, importer)
        elif found.name and target == found.module:
            self.definition(target, found.name, importer)
        else:  # the module itself, whose parts can be reached by any name
            for name in self.project.named(target, importer):
                self.definition(target, name, importer)

    def _require_name(self, found: Import, target: str, importer: str) -> None:
        """`from components.towers import gone` is an error, where a room without that module would be no more than an empty package."""
        path = self.project.file(target, importer)
        of_package = found.name not in ("", "*") and target == found.module and path.name == "__init__.py"
        if of_package and found.name not in self.project.named(target, importer):
            self.project.file(f"{found.module}.{found.name}", importer)

    def module(self, module: str, importer: str) -> None:
        """A module of `components/` as a whole, with the packages above it, and all that it imports."""
        if module in self._seen:
            return
        self._seen.add(module)
        source = self.project.source(module, importer)
        path = self.project.place(module)
        if source.digest != _EMPTY or not path.endswith("__init__.py"):
            self.code[path] = source.digest
        if "." in module:
            self.module(module.rpartition(".")[0], module)
        for template in source.templates:
            self.template(template, path)
        self._imported(source.imports, module)

    def template(self, name: str, user: str) -> None:
        """A template and those that it includes or imports."""
        place = f"{WHOLE}/{name}"
        if place not in self.code:
            self.code[place], others = read_template(self.project.root / place, user)
            for other in others:
                self.template(other, place)


def read_template(path: Path, user: str) -> tuple[str, list[str]]:
    """The digest of a template, which its comments do not change, and the names of those that it includes or imports.

    Raises ArtifactError where `user` names one that is gone or cannot be parsed, and where it does not write another's name out.
    """
    from jinja2 import TemplateSyntaxError
    from jinja2.meta import find_referenced_templates

    from components.templates import environment

    try:
        tree = environment().parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            f"The code is incomplete: there is no template {path}, which {user} needs. Restore it, or install scalingnote again."
        ) from None
    except (TemplateSyntaxError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not a template that can be read ({error}). Restore it, or install scalingnote again.") from None
    others = list(find_referenced_templates(tree))
    if None in others:
        raise ArtifactError(f"{path} computes the name of another template, so that no key can hold it. Write the name out.")
    return hashlib.sha256(repr(tree).encode()).hexdigest(), [name for name in others if name is not None]


def _ours(module: str | None) -> bool:
    return bool(module) and str(module).split(".")[0] in (WHOLE, WIRING)


def _covered(module: str, names: Iterable[str]) -> bool:
    """Whether `module` is one of `names` or lies below one."""
    return any(module == name or module.startswith(f"{name}.") for name in names)


_EMPTY = syntax.digest_of_tree(ast.parse(""))


def _known_path() -> Path:
    return settings.home() / "cache" / "code.json"


@cache
def _known_format() -> str:
    """The digests of another version of the module that makes them, or of another Python, may be others."""
    return f"{sys.version_info.major}.{sys.version_info.minor} {file_sha256(Path(syntax.__file__))}"


def _as_source(raw: Any) -> Source | None:
    try:
        digest, imports, templates = raw
        found = tuple(Import(str(module), str(name)) for module, name in imports)
        return Source(str(digest), found, tuple(map(str, templates)))
    except (TypeError, ValueError):
        return None
