"""What the documents say is there: commands parse, links and named files exist, tables are those of the code, claims are those measured."""

from __future__ import annotations

import argparse
import ast
import io
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from components import errors
from components.tracking.store import TrackingError
from flows.cli import ENDINGS
from flows.cli.parser import GROUPS, build_parser
from flows.cli.prepare import parsed_settings
from flows.config import field_paths, load_settings, preset_names
from flows.studies.context import StudySettings
from flows.studies.registry import STUDIES
from tests.benchmarks.claims import measured, read_claims, render

ROOT = Path(__file__).resolve().parents[2]
ROOMS = (
    *("data", "towers", "distillation", "index", "evaluation", "studies", "planning", "gates", "release", "signing", "evidence"),
    *("promotion", "lineage", "serving", "tracking"),
)
RESULTS = ROOT / "flows" / "studies" / "RESULTS.md"
FLOWS = ROOT / "flows" / "README.md"
# First words of lines in code blocks that are no commands of ours, and why this test lets them pass.
OTHERS = {
    "prefect": "Prefect's own command",
    "docker": "needs a container engine",
    "torchrun": "torch's own command",
    "mlflow": "MLflow's own command",
    "curl": "its own command",
    "jq": "its own command",
    "source": "the shell's own",
    "export": "the shell's own",
    "pre-commit": "its own command",
    "cat": "a file written by the shell",
    "make": "checked against the Makefile",
    "python": "checked against the module's own options",
}


class Line(NamedTuple):
    """A command as a document has it, and where."""

    document: str
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.number}: {self.text}"


def _tracked() -> list[str]:
    """Files that git knows or would take; in an unpacked archive all there are."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        return [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


@cache
def documents() -> dict[str, str]:
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in _tracked() if name.endswith(".md")}


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """Lines of code blocks, indented or fenced, those that go on after a backslash as one."""
    fenced, before, held = False, "", ("", 0)
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            fenced = not fenced
            continue
        code = line if fenced else line[4:] if line.startswith("    ") and not before.lstrip().startswith(("- ", "| ")) else None
        if code is None:
            before = line or before if line.strip() else ""
            continue
        start, joined = (held[1], held[0] + code.strip()) if held[0] else (number, code)
        held = (joined[:-1], start) if joined.endswith("\\") else ("", 0)
        if not held[0]:
            yield start, joined


def commands(program: str) -> list[Line]:
    """Every use of a program in code blocks of documents and heads of presets, one a line."""
    found = []
    for name, text in {**documents(), **{f"flows/presets/{preset}.yaml": head_of(preset) for preset in preset_names()}}.items():
        for number, line in blocks(text):
            for part in re.split(r"&&|&$", line.partition(" #")[0]):
                words = re.sub(r"^(\s*(export )?\w+=\S+ )+", "", part.strip())
                if words.split(" ")[0] == program:
                    found.append(Line(name, number, words))
    return found


def head_of(preset: str) -> str:
    """The comment at the head of a preset."""
    text = (ROOT / "flows" / "presets" / f"{preset}.yaml").read_text(encoding="utf-8")
    return "\n".join(line.lstrip("#").removeprefix(" ") for line in text.splitlines() if line.startswith("#"))


def spans() -> list[Line]:
    """Commands in the running text, between backticks."""
    return [
        Line(name, text[: match.start()].count("\n") + 1, " ".join(match[1].split()))
        for name, text in documents().items()
        for match in re.finditer(r"`(scalingnote [^`]+)`", text)
    ]


def parse(text: str) -> argparse.Namespace:
    """The command as the command line parses it; raises ValueError with its own words."""
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            return build_parser().parse_args(shlex.split(text)[1:])
    except SystemExit:
        return argparse.Namespace(command="help")
    except errors.ConfigError as error:
        raise ValueError(str(error)) from None


def check_command(line: Line) -> None:
    """Raise unless the command parses, and all that it names is there: presets, studies, settings with values that are allowed."""
    options = parse(line.text)
    if options.command == "study":
        assert options.study in STUDIES or options.study.isupper(), f"{line}: there is no such study"
    preset = getattr(options, "preset", None) or (options.command if options.command in ("demo", "adopt") else None)
    if preset is not None:
        assert preset in preset_names() or preset.isupper(), f"{line}: there is no such preset"
    given = parsed_settings(options) if getattr(options, "set", None) else {}
    unknown = given.keys() - field_paths(StudySettings)
    assert not unknown, f"{line}: there is no setting {', '.join(unknown)}"
    if given:
        filled = {field: "http://127.0.0.1:8000/v1" if value == "URL" else value for field, value in given.items()}
        load_settings(StudySettings, preset if preset in preset_names() else None, overrides=filled)


def test_documents_hold_enough_commands_to_be_worth_a_test() -> None:
    assert len(commands("scalingnote")) > 60 and len(spans()) > 20 and len(commands("python")) > 8


def test_every_command_in_a_code_block_parses() -> None:
    wrong = []
    for line in commands("scalingnote"):
        try:
            check_command(line)
        except (ValueError, AssertionError, errors.ScalingNoteError) as error:
            wrong.append(f"{line}\n    {error}")
    assert wrong == [], "\n".join(wrong)


def test_every_command_in_running_text_parses_or_lacks_no_more_than_its_arguments() -> None:
    wrong = []
    for line in spans():
        try:
            check_command(Line(line.document, line.number, re.sub(r" \[[^\]]*\]$", "", line.text)))
        except ValueError as error:
            if "the following arguments are required" not in str(error):
                wrong.append(f"{line}\n    {error}")
        except (AssertionError, errors.ScalingNoteError) as error:
            wrong.append(f"{line}\n    {error}")
    assert wrong == [], "\n".join(wrong)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("scalingnote retrian", "invalid choice"),
        ("scalingnote retrain --preset demmo", "no such preset"),
        ("scalingnote study retantion", "no such study"),
        ("scalingnote retrain --set towers.stepps=3", "stepps"),
        ("scalingnote retrain --set towers.steps=none", "towers.steps"),
        ("scalingnote retrain --bugdet 1h", "unrecognized arguments"),
        ("scalingnote webhook", "arguments are required"),
    ],
)
def test_a_slip_in_a_command_is_found(command: str, words: str) -> None:
    with pytest.raises((ValueError, AssertionError, errors.ScalingNoteError), match=words):
        check_command(Line("a document", 1, command))


def test_every_setting_and_module_that_is_named_is_there() -> None:
    fields = set(field_paths(StudySettings))
    known = fields | {".".join(field.split(".")[:depth]) for field in fields for depth in (1, 2)}
    checked, wrong = 0, []
    for name, text in documents().items():
        for word in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?:[:= ][^`]*)?`", text):
            top = word.partition(".")[0]
            if top in StudySettings.model_fields and not word.endswith((".py", ".yaml", ".json", ".md", ".faiss", ".parquet")):
                checked += 1
                wrong += [] if word in known else [f"{name}: there is no setting `{word}`"]
            elif top in ("components", "flows", "tests"):
                place = ROOT / word.replace(".", "/")
                wrong += [] if place.is_dir() or place.with_suffix(".py").is_file() else [f"{name}: there is no module `{word}`"]
    assert wrong == [] and checked > 20


def test_every_benchmark_that_is_named_has_the_options_that_are_given() -> None:
    wrong = []
    for line in commands("python"):
        words = shlex.split(line.text)
        module = words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1]
        file = ROOT / module
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        text += "".join(
            shared.read_text(encoding="utf-8") for shared in file.parent.glob("*_world.py") if f"from {shared.stem} import" in text
        )
        wrong += [f"{line}: no {word} in {module}" for word in words[1:] if word.startswith("--") and f'"{word}"' not in text]
        wrong += [] if text else [f"{line}: {module} does not exist"]
    assert wrong == []


def test_every_target_of_make_that_is_named_is_there() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {word for line in commands("make") for word in line.text.split()[1:2] if word.islower()}
    named |= {name for text in documents().values() for name in re.findall(r"`make ([a-z]+)`", text)}
    assert named and named <= targets


def test_no_code_block_runs_a_program_that_nobody_checks() -> None:
    known = {"scalingnote", *OTHERS}
    shell = re.compile(r"^(\w+=|END$|users:$|\w[\w-]*: |\s|snapshot_data|served|[{(\"'-])")
    for name, text in documents().items():
        for number, line in blocks(text):
            first = re.sub(r"^(\s*\w+=\S+ )+", "", line).split(" ")[0]
            assert first in known or not line.strip() or shell.match(line), f"{name}:{number}: {line}"


# --- links, files, functions ------------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Anchors of a document's headings, as the pages of git servers make them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_link_leads_to_a_file_and_a_heading_that_are_there() -> None:
    wrong = []
    for name, text in documents().items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"https?:|mailto:", target):
                continue
            path, _, anchor = target.partition("#")
            place = (ROOT / name).parent / path if path else ROOT / name
            if not place.exists():
                wrong.append(f"{name}: {target} does not exist")
            elif anchor:
                file = place if place.is_file() else place / "README.md"
                if anchor not in anchors(file.read_text(encoding="utf-8")):
                    wrong.append(f"{name}: no heading #{anchor} in {file.relative_to(ROOT)}")
    assert wrong == []


def named_files(document: str, text: str) -> Iterator[tuple[str, Path | None, str]]:
    """(as written, file or None, name in it) of each file of ours that a document names between backticks."""
    for span in re.findall(r"`([^`\n]+)`", text):
        match = re.fullmatch(r"([\w.][\w./-]*?\.(?:py|md|toml|ini|env|lock)|[\w.-]+(?:/[\w.-]+)+/?)(?:: (\w+))?", span)
        if match is None:
            continue
        file, top = _found(document, match[1]), match[1].partition("/")[0]
        if file or "/" not in match[1] or top in _tops() or match[1].endswith(".py"):  # what else has a slash need be no path of ours
            yield span, file, match[2] or ""


@cache
def _tops() -> frozenset[str]:
    return frozenset(name.split("/")[0] for name in _tracked() if "/" in name)


def _found(document: str, name: str) -> Path | None:
    for place in ((ROOT / document).parent, ROOT, ROOT / "tests", ROOT / "tests" / "benchmarks"):
        if (place / name).exists():
            return place / name
    return None


# Made by a run, or by whoever installs.
GENERATED = {"mining_report.md", "docker/.env", "docker/policies/", "docker/data/"}


def test_every_file_that_is_named_is_there() -> None:
    named = [(name, span, file) for name, text in documents().items() for span, file, _ in named_files(name, text)]
    assert [f"{name}: `{span}`" for name, span, file in named if file is None and span not in GENERATED] == []


def test_every_function_that_a_file_is_named_with_is_in_it() -> None:
    checked, wrong = 0, []
    for name, text in documents().items():
        for span, file, inner in named_files(name, " ".join(text.split("\n"))):
            if inner and file is not None and file.suffix == ".py":
                checked += 1
                wrong += [] if inner in _names_of(file) else [f"{name}: `{span}`"]
    assert wrong == [] and checked > 60


@cache
def _names_of(file: Path) -> frozenset[str]:
    """Functions, classes and constants at the top of a module."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(found)


@pytest.mark.parametrize("room", ["components", *(f"components/{name}" for name in ROOMS), "flows"])
def test_every_module_of_a_room_stands_in_its_readme(room: str) -> None:
    text = (ROOT / room / "README.md").read_text(encoding="utf-8")
    found = (ROOT / room).glob("*.py") if room == "components" else (ROOT / room).rglob("*.py")
    modules = {path.relative_to(ROOT / room).as_posix() for path in found if path.name != "__init__.py"}
    missing = sorted(name for name in modules if f"`{name}`" not in text)
    assert missing == [], f"name them in {room}/README.md, among its files in reading order"


def test_the_modules_that_import_faiss_are_those_that_the_readme_of_the_index_names() -> None:
    text = (ROOT / "components" / "index" / "README.md").read_text(encoding="utf-8")
    told = text.partition("an engine other than FAISS added?**")[2].partition("\n- **")[0]
    named = {f"components/index/{name}" if "/" not in name else name for name in re.findall(r"`([\w/]+\.py)`", told)}
    files = [file for top in ("components", "flows") for file in (ROOT / top).rglob("*.py")]
    assert named == {str(file.relative_to(ROOT)) for file in files if "import faiss" in file.read_text(encoding="utf-8")}


def test_the_code_that_runs_inside_the_mlflow_server_is_what_the_readme_of_tracking_names() -> None:
    room = ROOT / "components" / "tracking"
    reached, new = set(), {"server/plugin"}
    while new:
        name = new.pop()
        reached.add(name)
        text = (room / f"{name}.py").read_text(encoding="utf-8")
        found = {place.replace(".", "/") for place in re.findall(r"^from components\.tracking\.([\w.]+) import", text, re.MULTILINE)}
        for package, names in re.findall(r"^from components\.tracking(\.server)? import (.+)$", text, re.MULTILINE):
            found |= {f"{package.lstrip('.')}/{name.split(' as ')[0]}".lstrip("/") for name in names.split(", ")}
        new |= {name for name in found if (room / f"{name}.py").is_file()} - reached
    told = (ROOT / "components" / "tracking" / "README.md").read_text(encoding="utf-8")
    rows = table_of(told, "Which code runs inside the MLflow server?")
    assert {name for row in rows for name in re.findall(r"`([\w/]+)\.py`", row[0])} == reached


def test_every_room_of_components_has_a_readme_that_says_where_things_are() -> None:
    rooms = {path.parent.name for path in (ROOT / "components").glob("*/__init__.py")}
    assert rooms == set(ROOMS)
    for room in ROOMS:
        text = (ROOT / "components" / room / "README.md").read_text(encoding="utf-8")
        for heading in ("## Files in reading order", "## Where is ...?", "## Decisions", "## Traps"):
            assert heading in text, f"{room}: {heading}"


# --- tables of the code -----------------------------------------------------------------------------------------------------------------


def table_of(text: str, heading: str) -> list[list[str]]:
    """Rows of the first table below a heading, without its head."""
    part = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows[2:]]


def test_the_table_of_commands_holds_those_of_the_command_line() -> None:
    rows = table_of(FLOWS.read_text(encoding="utf-8"), "Commands")
    named = [name for row in rows for name in re.findall(r"`([\w-]+)`", row[0])]
    assert sorted(named) == sorted(name for group in GROUPS for name in group.commands)


def test_the_help_groups_every_command_once_with_examples_that_parse() -> None:
    (commands,) = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    grouped = [name for group in GROUPS for name in group.commands]
    assert sorted(grouped) == sorted(commands.choices), "each command stands in one of GROUPS in flows/cli/parser.py"
    told = build_parser().format_help()
    for group in GROUPS:
        check_command(Line("--help", 0, group.example))
        assert f"{group.title}:" in told and f"e.g. {group.example}" in told
    assert [line.split()[0] for line in told.splitlines() if re.match(r"  [a-z][\w-]* ", line) and "e.g." not in line] == grouped


def _words_of(module: Path) -> Iterator[str]:
    """The texts of a module as people read them, with X for what is put in."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    parts = {id(part) for node in joined for part in node.values}
    yield from ("".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values) for node in joined)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


def test_every_command_that_a_message_names_is_one_with_these_options() -> None:
    known: dict[str, set[str]] = {}
    for path, _ in _commands(build_parser()):
        parser = build_parser()
        for word in path:
            (choices,) = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
            parser = choices[word]
        known.setdefault(path[0], set()).update(option for action in parser._actions for option in action.option_strings)
    found = 0
    for module in [path for folder in ("components", "flows") for path in (ROOT / folder).rglob("*.py")]:
        for text in _words_of(module):
            for said in re.finditer(r"\bscalingnote ([a-z][a-z-]*)((?: [^`.;:()\n]*)?)", text):
                command, rest = said[1], said[2]
                if command in ("again", "and", "release", "signing"):  # Install scalingnote again; scalingnote signing key
                    continue
                assert command in known, f"{module.name}: {said[0]}"
                unknown = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", rest)) - known[command]
                assert not unknown, f"{module.name}: {said[0]}"
                assert command != "study" or rest.split()[0] in STUDIES, f"{module.name}: {said[0]}"
                found += 1
    assert found > 60


def test_every_command_names_a_function_that_is_there() -> None:
    targets = {" ".join(path): run.args for path, run in _commands(build_parser())}
    assert {command.split()[0] for command in targets} == {name for group in GROUPS for name in group.commands}
    for command, (module, function) in targets.items():
        assert find_spec(f"flows.cli.{module}") is not None, f"{command} is run by flows/cli/{module}.py, which does not exist"
        assert callable(getattr(import_module(f"flows.cli.{module}"), function, None)), (
            f"{command}: flows/cli/{module}.py has no {function}"
        )


def _commands(parser: argparse.ArgumentParser, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each command's words and what it runs."""
    if run := parser.get_default("run"):
        yield path, run
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from _commands(inner, *path, name)


def test_the_table_of_variables_holds_those_that_the_code_reads() -> None:
    named = [re.findall(r"`(\w+)`", row[0])[0] for row in table_of(FLOWS.read_text(encoding="utf-8"), "Environment")]
    places = ("components", "flows", "mlflow", "docker", "Makefile", ".ci", "prefect.yaml")
    files = [ROOT / name for name in _tracked() if name.split("/")[0] in places and Path(name).suffix not in (".md", ".safetensors")]
    read = {found for file in files for found in re.findall(r"SCALINGNOTE_[A-Z_]*[A-Z]", file.read_text(encoding="utf-8"))}
    assert sorted(named) == sorted(read), "the table in flows/README.md, Environment"
    for name in re.findall(r"SCALINGNOTE_[A-Z_]*[A-Z]", "".join(documents().values())):
        assert name in {*named, "SCALINGNOTE_TEST_KILLS"}, f"{name} is read by nothing"


def test_the_table_of_exit_statuses_holds_those_of_the_errors() -> None:
    statuses = {int(row[0]) for row in table_of(FLOWS.read_text(encoding="utf-8"), "Exit statuses")}
    ours = {value.exit_code for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.ScalingNoteError)}
    assert ours < statuses and statuses == ours | {0, TrackingError.exit_code, *(128 + number for number in ENDINGS)}


def test_the_tables_of_studies_and_presets_hold_all_there_are() -> None:
    text = FLOWS.read_text(encoding="utf-8")
    assert {name for row in table_of(text, "Studies") for name in re.findall(r"`(\w+)`", row[0])} == set(STUDIES)
    presets = {name for row in table_of(text, "Settings and presets") for name in re.findall(r"`([\w-]+)`", row[0])}
    assert presets == set(preset_names())


# --- the README, figures, claims --------------------------------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    lines = documents()["README.md"].splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 160


def test_every_table_of_figures_says_when_where_and_how_it_was_measured() -> None:
    text = RESULTS.read_text(encoding="utf-8")
    machines = set(re.findall(r"^\| \*\*(\w+)\*\*", text, re.MULTILINE))
    assert machines == {"epyc", "xeon"}
    for part in re.split(r"^##+ ", text.partition("\n## ")[2], flags=re.MULTILINE):
        title, figures = part.splitlines()[0], re.search(r"\d\.\d|\.\d\d", part)
        if figures is None or title == "Claims" or title.startswith("Studies"):
            continue
        says = re.findall(r"^Measured: (2026-\d\d-\d\d), (.+)", part, re.MULTILINE)
        assert says, f"RESULTS.md, {title}: no line 'Measured: DATE, MACHINE'"
        for _, where in says:
            assert where.startswith((*machines, "a simulation", "without a random part", "2 cores")), f"{title}: {where}"
        assert re.search(r"^    (scalingnote|python) |`scalingnote |benchmarks/", part, re.MULTILINE), f"{title}: no command"


def test_the_table_of_claims_is_what_the_measurements_say() -> None:
    file = RESULTS.with_name("claims.yaml")
    claims = read_claims(file)
    table = render(claims, [measured(claim, file.parent) for claim in claims])
    assert table in RESULTS.read_text(encoding="utf-8"), f"python -m tests.benchmarks.claims {file.relative_to(ROOT)} prints:\n{table}"


def test_the_figures_of_the_claims_stand_in_the_results() -> None:
    text = RESULTS.read_text(encoding="utf-8").replace("+", "")
    for line in RESULTS.with_name("claims.csv").read_text(encoding="utf-8").splitlines()[1:]:
        figure, value, low, high = line.split(",")
        shown = f"{value} [{low} {high}]" if low else value
        assert shown in text or shown.removeprefix("-") in text, f"{figure}: {shown}"
    readme = documents()["README.md"]
    assert ".139 [.070 .202]" not in readme or ".139 [.070 .202]" in text
    for interval in re.findall(r"-?\.\d{3} \[[^\]]+\]", readme):
        assert interval in text, f"README.md names {interval}, which RESULTS.md does not"
