"""How a step runs: what its key holds, what is removed from its folder, how often it is hashed, and why it was made again."""

from __future__ import annotations

import ast
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import components.artifacts
import flows.runner
from components import settings
from components.artifacts import Artifact, open_artifact, seal
from components.code import ROOT, Reached
from components.errors import ArtifactError, ConfigError, DataError, ResourceError
from components.tracking.live import marked_as_running
from components.tracking.store import TrackingError
from flows import why as reasons
from flows.cli.main import main
from flows.runner import Done, Removed, Step, _made, may_pass, remove_unused
from flows.why import Reason, at_start, named_settings, render_why, why

Reaches = Callable[..., None]


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / "home"))


def step(name: str = "train_towers", inputs: dict[str, Artifact] | None = None, **fields: Any) -> Step:
    """A step that writes its settings into a file."""

    def make(folder: Path) -> Artifact:
        (folder / "result.txt").write_text(json.dumps(config))
        return seal(folder, "any", counts={"rows": 1})

    config = fields.pop("config", {"steps": 80})
    return Step(name, make, inputs or {}, config, **fields)


def make(one: Step, retriever: str = "retriever") -> Done:
    return _made(one, retriever, "run")


@pytest.fixture
def reaches(monkeypatch: pytest.MonkeyPatch) -> Reaches:
    """Let every step reach other code and libraries than it does."""

    def set_to(code: dict[str, str] | None = None, libraries: dict[str, str] | None = None) -> None:
        monkeypatch.setattr(flows.runner, "reached_by", lambda function: Reached(code or {}, libraries or {}))

    return set_to


def started(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if "started" in line]


def test_every_part_of_a_key_changes_the_folder(reaches: Reaches) -> None:
    reaches({"components/a.py": "1"}, {"torch": "1"})
    first = step()
    folders = {first.folder, step(config={"steps": 81}).folder, step(version=2).folder, step(name="other").folder}
    folders.add(step(inputs={"dataset": make(step(name="snapshot_data")).artifact}).folder)
    reaches({"components/a.py": "2"}, {"torch": "1"})
    folders.add(step().folder)
    reaches({"components/a.py": "1"}, {"torch": "2"})
    folders.add(step().folder)
    assert len(folders) == 7
    reaches({"components/a.py": "1"}, {"torch": "1"})
    assert step().folder == first.folder == step(resumes=("checkpoint.pt",)).folder


def test_a_stray_file_in_a_finished_folder_is_removed_and_nothing_is_made_again(capsys: pytest.CaptureFixture[str]) -> None:
    first = make(step())
    folder = step().folder
    (folder / "notes.txt").write_text("mine")
    (folder / "deeper").mkdir()
    (folder / "deeper" / "more [1].txt").write_text("mine")
    (folder / "link").symlink_to("/etc")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xff")).write_text("no UTF-8")
    (folder / ".hidden").write_text("stays")
    again = make(step())
    assert again.cached and again.artifact.digest == first.artifact.digest
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [".hidden", "manifest.json", "result.txt"]
    assert Path("/etc").is_dir()
    assert "[train_towers] removed notes.txt, which is none of its files" in capsys.readouterr().out


def test_a_stray_file_beside_a_killed_attempt_does_not_change_the_result() -> None:
    clean = make(step())
    folder = step().folder
    (folder / "manifest.json").unlink()
    (folder / "notes.txt").write_text("mine")
    assert make(step()).artifact.digest == clean.artifact.digest and not (folder / "notes.txt").exists()


def test_an_attempt_finds_what_an_earlier_one_left_to_go_on_with_and_nothing_else() -> None:
    found: list[str] = []

    def make_it(folder: Path) -> Artifact:
        found[:] = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return seal(folder, "any")

    one = Step("probe", make_it, resumes=("checkpoint.pt", "shard-*.json"))
    one.folder.mkdir(parents=True)
    (one.folder / "query_tower").mkdir()
    half_written = (".12-ab.tmp", "query_tower/.vectors-00001.parquet.7.tmp")
    for name in ("checkpoint.pt", "shard-00001.json", "notes.txt", "manifest.json", "query_tower/weights", ".tmp", *half_written):
        (one.folder / name).write_text("x")
    assert not make(one).cached and found == [".tmp", "checkpoint.pt", "shard-00001.json"]


def test_a_finished_step_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    make(step())
    hashed: list[str] = []
    real = components.artifacts.file_sha256
    monkeypatch.setattr(components.artifacts, "file_sha256", lambda path: hashed.append(path.name) or real(path))
    assert make(step()).cached and hashed == ["result.txt"]


def test_a_first_result_has_no_reason(capsys: pytest.CaptureFixture[str]) -> None:
    make(step())
    assert started(capsys) == ["[train_towers] started"]
    (account,) = why("retriever", "train_towers")["steps"]
    assert (account["state"], account["reasons"]) == ("made", []) and "no earlier result" in account["text"]


def test_a_changed_setting_is_named_with_its_section_and_both_values(capsys: pytest.CaptureFixture[str]) -> None:
    make(step(config={"steps": 80, "lora_rank": 4, "matryoshka": (8, 16)}))
    make(step(config={"steps": 100, "lora_rank": 4, "matryoshka": (8, 16)}))
    assert started(capsys)[-1] == "[train_towers] started: towers.steps changed from 80 to 100"
    (account,) = why("retriever", "train_towers")["steps"]
    assert account["text"].endswith(" UTC because towers.steps changed from 80 to 100.")
    assert [reason["subject"] for reason in account["reasons"]] == ["towers.steps"]


def test_a_section_that_is_gone_is_one_change_and_not_one_of_each_of_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """A teacher without its companion was said to have another pooling, another share and more that nobody had changed."""
    beside = {"base_model": "tiny-encoder", "share": 0.5, "pooling": "mean"}
    for steps, companion in enumerate((beside, None, {**beside, "share": 0.25}, beside)):
        make(step(config={"steps": steps, "companion": companion}))
    assert [line.removeprefix("[train_towers] started: towers.steps changed from ") for line in started(capsys)[1:]] == [
        "0 to 1; towers.companion changed from tiny-encoder to null",
        "1 to 2; towers.companion changed from null to tiny-encoder",
        "2 to 3; towers.companion.share changed from 0.25 to 0.5",
    ]


def test_code_libraries_and_version_are_named(reaches: Reaches, capsys: pytest.CaptureFixture[str]) -> None:
    reaches({"components/a.py": "1", "components/old.py": "1", "components/b.py": "1"}, {"torch": "2.12", "faiss-cpu": "1.15"})
    make(step())
    reaches({"components/a.py": "2", "components/new.py": "1", "components/b.py": "1"}, {"torch": "2.13", "faiss-cpu": "1.15"})
    make(step(version=2))
    (line,) = started(capsys)[1:]
    begins = "[train_towers] started: the step's version changed from 1 to 2; components/a.py changed; components/new.py is new"
    assert line == f"{begins}; and 2 more (scalingnote status --why train_towers)"
    text = why("retriever", "train_towers")["steps"][0]["text"]
    assert "components/old.py is no longer used; torch changed from 2.12 to 2.13." in text and "b.py" not in text


def chain(steps: int, epochs: int = 1) -> Step:
    """A student whose input comes from towers, as far as they are made."""
    towers = make(step(config={"steps": steps})).artifact
    inputs = {"query_tower": open_artifact(towers.path)}
    return step("distil_query_tower", inputs, config={"epochs": epochs, "refine_epochs": 1, "cycles": 1})


def test_an_input_is_followed_to_the_setting_that_changed_it() -> None:
    make(chain(80))
    make(chain(100, epochs=2))
    (account,) = why("retriever", "distil_query_tower")["steps"]
    assert account["text"].endswith("because distillation.epochs changed from 1 to 2; towers.steps changed from 80 to 100.")
    assert [(reason["subject"], reason["step"]) for reason in account["reasons"]] == [
        ("distillation.epochs", ""), ("towers.steps", "train_towers"),
    ]  # fmt: skip


def test_an_input_that_was_made_again_and_came_out_alike_is_no_reason(reaches: Reaches) -> None:
    reaches({"components/a.py": "1"})
    make(chain(80))
    reaches({"components/a.py": "2"})
    towers = {"query_tower": open_artifact(make(step(config={"steps": 80})).artifact.path)}
    reaches({"components/a.py": "1"})
    student = {"epochs": 1, "refine_epochs": 1, "cycles": 1}
    assert make(step("distil_query_tower", towers, config=student)).cached
    make(step("distil_query_tower", towers, config={**student, "epochs": 3}))
    text = why("retriever", "distil_query_tower")["steps"][0]["text"]
    assert text.endswith("because distillation.epochs changed from 1 to 3.")


def test_what_earlier_steps_gave_is_not_told_beside_what_a_person_changed(capsys: pytest.CaptureFixture[str]) -> None:
    for version, steps in ((1, 80), (2, 100)):
        make(step("write_candidate", config={"pins": {"index": version}, "config": {"towers": {"steps": steps}}}))
    assert started(capsys)[-1] == "[write_candidate] started: towers.steps changed from 80 to 100"
    (account,) = why("retriever", "write_candidate")["steps"]
    assert {reason["subject"] for reason in account["reasons"]} == {"towers.steps", "pins.index"} and "pins" not in account["text"]
    make(step("write_candidate", config={"pins": {"index": 3}, "config": {"towers": {"steps": 100}}}))
    assert started(capsys)[-1] == "[write_candidate] started: pins.index changed from 2 to 3"


def test_an_input_whose_record_is_gone_is_named_itself() -> None:
    make(chain(80))
    two = chain(100)
    for record in two.folder.parent.parent.glob(f"train_towers/*{reasons.SUFFIX}"):
        record.unlink()
    make(two)
    assert why("retriever", "distil_query_tower")["steps"][0]["text"].endswith("because its input query_tower changed.")


def test_inputs_that_come_and_go_are_named() -> None:
    dataset, targets = make(step("snapshot_data")).artifact, make(step("encode_teacher_queries")).artifact
    make(step("build_index", {"dataset": dataset}))
    make(step("build_index", {"targets": targets}))
    text = why("retriever", "build_index")["steps"][0]["text"]
    assert text.endswith("because its input targets is new; its input dataset is no longer used.")


def test_a_damaged_result_is_made_again_for_that_reason(capsys: pytest.CaptureFixture[str]) -> None:
    make(step())
    (step().folder / "result.txt").write_text("other")
    assert not make(step()).cached
    assert "its files were changed or removed (the file result.txt was changed (expected sha256" in started(capsys)[-1]
    make(step())
    (step().folder / "result.txt").unlink()
    make(step())
    assert "(the file result.txt is missing)" in why("retriever", "train_towers")["steps"][0]["text"]


def test_a_result_that_a_wrong_clock_dated_ahead_is_not_the_newest_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(reasons, "_now", lambda: "2999-01-01T00:00:00.000000+00:00")
        make(step(config={"steps": 10}))
    for steps in (80, 100):
        make(step(config={"steps": steps}))
    (account,) = why("retriever", "train_towers")["steps"]
    assert account["at"] < "2999" and "steps changed from 80 to 100" in account["text"]


def test_two_retrievers_have_their_own_reasons_and_share_results() -> None:
    make(step(config={"steps": 80}), "one")
    make(step(config={"steps": 100}), "two")
    assert "no earlier result" in why("two", "train_towers")["steps"][0]["text"]
    make(step(config={"steps": 100}), "one")
    (account,) = why("one", "train_towers")["steps"]
    assert "The last run took a result of " in account["text"] and account["state"] == "made"
    make(step(config={"steps": 120}), "one")
    assert "changed from 100 to 120" in why("one", "train_towers")["steps"][0]["text"]
    make(step(config={"steps": 120}), "three")
    found = why("three", "train_towers")["steps"][0]
    assert found["state"] == "found" and "found finished" in found["text"] and "for 'one'" in found["text"]


def test_a_step_that_was_killed_is_begun_and_keeps_its_reason() -> None:
    make(step(config={"steps": 80}))

    def dies(folder: Path) -> Artifact:
        raise OSError("gone")

    killed = replace(step(config={"steps": 100}), make=dies)
    with pytest.raises(OSError, match="gone"):
        make(killed)
    (account,) = why("retriever", "train_towers")["steps"]
    assert account["state"] == "begun" and "steps changed from 80 to 100, and is not finished: the next run goes on" in account["text"]


def test_a_result_that_was_removed_is_made_again_for_that_reason(capsys: pytest.CaptureFixture[str]) -> None:
    make(step(config={"steps": 80}))
    make(step(config={"steps": 100}))
    shutil.rmtree(step(config={"steps": 100}).folder)
    (account,) = why("retriever", "train_towers")["steps"]
    assert account["state"] == "removed" and "its result is not there any more, so the next run makes it again" in account["text"]
    make(step(config={"steps": 100}))
    assert started(capsys)[-1] == "[train_towers] started: its files were changed or removed (the result is not there any more)"
    assert why("retriever", "train_towers")["steps"][0]["state"] == "made"


def test_results_of_an_earlier_version_without_records_are_no_reason_to_fail(capsys: pytest.CaptureFixture[str]) -> None:
    old = step().folder.parent / "0123456789abcdef01234567"
    old.mkdir(parents=True)
    seal(old, "any")
    make(step())
    assert started(capsys) == ["[train_towers] started"]


BROKEN = ["", "[]", "{}", '{"schema_version": 99}', "\udcff", '{"parts": {}, "begun": 3, "uses": {}}']


@pytest.mark.parametrize("content", BROKEN)
def test_a_record_that_cannot_be_read_is_left_out_and_named(content: str) -> None:
    make(step(config={"steps": 80}))
    record = next(step().folder.parent.glob(f"*{reasons.SUFFIX}"))
    record.write_bytes(content.encode(errors="surrogateescape"))
    make(step(config={"steps": 100}))
    assert make(step(config={"steps": 80})).cached
    answer = why("retriever", "train_towers")
    assert answer["unreadable"] == [str(record)] and "no earlier result" in answer["steps"][0]["text"]
    assert f"{record} cannot be read and was left out." in render_why(answer)


def test_a_record_with_any_part_missing_or_wrong_is_refused_in_words() -> None:
    make(step(config={"steps": 80}))
    make(step(config={"steps": 100}))
    path = next(path for path in step().folder.parent.glob(f"*{reasons.SUFFIX}") if '"before"' in path.read_text())
    whole = json.loads(path.read_text())
    broken: list[Any] = [{**whole, name: value} for name in ("parts", "begun", "uses") for value in (None, [], 3, "x", {"a": 1})]
    broken += [{**whole, "parts": {**whole["parts"], name: 3}} for name in whole["parts"]]
    broken += [{**whole, "begun": {**whole["begun"], name: 3}} for name in ("at", "retriever", "flow_run", "reasons")]
    wrong: list[Any] = [{}, {"digest": 3}, {"digest": "a", "step": []}, 3]
    broken += [{**whole, "parts": {**whole["parts"], "inputs": {"dataset": value}}} for value in wrong]
    broken += [{**whole, "begun": {**whole["begun"], "reasons": [{"kind": 1, "unknown": 2}]}}]
    for value in broken:
        path.write_text(json.dumps(value))
        with pytest.raises(ArtifactError, match=r"Remove it; nothing but status --why needs it|is not valid JSON|schema version"):
            reasons._read(path)


def test_an_unknown_step_is_refused_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="did you mean 'train_towers'"):
        why("retriever", "train_tower")
    assert main(["status", "--why", "nonsense"]) == 2
    said = capsys.readouterr().err
    assert "Unknown step 'nonsense'" in said and all(name in said for name in reasons.STEPS)


def test_status_says_of_all_steps_or_of_one_as_text_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--why"]) == 0
    assert capsys.readouterr().out == "No step has run for the retriever 'retriever' yet.\n"
    assert main(["status", "--why", "evaluate"]) == 0
    assert capsys.readouterr().out == "evaluate has not run for the retriever 'retriever' yet.\n"
    make(step())
    make(step("study_scores"))
    capsys.readouterr()
    assert main(["status", "--why", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [account["step"] for account in answer["steps"]] == ["train_towers", "study_scores"]
    assert main(["status", "--why", "--name", "other"]) == 0
    assert capsys.readouterr().out.endswith("for the retriever 'other' yet.\nSteps have run for: retriever (--name).\n")
    assert main(["status", "--why", "study_scores"]) == 0
    assert capsys.readouterr().out.startswith("study_scores was made on ")


def test_settings_have_the_names_that_a_configuration_gives_them() -> None:
    assert named_settings({"steps": 1, "lora_rank": 2, "seed": 3}) == {"towers.steps": 1, "towers.lora_rank": 2, "towers.seed": 3}
    assert named_settings({"tokens_per_batch": 1, "shard_size": 2}) == {"encoding.tokens_per_batch": 1, "encoding.shard_size": 2}
    evaluation = {"split": "test", "depth": 100, "student": "x", "form": "static"}
    assert set(named_settings(evaluation)) == {"evaluation.split", "evaluation.depth", "distillation.student", "distillation.form"}
    assert named_settings({"release_type": "full", "config": {"towers": {"steps": 1}}}) == {"release_type": "full", "towers.steps": 1}
    assert named_settings({"source": "x", "seed": 1, "source_digest": "d"}) == {"data.source": "x", "data.seed": 1, "source_digest": "d"}
    assert named_settings({"seed": 3}) == {"seed": 3} and named_settings({}) == {}


def test_the_steps_that_are_known_are_those_of_the_flows() -> None:
    named = set()
    for path in (ROOT / "flows").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Step":
                assert isinstance(node.args[0], ast.Constant)
                named.add(node.args[0].value)
    assert set(reasons.STEPS) == named


def test_a_step_that_is_asked_for_again_is_made_from_the_beginning_though_it_is_finished(capsys: pytest.CaptureFixture[str]) -> None:
    found: list[list[str]] = []

    def make_it(folder: Path) -> Artifact:
        found.append(sorted(path.name for path in folder.iterdir() if path.is_file()))
        return seal(folder, "any")

    one = Step("evaluate", make_it, resumes=("checkpoint.pt",))
    first = make(one)
    (one.folder / "checkpoint.pt").write_text("half")
    again = _made(one, "retriever", "run", again=True)
    assert not again.cached and found == [[], []] and again.artifact.digest == first.artifact.digest
    assert started(capsys) == ["[evaluate] started", "[evaluate] started: it was asked for again"]
    assert why("retriever", "evaluate")["steps"][0]["text"].endswith("because it was asked for again.")
    assert make(one).cached


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ConnectionRefusedError("refused"), True),
        (TimeoutError("silent"), True),
        (OSError(28, "No space left on device"), False),
        (MemoryError(), False),
        (ValueError("a bug"), False),
        (DataError("wrong data"), False),
        (ConfigError("wrong setting"), False),
        (ResourceError("disk full"), False),
        (ArtifactError("damaged"), False),
    ],
)
def test_only_what_may_pass_by_itself_is_tried_again(error: Exception, passes: bool) -> None:
    assert may_pass(error) is passes


@pytest.mark.parametrize(("kind", "passes"), [(TrackingError, True), (ArtifactError, True), (DataError, False), (ResourceError, False)])
def test_the_cause_says_whether_a_failure_may_pass_unless_a_person_has_to_mend_it(kind: type[Exception], passes: bool) -> None:
    error = kind("Could not record the step")
    error.__cause__ = RuntimeError("MLflow")
    error.__cause__.__cause__ = ConnectionResetError("reset by peer")
    assert may_pass(error) is passes


def test_what_earlier_steps_gave_is_no_reason_beside_what_a_person_changed() -> None:
    """Why a candidate was compared with no champion was told as a setting that had changed."""
    chosen = Reason("setting", "towers.seed", 1, 2)
    given = [Reason("setting", name, "before", "after") for name in ("uncompared", "baseline_version", "pins.index.version")]
    assert at_start("write_candidate", [*given, chosen]) == chosen.words
    assert "uncompared" in at_start("write_candidate", given)  # where there is nothing else to tell


def aged(one: Step, days: float) -> Step:
    """The step as if it had been used for the last time so many days ago."""
    record = one.folder.with_name(f"{one.folder.name}.key.json")
    os.utime(record, (past := time.time() - 86_400 * days, past))
    return one


def pruned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["prune-work", "--json", *arguments]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_results_that_nothing_has_used_for_long_are_removed_and_made_again_when_they_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    old, young, newest = (step(config={"steps": number}) for number in (1, 2, 3))
    data = step("snapshot_data")
    for one in (data, old, young, newest):
        make(one)
    begun = step(config={"steps": 4})
    begun.folder.mkdir()
    reasons.keep_begin(begun.folder, begun.parts, "retriever", "run", "")
    (begun.folder / "checkpoint.pt").write_bytes(b"1234")
    for one, days in ((data, 400), (old, 31), (young, 29), (newest, 400), (begun, 31)):
        aged(one, days)
    told = pruned(capsys, "--dry-run")
    assert {each["key"] for each in told["removed"]} == {old.folder.name, begun.folder.name} and old.folder.is_dir()
    assert told["bytes"] == 4 + sum(path.stat().st_size for path in old.folder.iterdir())
    assert pruned(capsys) == {**told, "dry_run": False}
    kept = [one.folder.is_dir() for one in (data, old, young, newest, begun)]
    assert kept == [True, False, True, True, False], "the data and what was used last stay, however old"
    assert pruned(capsys)["removed"] == []
    assert not make(old).cached and make(newest).cached


def test_what_another_retriever_uses_or_a_flow_holds_is_not_removed(capsys: pytest.CaptureFixture[str]) -> None:
    shared, own, last = (step(config={"steps": number}) for number in (1, 2, 3))
    make(shared, "other"), make(step(config={"steps": 4}), "other")
    for one in (shared, own, last):
        make(one)
    for one in (shared, own):
        aged(one, 50)
    assert [each["key"] for each in pruned(capsys, "--name", "retriever", "--dry-run")["removed"]] == [own.folder.name]
    with own.folder.with_suffix(".lock").open("w") as handle:
        assert settings.locked(handle, wait=False)
        assert [each["key"] for each in pruned(capsys, "--days", "40")["removed"]] == [shared.folder.name]
    assert own.folder.is_dir() and pruned(capsys, "--days", "51")["removed"] == []


def test_a_file_that_two_results_hold_is_free_with_the_second(capsys: pytest.CaptureFixture[str]) -> None:
    towers, joined = step(config={"steps": 1}), step("join_companion")
    for one in (towers, joined, step(config={"steps": 2}), step("join_companion", config={"steps": 2})):
        make(one)
    (towers.folder / "weights").write_bytes(bytes(10**6))
    os.link(towers.folder / "weights", joined.folder / "weights")
    aged(towers, 50)
    assert pruned(capsys, "--dry-run")["bytes"] < 10**5
    aged(joined, 60)
    assert 10**6 < pruned(capsys)["bytes"] < 1.1 * 10**6
    assert main(["prune-work"]) == 0 and "has lain unused for 30 days" in capsys.readouterr().out
    assert main(["prune-work", "--days", "0"]) == 2 and "--days" in capsys.readouterr().err


def test_what_a_flow_has_used_that_still_runs_and_folders_behind_links_stay(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before, taken, linked, last = (step(config={"steps": number}) for number in (1, 2, 3, 4))
    for one, days in ((before, 9), (taken, 5), (linked, 9), (last, 9)):
        make(one)
        aged(one, days)
    linked.folder.rename(tmp_path / "elsewhere")
    linked.folder.symlink_to(tmp_path / "elsewhere")
    with marked_as_running("long", {}) as mark:
        begun = time.time() - 86_400 * 6
        os.utime(settings.work_folder() / "running" / "long.json", (begun, begun))
        assert [each["key"] for each in pruned(capsys, "--days", "1")["removed"]] == [before.folder.name]
        mark.remove()
    assert [each["key"] for each in pruned(capsys, "--days", "1")["removed"]] == [taken.folder.name]
    assert linked.folder.is_dir()


def test_of_two_removals_at_once_the_second_waits_and_counts_what_is_left() -> None:
    """Schedules of two workers come at the same minute: one of them removed what was gone, and ended with an error."""
    old, last = step(config={"steps": 1}), step(config={"steps": 2})
    make(old), make(last)
    aged(old, 50)
    (settings.home() / "locks").mkdir(exist_ok=True)
    found: list[list[Removed]] = []
    second = threading.Thread(target=lambda: found.append(remove_unused(30)))
    with (settings.home() / "locks" / "prune-work.lock").open("a") as first:
        assert settings.locked(first)
        second.start()
        second.join(0.5)
        assert second.is_alive() and old.folder.is_dir()
        shutil.rmtree(old.folder)
    second.join(30)
    assert found == [[]]


def test_a_home_in_which_no_lock_for_removals_can_be_made_is_looked_through_all_the_same() -> None:
    """A home that is only read ended `prune-work --dry-run` with an error also where nothing was to be removed."""
    settings.home().mkdir(exist_ok=True)
    (settings.home() / "locks").write_text("in the place of the folder")
    assert remove_unused(30, dry_run=True) == []


def test_a_result_that_is_removed_while_a_flow_waits_for_it_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    one = step(config={"steps": 1})
    make(one)

    def locked(_: object, wait: bool = True) -> bool:
        if wait:
            shutil.rmtree(one.folder)
        return wait

    monkeypatch.setattr(settings, "locked", locked)
    assert not make(one).cached and one.folder.is_dir()


def test_every_step_that_trains_or_encodes_waits_for_the_card_and_no_other() -> None:
    others = {"snapshot_data", "validate_data", "build_index", "refresh_index", "evaluate", "compare_with_champion", "write_candidate"}
    assert set(reasons.STEPS) - others == flows.runner.ON_CARD
