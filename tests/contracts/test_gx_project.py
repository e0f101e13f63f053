"""The project of Great Expectations that `validate --gx-project` writes, as its users open it."""

from __future__ import annotations

from pathlib import Path

import pytest

from components import settings
from components.artifacts import open_artifact
from components.data.validation import load_report
from tests.flows.cli_world import assert_refused, done, scalingnote, write_collection


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A collection with one judgement of a document that is not there."""
    folder = write_collection(tmp_path / "clinic")
    with (folder / "qrels" / "train.tsv").open("a") as handle:
        handle.write("q1\tnowhere\t1\n")
    return folder


def test_the_project_opens_and_its_checkpoint_finds_again_what_the_report_says(home: Path, data: Path, tmp_path: Path) -> None:
    import great_expectations as gx

    project = tmp_path / "project"
    outcome = scalingnote("validate", "--preset", "smoke", "--data", data, "--gx-project", project)
    assert_refused(outcome, 3, "breaks 1 rule", "Data Docs: ")
    report = next(load_report(open_artifact(path.parent)) for path in home.glob("work/validate_data/*/manifest.json"))
    context = gx.get_context(project_root_dir=project, mode="file")
    assert {suite.name for suite in context.suites.all()} == {
        f"{used.name}-{used.version}-{table}".replace(".", "_")
        for used in report.contracts
        for table in {result.table for result in report.results if result.contract == used.name}
    }
    found = context.checkpoints.get("contracts").run()
    failed = {
        (outcome.expectation_config.meta["contract"], outcome.expectation_config.meta["rule"])
        for table in found.run_results.values()
        for outcome in table.results
        if not outcome.success
    }
    assert failed == {(result.contract, result.rule) for result in report.results if not result.passed}
    assert ("judgements", "doc_id.references") in failed and not found.success
    docs = project / "gx" / "uncommitted" / "data_docs" / "local_site"
    assert "nowhere" in "".join(path.read_text() for path in docs.glob("validations/**/*.html"))
    for pages in ("expectations", "validations"):
        shown = "".join(path.read_text() for path in docs.glob(f"{pages}/**/*.html"))
        assert "No test query has the very text of a train query" in shown, f"the contract's own words, in {pages}"
    assert list((project / "gx" / "uncommitted" / "validations").rglob("*.json"))


def test_a_project_is_brought_up_to_date(home: Path, tmp_path: Path) -> None:
    data, project = write_collection(tmp_path / "clinic"), tmp_path / "project"
    first, second = (done("validate", "--preset", "smoke", "--data", data, "--gx-project", project)["gx_project"] for _ in range(2))
    assert first == second and first["failed"]["error"] == 0 and first["suites"] >= 3


def test_a_project_that_was_named_from_the_current_folder_opens_from_any_other(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import great_expectations as gx

    data = write_collection(tmp_path / "clinic")
    monkeypatch.chdir(tmp_path)
    done("validate", "--preset", "smoke", "--data", data, "--gx-project", "project")
    monkeypatch.chdir("/")
    assert gx.get_context(project_root_dir=tmp_path / "project", mode="file").checkpoints.get("contracts").run().run_results


def test_contracts_may_have_names_that_no_file_and_no_regular_expression_can_have(home: Path, tmp_path: Path) -> None:
    """Great Expectations looks its files up by regular expressions: these ended in an unexpected failure, or for want of a folder."""
    data, contracts = write_collection(tmp_path / "clinic"), tmp_path / "contracts"
    contracts.mkdir()
    for file, name in (("documents", "shop/documents"), ("queries", "Queries (v. 2): all+"), ("judgements", "R&D: asked, judged")):
        text = (settings.shipped("data_contracts") / f"{file}.yaml").read_text(encoding="utf-8")
        (contracts / f"{file}.yaml").write_text(text.replace(f"name: {file}\n", f'name: "{name}"\n', 1), encoding="utf-8")
    words = ("validate", "--preset", "smoke", "--data", data, "--set", f"data.contracts={contracts}", "--gx-project", tmp_path / "project")
    assert done(*words)["gx_project"] == done(*words)["gx_project"]
    names = sorted(path.stem for path in (tmp_path / "project" / "tables").iterdir())
    assert names[-1].startswith("shop_documents-") and "R&D: asked, judged-judgements" in names and len(names) >= 3


def test_actions_that_a_team_gave_the_checkpoint_stay(home: Path, tmp_path: Path) -> None:
    import great_expectations as gx
    from great_expectations.checkpoint import SlackNotificationAction

    data, project = write_collection(tmp_path / "clinic"), tmp_path / "project"
    done("validate", "--preset", "smoke", "--data", data, "--gx-project", project)
    checkpoints = gx.get_context(project_root_dir=project, mode="file").checkpoints
    checkpoint = checkpoints.get("contracts")
    checkpoint.actions.append(SlackNotificationAction(name="tell us", slack_webhook="http://127.0.0.1:9/", notify_on="failure"))
    checkpoint.save()
    done("validate", "--preset", "smoke", "--data", data, "--gx-project", project)
    kept = gx.get_context(project_root_dir=project, mode="file").checkpoints.get("contracts")
    assert [action.name for action in kept.actions] == ["data docs", "tell us"]


def test_a_folder_that_cannot_hold_a_project_is_refused_in_a_sentence(home: Path, tmp_path: Path) -> None:
    data = write_collection(tmp_path / "clinic")
    file, broken = tmp_path / "file", tmp_path / "broken"
    file.write_text("x")
    (broken / "gx").mkdir(parents=True)
    (broken / "gx" / "great_expectations.yml").write_text("config_version: [")
    for place in (file, broken):
        assert_refused(scalingnote("validate", "--preset", "smoke", "--data", data, "--gx-project", place), 2, "--gx-project", "new folder")
