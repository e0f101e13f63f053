"""What code a step is keyed by: its closure of imports, without comments and layout, in copies of the project that are changed."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from components.artifacts import Artifact
from components.code import HANDED, LOADED_BY_NAME, ROOT, UNDECIDING, UNFOLLOWED, Reached, _project, reached_by, read_template
from components.distillation.train import StudentInputs
from components.errors import ArtifactError
from components.evaluation.systems import EvaluationInputs
from components.syntax import imports_in, templates_in, tree_digest
from flows.candidate import CandidateParts, Decided, ask_both, write_decided
from flows.config import Layer, RetrainConfig, layers_of, load_config, nested, settle
from flows.recorder import Recorder
from flows.runner import Step
from flows.steps import (
    evaluation_step,
    generation_step,
    index_step,
    snapshot_step,
    student_step,
    targets_step,
    towers_step,
    validation_step,
    vectors_step,
)
from tests.flows.cli_world import write_collection

DIGEST = "a" * 64


def steps(changes: dict[str, Any] | None = None) -> dict[str, Step]:
    """The steps of a retraining but the first, whose key needs a source; none of them is made here."""
    # As a preset gives them, which may hold settings that do nothing as long as others are as they are.
    config: Any = settle(RetrainConfig, [*layers_of("smoke"), Layer("changes", nested(changes or {}))])
    made: Any = Artifact(kind="any", path=Path("/nowhere"), digest=DIGEST)
    learned_from, measured = StudentInputs(made, made, made), EvaluationInputs(made, made, made, made)
    found = (
        validation_step(config, made), towers_step(config, made), vectors_step(config, made, made), index_step(config, made, made, made),
        generation_step(config, made), targets_step(config, made, made), student_step(config, learned_from),
        evaluation_step(config, measured),
    )  # fmt: skip
    return {step.name: step for step in found}


STEPS = steps()


@pytest.fixture(scope="module", autouse=True)
def _at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One home for all: the digests of unchanged files are kept there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALINGNOTE_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home where no digest is kept yet."""
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the project's code."""
    for part in ("components", "flows"):
        shutil.copytree(ROOT / part, tmp_path / "tree" / part, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "tree"


def changed_steps(tree: Path) -> set[str]:
    """Steps that have another code in `tree` than here."""
    return {name for name, step in STEPS.items() if reached_by(step.make, tree).code != step.reached.code}


def append(tree: Path, place: str, text: str = "\nADDED = 1\n") -> None:
    path = tree / place
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def test_comments_docstrings_and_layout_of_the_whole_project_change_no_key(tree: Path) -> None:
    class OtherDocstrings(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            super().generic_visit(node)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                node.body[0] = ast.Expr(ast.Constant("Something else."))
            return node

    for place in {place.partition(":")[0] for step in STEPS.values() for place in step.reached.code}:
        path = tree / place
        if path.suffix == ".j2":
            path.write_text(f"{{# A comment. #}}\n{path.read_text(encoding='utf-8')}", encoding="utf-8")
            continue
        written = ast.unparse(ast.fix_missing_locations(OtherDocstrings().visit(ast.parse(path.read_text(encoding="utf-8")))))
        path.write_text(f"# A comment.\n\n{written.replace('    ', '        ')}\n", encoding="utf-8")
        assert path.read_bytes() != (ROOT / place).read_bytes()
    assert changed_steps(tree) == set()


def test_a_comment_in_the_code_of_the_built_in_data_leaves_its_digest(tmp_path: Path) -> None:
    from components.data import icd10cm

    path = tmp_path / "copy.py"
    path.write_text("# More.\n" + Path(icd10cm.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    assert tree_digest(path) == tree_digest(Path(icd10cm.__file__))
    path.write_text(path.read_text(encoding="utf-8") + "\nX = 1\n", encoding="utf-8")
    assert tree_digest(path) != tree_digest(Path(icd10cm.__file__))


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("components/towers/losses.py", {"train_towers"}),
        ("components/towers/negatives.py", {"train_towers"}),
        ("components/distillation/objectives.py", {"distil_query_tower"}),
        ("components/distillation/train.py", {"distil_query_tower"}),
        ("components/distillation/plan.py", {"distil_query_tower"}),
        ("components/distillation/plan.py", {"distil_query_tower"}),
        ("components/distillation/student/encoder.py", {"distil_query_tower", "evaluate"}),
        ("components/distillation/student/__init__.py", {"distil_query_tower", "evaluate"}),
        ("components/distillation/query_sources.py", {"encode_teacher_queries", "distil_query_tower"}),
        ("components/distillation/generation.py", {"generate_queries"}),  # none are asked for, so none are read
        ("components/index/build.py", {"build_index"}),
        ("components/index/parts.py", {"build_index", "distil_query_tower", "evaluate"}),
        ("components/evaluation/metrics.py", {"evaluate"}),
        ("components/data/contracts.py", {"validate_data"}),
        ("components/data/jsonl.py", set()),
        ("components/data/snapshot.py", set()),
        ("components/tracking/runs.py", set()),
        ("components/gates/decide.py", set()),
        ("components/towers/config.py", set()),
        ("flows/retrain.py", set()),
        ("flows/steps.py", set()),
        ("components/artifacts.py", set(STEPS)),
        ("components/templates.py", {"validate_data"}),
        ("components/data/report.html.j2", {"validate_data"}),
        ("components/data/contract_blocks.html.j2", {"validate_data"}),  # imported by the template of the page
        ("components/data/style.css.j2", {"validate_data"}),  # included by it
        ("components/evidence/report.html.j2", set()),
        ("components/evidence/pieces.html.j2", set()),
        ("components/lineage/page.html.j2", set()),
    ],
)
def test_a_change_in_a_module_makes_those_steps_again_that_reach_it(tree: Path, place: str, expected: set[str]) -> None:
    append(tree, place)
    assert changed_steps(tree) == expected


def test_a_changed_number_in_a_loss_retrains_the_towers_alone(tree: Path) -> None:
    path = tree / "components/towers/losses.py"
    before = path.read_text(encoding="utf-8")
    after = before.replace("+ suspect_margin", "+ 2 * suspect_margin")
    path.write_text(after, encoding="utf-8")
    assert after != before and changed_steps(tree) == {"train_towers"}


def test_a_changed_line_of_a_steps_own_function_changes_its_key_and_no_other(tree: Path) -> None:
    path = tree / "components/towers/train.py"
    before = path.read_text(encoding="utf-8")
    after = before.replace("training_pairs(load_dataset(dataset.path), ", "training_pairs(load_dataset(dataset.path, 1), ")
    path.write_text(after, encoding="utf-8")
    assert after != before and changed_steps(tree) == {"train_towers"}


def test_a_module_that_is_gone_is_named_with_the_one_that_needs_it(tree: Path) -> None:
    (tree / "components/towers/losses.py").unlink()
    with pytest.raises(ArtifactError, match=r"no module components\.towers\.losses, which components\.\w+\.\w+ needs"):
        reached_by(STEPS["train_towers"].make, tree)


def test_a_room_that_is_gone_is_an_error_and_not_the_digest_of_nothing(tree: Path) -> None:
    shutil.rmtree(tree / "components/distillation")
    with pytest.raises(ArtifactError, match=r"no module components\.distillation"):
        reached_by(STEPS["distil_query_tower"].make, tree)
    assert reached_by(STEPS["train_towers"].make, tree).code == STEPS["train_towers"].reached.code


@pytest.mark.parametrize("content", ["def broken(:\n", "x = '\0'\n"])
def test_a_file_that_cannot_be_parsed_is_named(tree: Path, content: str) -> None:
    (tree / "components/towers/losses.py").write_text(content, encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"towers/losses\.py is not Python that can be read"):
        reached_by(STEPS["train_towers"].make, tree)


def test_a_template_that_is_gone_is_named_with_what_needs_it(tree: Path) -> None:
    (tree / "components" / "data" / "style.css.j2").unlink()
    with pytest.raises(ArtifactError, match=r"no template .*style\.css\.j2, which components/data/report\.html\.j2 needs"):
        reached_by(STEPS["validate_data"].make, tree)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{% if %}", "not a template that can be read"),
        (b"{% macro", "not a template that can be read"),
        (b"\xff\xfe", "not a template that can be read"),
        (b"{% include other %}", "computes the name of another template"),
        (b'{% include "data/gone.j2" %}', "no template"),
    ],
)
def test_a_template_that_no_key_can_hold_is_refused(tree: Path, content: bytes, words: str) -> None:
    (tree / "components" / "data" / "contract_blocks.html.j2").write_bytes(content)
    with pytest.raises(ArtifactError, match=words):
        reached_by(STEPS["validate_data"].make, tree)


def test_templates_that_include_each_other_end(tree: Path) -> None:
    (tree / "components" / "data" / "style.css.j2").write_text('{% include "data/report.html.j2" %}', encoding="utf-8")
    assert "components/data/style.css.j2" in reached_by(STEPS["validate_data"].make, tree).code


def test_the_table_of_steps_makes_nothing_itself() -> None:
    for name, step in STEPS.items():
        assert isinstance(step.make, partial) and step.make.func.__module__.startswith("components."), name
        assert not step.make.func.__name__.startswith("_") and "<locals>" not in step.make.func.__qualname__, name
        assert not [place for place in step.reached.code if place.startswith("flows/")], name
        parameters = inspect.signature(step.make.func).parameters.values()
        assert all(parameter.annotation not in (parameter.empty, "Any", "dict[str, Any]") for parameter in parameters), name


def makers() -> Iterator[tuple[str, ast.FunctionDef]]:
    """The functions of `flows/` that `Step(name, partial(...))` and `measure(name, partial(...))` name, each with its place.

    Fails where something else than a partial is handed over: a closure's key holds all that stands around it.
    """
    for path in sorted((ROOT / "flows").rglob("*.py")):
        tree, place = ast.parse(path.read_bytes()), path.relative_to(ROOT).as_posix()
        own = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        for function in own.values():
            bound = {t.id: n.value for n in ast.walk(function) if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
            for call in ast.walk(function):
                called = getattr(call.func, "id", getattr(call.func, "attr", "")) if isinstance(call, ast.Call) else ""
                if called not in ("Step", "measure") or len(call.args) < 2:  # type: ignore[attr-defined]
                    continue
                made = call.args[1]  # type: ignore[attr-defined]
                made = bound.get(made.id, made) if isinstance(made, ast.Name) else made
                assert isinstance(made, ast.Call) and getattr(made.func, "id", "") == "partial", f"{place}: {ast.unparse(call)}"
                first = made.args[0]
                assert isinstance(first, ast.Name) and not first.id.startswith("_"), f"{place}: {ast.unparse(call)}"
                if first.id in own:
                    yield f"{place}: {first.id}", own[first.id]


def test_every_step_and_measurement_is_made_by_a_public_typed_function_that_is_handed_what_it_needs() -> None:
    found = dict(makers())
    assert {"flows/candidate.py: ask_both", "flows/candidate.py: write_decided", "flows/studies/framework.py: write_report"} <= set(found)
    assert len(found) > 8
    for name, function in found.items():
        annotations = [ast.unparse(argument.annotation) if argument.annotation else "" for argument in function.args.args]
        assert all(word not in ("", "Any", "dict[str, Any]") for word in annotations) and annotations[-1] == "Path", name
        assert function.returns is not None and ast.get_docstring(function), name


def test_what_the_steps_of_a_candidate_are_handed_brings_no_code_of_its_own() -> None:
    made: Any = Artifact(kind="any", path=Path("/nowhere"), digest=DIGEST)
    parts = CandidateParts(made, made, made, made, made, made, made)
    decided: Any = object.__new__(Decided)
    recorder: Any = object.__new__(Recorder)
    compared = reached_by(partial(ask_both, load_config("smoke"), parts, 1)).code
    written = reached_by(partial(write_decided, load_config("smoke"), recorder, parts, decided)).code
    assert "components/evaluation/champion_comparison.py" in compared and "components/evidence/report.py" not in compared
    assert "components/evidence/report.py" in written and "components/evidence/report.html.j2" in written
    for code in (compared, written):
        assert not {place for place in code if place.startswith(("flows/recorder.py", "flows/config.py"))}
        assert not {name for name in code if name.startswith("flows/candidate.py:") and "step" in name}


# A setting that is no part of the result that a step makes, by the step: a change of it must leave the step as it was.
UNREAD = {
    "train_towers": {"towers.endpoint.timeout": 7.0, "towers.endpoint.batch_size": 8},
    "build_index": {
        "index.compact_share": 0.4, "index.max_imbalance": 3.0, "index.max_distance": 1.5, "index.max_recall_loss": 0.1,
        "index.probe_tolerance": 0.2,
    },
    "distil_query_tower": {
        "distillation.titles": 7, "distillation.sentences": 7, "distillation.spans": 7, "distillation.generator": "tiny-decoder",
        "distillation.generator_revision": "main",
    },
    "encode_corpus": {"encoding.runner": "process_pool", "encoding.workers": 2, "encoding.attempts": 5, "index.probe_tolerance": 0.2},
    "encode_teacher_queries": {"distillation.epochs": 9, "distillation.generator": "tiny-decoder", "distillation.noised": 7},
    "generate_queries": {"distillation.epochs": 9, "distillation.titles": 7},
    "evaluate": {"distillation.epochs": 9, "distillation.titles": 7, "index.probe_tolerance": 0.2},
}  # fmt: skip


@pytest.mark.parametrize(("name", "changes"), UNREAD.items())
def test_a_setting_that_decides_nothing_of_a_step_leaves_its_key(name: str, changes: dict[str, Any]) -> None:
    for setting, value in changes.items():
        assert steps({setting: value})[name].folder == STEPS[name].folder, setting


def test_where_the_contracts_lie_makes_no_snapshot_again(tmp_path: Path) -> None:
    source = {"data.source": str(write_collection(tmp_path / "clinic"))}
    one, elsewhere, cut = (
        snapshot_step(load_config("smoke", None, {**source, **more})).folder
        for more in ({}, {"data.contracts": str(tmp_path / "contracts")}, {"data.max_documents": 60})
    )
    assert one == elsewhere != cut


def test_the_settings_of_an_endpoint_are_kept_with_its_towers_and_so_in_their_key() -> None:
    endpoint = {"towers.base_model": "endpoint", "towers.endpoint.url": "http://127.0.0.1:1/v1", "towers.endpoint.model": "m"}
    one, other = steps(endpoint), steps({**endpoint, "towers.endpoint.batch_size": 8})
    assert one["train_towers"].folder != other["train_towers"].folder


def test_what_reads_generated_queries_is_code_of_the_teachers_vectors_only_where_there_are_any() -> None:
    made: Any = Artifact(kind="any", path=Path("/nowhere"), digest=DIGEST)
    config = load_config("smoke")
    without, with_some = targets_step(config, made, made), targets_step(config, made, made, made)
    generation = "components/distillation/generation.py"
    assert generation not in without.reached.code and generation in with_some.reached.code


def test_libraries_are_those_that_the_code_imports() -> None:
    towers, index, validation = (STEPS[name].reached.libraries for name in ("train_towers", "build_index", "validate_data"))
    assert {"torch", "transformers", "peft", "tokenizers", "safetensors", "accelerate", "pandas", "pyarrow", "numpy"} == set(towers)
    assert {"faiss-cpu", "pandas", "pyarrow", "numpy"} == set(index)
    assert "great-expectations" in validation and "torch" not in validation
    assert all(version != "absent" for step in STEPS.values() for version in step.reached.libraries.values())


# A small project whose functions stand for the wiring of a step.


def project(root: Path, files: dict[str, str]) -> Path:
    packages = ("components/__init__.py", "components/room/__init__.py", "components/towers/__init__.py", "flows/__init__.py")
    for place, text in {**{place: "" for place in packages if not (root / place).exists()}, **files}.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text(text, encoding="utf-8")
    return root


def function_of(root: Path, call: str, **names: Any) -> Callable[..., Any]:
    """What `call` gives in the module flows/wiring.py, which is run without its project on the path."""
    module = ModuleType("flows.wiring")
    module.__dict__.update(names)
    exec(compile((root / "flows/wiring.py").read_text(encoding="utf-8"), "wiring.py", "exec"), module.__dict__)
    function: Callable[..., Any] = eval(call, module.__dict__)
    return function


def reached(root: Path, wiring: str, call: str = "make", **names: Any) -> Reached:
    project(root, {"flows/wiring.py": wiring})
    _project.cache_clear()  # the files of one test change, those of a process do not
    return reached_by(function_of(root, call, **names), root)


IMPORTING = [
    ("from components.room import leaf", {"components/room/leaf.py"}),
    ("from components.room.leaf import thing", {"components/room/leaf.py"}),
    ("import components.room.leaf", {"components/room/leaf.py"}),
    ("import components.room.leaf as l", {"components/room/leaf.py"}),
    ("from components.room.leaf import *", {"components/room/leaf.py"}),
    ("from components.room.near import thing", {"components/room/near.py", "components/room/leaf.py"}),
    ("from typing import TYPE_CHECKING\n    if TYPE_CHECKING:\n        from components.room import leaf", set()),
    ("import typing\n    if typing.TYPE_CHECKING:\n        from components.room import leaf", set()),
    ("if TYPE_CHECKING:\n        pass\n    else:\n        from components.room import leaf", {"components/room/leaf.py"}),
    ("try:\n        import faiss\n    except ImportError:\n        from components.room import leaf", {"components/room/leaf.py"}),
]


@pytest.mark.parametrize(("statement", "expected"), IMPORTING)
def test_every_form_of_import_is_followed(tmp_path: Path, statement: str, expected: set[str]) -> None:
    near = "def f():\n    from .leaf import thing\nthing = 2\n"
    project(tmp_path, {"components/room/leaf.py": "thing = 1\n", "components/room/near.py": near})
    found = reached(tmp_path, f"def make(folder):\n    {statement}\n").code if "*" not in statement else None
    if found is None:  # a star is allowed at a module's top alone
        project(tmp_path, {"components/room/star.py": statement})
        found = reached(tmp_path, "def make(folder):\n    import components.room.star\n").code
        expected = {*expected, "components/room/star.py"}
    assert set(found) - {"flows/wiring.py:make"} == expected


def test_a_package_that_holds_code_counts_for_all_below_it(tmp_path: Path) -> None:
    project(tmp_path, {"components/room/__init__.py": "SIZE = 1\n", "components/room/leaf.py": "x = 1\n"})
    assert set(reached(tmp_path, "def make(f):\n    import components.room.leaf\n").code) == {
        "components/room/__init__.py", "components/room/leaf.py", "flows/wiring.py:make",
    }  # fmt: skip
    reached(tmp_path, "def make(f):\n    from components.room import SIZE\n")
    with pytest.raises(ArtifactError, match=r"no module components\.room\.gone, which flows\.wiring needs"):
        reached(tmp_path, "def make(f):\n    from components.room import gone\n")


def test_of_the_wiring_only_what_is_reached_counts(tmp_path: Path) -> None:
    lines = {
        "top": "from components.towers import schedule, transformer",  # of the real ones, since the module is run
        "limit": "LIMIT = 1",
        "helper": "def helper(x: transformer.Thing):\n    return schedule.f(LIMIT)",
        "unused": "def unused():\n    return transformer.f()",
        "make": "def make(folder):\n    return helper(folder)",
    }

    def code(root: Path, **changes: str) -> dict[str, str]:
        project(root, {"components/towers/schedule.py": "def f(x): ...\n", "components/towers/transformer.py": "def f(): ...\n"})
        return reached(root, "\n".join({"future": "from __future__ import annotations", **lines, **changes}.values())).code

    first = code(tmp_path / "a")
    assert set(first) == {"components/towers/schedule.py", *(f"flows/wiring.py:{name}" for name in ("LIMIT", "helper", "make"))}
    assert code(tmp_path / "b", unused="def unused():\n    return 2") == first
    helper = "def helper(x):\n    return schedule.f(LIMIT) + 1"
    for name, text in (("limit", "LIMIT = 2"), ("helper", helper), ("make", "def make(f):\n    pass")):
        assert code(tmp_path / name, **{name: text}) != first


def test_wiring_that_was_changed_while_the_program_runs_is_refused(tmp_path: Path) -> None:
    wiring = "def step():\n    def make(folder):\n        pass\n    return make\n"
    make = function_of(project(tmp_path, {"flows/wiring.py": wiring}), "step()")
    project(tmp_path, {"flows/wiring.py": wiring.replace("def step", "def other")})
    _project.cache_clear()
    with pytest.raises(ArtifactError, match=r"has no step\.<locals>\.make any more: it was changed while"):
        reached_by(make, tmp_path)


def test_functions_that_a_step_is_closed_over_count(tmp_path: Path) -> None:
    project(tmp_path, {"components/room/leaf.py": "", "components/room/other.py": "", "components/room/third.py": ""})
    wiring = """
from functools import cache, partial
def step(inner, *more):
    def make(folder):
        return inner(more)
    return make
def ranker():
    from components.room import leaf
def timed(function):
    from components.room import other
    return function
def given(function):
    def inner(first, f=function, *, g=function):
        pass
    return inner
def round_and_round():
    values = [ranker]
    values.append(values)
    return values
def lambdas():
    return lambda: __import__("json") or ranker()
"""
    leaf, other = "components/room/leaf.py", "components/room/other.py"
    for call, expected in (
        ("step(ranker)", {leaf}), ("step(partial(timed, ranker))", {leaf, other}), ("step(lambdas())", {leaf}),
        ("partial(step(ranker), 1)", {leaf}), ("step(len)", set()), ("step(3)", set()), ("step(cache(ranker))", {leaf}),
        ("step(0, {1: [ranker]}, (timed,))", {leaf, other}), ("step(given(timed))", {other}), ("step(round_and_round())", {leaf}),
    ):  # fmt: skip
        found = reached(tmp_path, wiring, call).code
        assert {place for place in found if place.startswith("components")} == expected, call


def test_of_a_module_that_a_step_is_closed_over_what_it_asks_for_counts(tmp_path: Path) -> None:
    study = ModuleType("flows.study")
    text = "def plot():\n    from components.room import leaf\ndef files():\n    from components.room import other\n"
    text += "def cells():\n    import gone_lib\n"
    project(tmp_path, {"components/room/leaf.py": "", "components/room/other.py": "", "flows/study.py": text})
    wiring = 'def step(study):\n    def make(f):\n        study.plot()\n        getattr(study, "files", None)\n    return make\n'
    found = reached(tmp_path, wiring, "step(study)", study=study)
    of_study = {"components/room/leaf.py", "components/room/other.py", "flows/study.py:plot", "flows/study.py:files"}
    assert set(found.code) == {*of_study, "flows/wiring.py:step"} and found.libraries == {}
    handed = 'def make(number, study, f):\n    study.plot()\n    getattr(study, "files", None)\n'
    for call in ("partial(make, 1, study)", "partial(make, number=1, study=study)", "partial(partial(make, 1), study)"):
        found = reached(tmp_path, handed, call, study=study, partial=partial)
        assert set(found.code) == {*of_study, "flows/wiring.py:make"} and found.libraries == {}, call


def test_the_class_of_a_value_that_a_step_is_closed_over_counts(tmp_path: Path) -> None:
    from components.towers.config import TowerConfig
    from components.towers.contract import EncodingContract  # of the real ones, since a class has to be loaded

    project(tmp_path, {"components/towers/contract.py": "", "components/towers/config.py": "", "flows/candidate.py": ""})
    wiring = "def step(value):\n    def make(folder):\n        return value.anything\n    return make\n"
    contract, config = EncodingContract.model_construct(), TowerConfig()
    assert set(reached(tmp_path, wiring, "step(value)", value=contract).code) == {"components/towers/contract.py", "flows/wiring.py:step"}
    assert set(reached(tmp_path, wiring, "step(value)", value=config).code) == {"flows/wiring.py:step"}
    bound = reached(tmp_path, wiring, "step(value.model_dump)", value=contract).code
    assert set(bound) == {"components/towers/contract.py", "flows/wiring.py:step"}


def test_a_library_that_is_not_installed_is_absent(tmp_path: Path) -> None:
    assert reached(tmp_path, "def make(f):\n    import no_such_library.part, os, numpy\n").libraries.keys() == {"no-such-library", "numpy"}
    assert reached(tmp_path / "b", "def make(f):\n    import no_such_library, tqdm\n").libraries == {"no-such-library": "absent"}


def test_a_circle_of_imports_ends(tmp_path: Path) -> None:
    project(tmp_path, {"components/room/a.py": "import components.room.b\n", "components/room/b.py": "from components.room import a\n"})
    assert len(reached(tmp_path, "def make(f):\n    from components.room.a import b\n").code) == 3


def test_a_function_from_outside_of_the_project_reaches_nothing_by_itself() -> None:
    assert reached_by(lambda folder: folder).code == {}
    assert reached_by(partial(print, 1)).code == {}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("x = 1  # one", "x = (1)", True),
        ("def f():\n    'Doc.'\n    return 1", "def f():\n    return 1", True),
        ("class A:\n    x = 1\n    'About x.'", "class A:\n    x = 1", True),
        ("x = Field(1, description='a')", "x = Field(1, description='b')", True),
        ("x = Field(1, description='a')", "x = Field(2, description='a')", False),
        ("x = '''a'''", "x = 'a'", True),
        ("x = 'a'", "x = b'a'", False),
        ("x = 1", "x = 1.0", False),
        ("x = 1", "x = True", False),
        ("f(a, b)", "f(a)(b)", False),
        ("f([a], b)", "f([a, b])", False),
        ("{**a}", "{None: a}", False),
        ("x: int", "x: str", False),
        ("if TYPE_CHECKING:\n    import a", "", True),
        ("if not TYPE_CHECKING:\n    import a", "", False),
        ("x = '\\ud800'", "x = '\\ud801'", False),
        ("x = 1\ny = 2", "y = 2\nx = 1", False),
        ("", "'Only a docstring.'", True),
    ],
)
def test_what_counts_of_a_file(tmp_path: Path, one: str, other: str, same: bool) -> None:
    first, second = tmp_path / "one.py", tmp_path / "other.py"
    first.write_text(one, encoding="utf-8")
    second.write_text(other, encoding="utf-8")
    assert (tree_digest(first) == tree_digest(second)) is same


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1}', '{"files": {}}', "\0", None])
def test_digests_that_were_kept_and_cannot_be_read_are_made_anew(tree: Path, tmp_path: Path, fresh: Path, content: str | None) -> None:
    kept = fresh / "cache" / "code.json"
    first = reached_by(STEPS["train_towers"].make, tree)
    assert kept.is_file()
    if content is None:
        text = kept.read_text(encoding="utf-8")
        content = re.sub(r'"[0-9a-f]{64}": \[', '"0": [', text).replace('"losses"', '"other"')
    kept.write_text(content, encoding="utf-8")
    shutil.copytree(tree, tmp_path / "again")
    assert reached_by(STEPS["train_towers"].make, tmp_path / "again") == first


def test_a_home_that_cannot_be_written_costs_only_time(tree: Path, fresh: Path) -> None:
    fresh.write_text("a file, not a folder", encoding="utf-8")
    assert reached_by(STEPS["train_towers"].make, tree) == STEPS["train_towers"].reached


def test_no_file_but_code_and_its_templates_decides_a_result() -> None:
    """A prompt in a file of its own would be in no key: it needs a place in the settings of its step, as contracts have."""
    kinds = (".py", ".pyc", ".md", ".j2")
    others = [path for path in (ROOT / "components").rglob("*") if path.is_file() and path.suffix not in kinds and path.name != "py.typed"]
    assert not others, others
    assert not list((ROOT / "flows").rglob("*.j2"))


def test_every_template_is_named_by_a_module_or_a_template_of_its_own_room() -> None:
    """One that is named from elsewhere alone would be in the key of who does not use it, one that nobody names in no key."""
    named: dict[str, set[str]] = {}
    for name, tree in modules():
        named.setdefault(name.split(".")[1], set()).update(templates_in(tree))
    for path in (ROOT / "components").rglob("*.j2"):
        named[path.parent.name].update(read_template(path, "this test")[1])
    for path in (ROOT / "components").rglob("*.j2"):
        assert f"{path.parent.name}/{path.name}" in named[path.parent.name], f"{path} is used by nobody"


def test_names_of_templates_are_written_out_where_they_are_filled() -> None:
    for name, tree in modules():
        fills = {i.name for i in imports_in(tree, name.rpartition(".")[0]) if i.module == "components.templates"} & {"page", "piece"}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in fills:
                (first, *_) = node.args
                assert isinstance(first, ast.Constant) or (isinstance(first, ast.Name) and first.id.isupper()), (
                    f"{name}: {ast.unparse(node)}"
                )


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / "components").rglob("*.py")):
        yield path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."), ast.parse(path.read_bytes())


def test_what_is_left_out_exists_and_has_its_reason() -> None:
    for name, reason in {**UNDECIDING, **HANDED, **{end: why for (_, end), why in UNFOLLOWED.items()}}.items():
        place = ROOT.joinpath(*name.split("."))
        assert (place.is_dir() or place.with_suffix(".py").is_file()) and reason, name
    for start, end in UNFOLLOWED:
        text = ROOT.joinpath(*start.split(".")).with_suffix(".py").read_text(encoding="utf-8")
        assert f"from {end}" in text, f"{start} imports nothing of {end}: the exception is not needed any more"


def test_configurations_that_are_left_out_hold_fields_and_their_checks_alone() -> None:
    allowed = {"field_validator", "model_validator", "classmethod"}
    checks = {"checked_retriever_name", "stemmer_name"}  # forms of names: one decides nothing, of the other the result is in the key
    for name, tree in modules():
        if name in UNDECIDING and name.endswith("config"):
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef) and node.name not in checks:
                    used = {inner.id for d in node.decorator_list for inner in ast.walk(d) if isinstance(inner, ast.Name)}
                    assert used and used <= allowed, f"{name}.{node.name} may decide a result; move it out of the configuration"


def test_every_module_that_loads_by_name_says_what() -> None:
    loading = {name for name, tree in modules() if any(_loads(node) for node in ast.walk(tree))}
    assert loading == set(LOADED_BY_NAME)


def _loads(node: ast.AST) -> bool:
    name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
    return name in ("import_module", "__import__")
