"""The frame of the studies without training: names, cells, collapsed ones, timings, configurations that each cell asks for."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.artifacts import Artifact, seal
from components.errors import CollapseError, ConfigError
from components.evaluation.speed import measure_speeds
from components.studies.scores import Scores
from flows.config import load_settings
from flows.runner import Step, _made, make_step
from flows.studies import baselines, cost_benefit, distillation_ablation, framework, retention, robustness, tower_ablation, worth
from flows.studies.context import Context, StudySettings
from flows.studies.framework import Cell, Ran, about_seeds, require, run_cells, whole_trainings, write_report
from flows.studies.registry import STUDIES, load_study, require_study
from flows.studies.retention import layers_left_out, student_forms


class NoRecorder:
    """A recorder of which nothing is asked but how much was made."""

    made = 0
    timings: dict[str, Any] = {}  # noqa: RUF012


class Unchecked(Context):
    """A context that needs no data."""

    def check(self, config: StudySettings) -> None:
        assert isinstance(config, StudySettings)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("flows.studies.retention.layers_of", lambda _: 2)
    monkeypatch.setattr(distillation_ablation, "layers_of", lambda _: 2)


def smoke(**study: Any) -> StudySettings:
    return load_settings(StudySettings, "smoke", overrides={"study": study} if study else None)


def context(*wanted: str, **study: Any) -> Context:
    return Unchecked(smoke(**study), NoRecorder(), wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(STUDIES))
def test_every_study_of_the_list_has_its_functions(name: str) -> None:
    study = load_study(name)
    assert all(callable(getattr(study, part)) for part in ("cells", "tabulate", "plot", "notes"))


def test_an_unknown_study_is_refused_with_the_list() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'retention'.*robustness"):
        require_study("retentoin")


def test_wrong_study_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"study\.layer: unknown field; did you mean 'study\.layers'"):
        smoke(layer=[1])
    with pytest.raises(ConfigError, match=r"study\.layers: got 0"):
        smoke(layers=[0])
    with pytest.raises(ConfigError, match=r"study\.noise"):
        smoke(noise={"typos": [2]})


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("study", {"small_learning_rates": [math.nan]}),
        ("study", {"small_learning_rates": [-0.001]}),
        ("study", {"scaling_shares": [math.inf]}),
        ("evaluation", {"slices": [{"name": "length", "kind": "query_length", "edges": [math.nan]}]}),
        ("evaluation", {"slices": [{"name": "length", "kind": "query_length", "edges": [1, math.inf]}]}),
        ("distillation", {"min_effective_rank": math.inf}),
        ("towers", {"endpoint": {"max_cost": math.inf}}),
        ("index", {"max_distance": math.inf}),
    ],
)
def test_no_setting_takes_a_number_that_is_none(section: str, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"{section}\.{next(iter(values))}"):
        context().changed(**{section: values})


def test_a_currency_is_a_word_that_breaks_no_table() -> None:
    assert smoke(currency="€").study.currency == "€"
    for wrong in ("a|b", "US\nD", "\x1b[8m", "", "nine chars"):
        with pytest.raises(ConfigError, match=r"study\.currency"):
            smoke(currency=wrong)


def test_each_rate_of_a_noise_is_a_condition_of_its_own() -> None:
    names = [cell.name for cell in robustness.cells(context(seeds=[1], noise={"typos": [0.101, 0.104, 0.004, 0.3]}))]
    conditions = dict.fromkeys(name.split("@")[0] for name in names)
    assert list(conditions) == ["clean", "typos 10.1%", "typos 10.4%", "typos 0.4%", "typos 30%"]


def test_costs_are_those_of_the_first_training_that_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = context(seeds=[1, 2, 3])

    def student(config: StudySettings) -> None:
        if config.distillation.seed == 1:
            raise CollapseError("all alike")

    for part in ("towers", "index"):
        monkeypatch.setattr(asked, part, lambda config: (None, None))
    monkeypatch.setattr(asked, "student", student)
    trainings = list(whole_trainings(asked).values())
    assert cost_benefit._first_whole(asked, ["bm25", "student"], trainings).distillation.seed == 2
    assert cost_benefit._first_whole(asked, ["bm25", "teacher"], trainings).distillation.seed == 1


def test_the_note_on_the_filter_of_negatives_shows_no_interval_of_a_single_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {("test", metric): np.array([0.5, 0.25, 1.0]) for metric in ("recall@50", "ndcg@10")}
    runs = [Scores(values, {"test": np.zeros(3, np.int64)})] * 2
    monkeypatch.setattr(tower_ablation, "variants_of", lambda _: {tower_ablation.FILTERED: runs, tower_ablation.UNFILTERED: runs})
    note = tower_ablation._filter_note({}, smoke())[0]
    assert note.endswith("without it: R@50 +0.000 [no interval], nDCG@10 +0.000 [no interval].")


def test_cells_are_chosen_in_the_order_of_the_study() -> None:
    assert context("b", "a").chosen(["a", "b", "c"]) == ["a", "b"]
    assert context().chosen(["a", "b"]) == ["a", "b"]
    with pytest.raises(ConfigError, match="Unknown cell 'bb'; did you mean 'b'"):
        context("bb").chosen(["a", "b"])


def test_a_change_is_checked_like_a_file() -> None:
    assert context().changed(distillation={"epochs": 7}).distillation.epochs == 7
    with pytest.raises(ConfigError, match=r"distillation\.epochs: got 0"):
        context().changed(distillation={"epochs": 0})


def test_student_forms_are_those_that_the_encoder_has() -> None:
    forms = student_forms(context())
    assert {name: (c.distillation.form, c.distillation.layers) for name, c in forms.items()} == {
        "layers-1": ("transformer", 1),
        "layers-2": ("transformer", None),
        "static": ("static", None),
    }
    assert layers_left_out(smoke()) == [4, 6]
    with pytest.raises(ConfigError, match="'tiny-encoder' has 2 layers"):
        student_forms(context(layers=[9], static=False))


@pytest.mark.parametrize("layers", [1, 2, 6, 12])
def test_every_ablation_is_a_valid_configuration(layers: int) -> None:
    found = distillation_ablation.changes(smoke(), layers)
    assert found["base"] == {} and ("first-layers" in found) == (layers > 1)
    for fields in found.values():
        context().changed(distillation=fields)


def test_no_student_is_cut_from_a_teacher_that_has_no_layers_here() -> None:
    """All of the study was refused for this cell, with words about a student that nobody had set."""
    found = distillation_ablation.changes(load_settings(StudySettings, "endpoint"), 6)
    assert "from-the-teacher" not in found and "first-layers" in found
    assert "from-the-teacher" in distillation_ablation.changes(smoke(), 6)


def test_ablation_trains_each_cell_with_each_seed_beside_teacher_and_base() -> None:
    cells = distillation_ablation.cells(context("mse-only", seeds=[1, 2]))
    assert [cell.name for cell in cells] == ["teacher", "base@1", "base@2", "mse-only@1", "mse-only@2"]


def test_a_cell_that_the_configuration_does_not_allow_is_named_with_those_that_are_left() -> None:
    sharded = smoke().model_copy(update={"towers": smoke().towers.model_copy(update={"training": "full", "sharding": "fsdp"})})
    for wanted, told in (((), "leave it out: --cells in-batch-only,mined,"), (("merged-3",), "name another cell")):
        with pytest.raises(ConfigError, match=f"The cell 'merged-3' cannot be trained with this configuration; {told}") as refused:
            tower_ablation.cells(Unchecked(sharded, NoRecorder(), wanted))  # type: ignore[arg-type]
        assert "merge_last" in str(refused.value)
    never = sharded.model_copy(update={"towers": sharded.towers.model_copy(update={"steps": 0})})
    with pytest.raises(ConfigError, match="as the study changes it") as refused:
        tower_ablation.cells(Unchecked(never, NoRecorder()))  # type: ignore[arg-type]
    assert "The cell" not in str(refused.value)  # the base itself is wrong


@pytest.mark.parametrize("mining", [{}, {"hard_negatives": 1, "positive_share": None}])
def test_every_change_of_the_towers_is_a_valid_configuration(mining: dict[str, Any]) -> None:
    config = context().changed(towers=mining)
    found = tower_ablation.changes(config)
    settings = {name: context().changed(towers={**mining, **fields}).towers for name, fields in found.items()}
    assert settings["base"] == config.towers and settings["in-batch-only"].hard_negatives == 0
    mined, unfiltered = settings["mined"], settings["mined-unfiltered"]
    assert mined.hard_negatives == (mining.get("hard_negatives") or tower_ablation.HARD_NEGATIVES)
    assert mined.positive_share == tower_ablation.POSITIVE_SHARE and unfiltered.positive_share is None
    assert mined.model_copy(update={"positive_share": None}) == unfiltered
    assert mined.mining_start < config.towers.steps or mining


@pytest.mark.parametrize(
    ("section", "changes", "again"),
    [
        ("distillation", {"mse_weight": 3.0, "epochs": 9, "refine_temperature": 0.5, "noised": 7, "schedule": "cyclic"}, False),
        ("towers", {"steps": 77, "endpoint": {"timeout": 7.0}}, False),
        ("distillation", {"titles": 5}, True),
        ("distillation", {"train_embeddings": True}, True),
        ("towers", {"batch_size": 8}, True),
    ],
)
def test_a_baseline_is_trained_again_for_what_its_own_training_reads_and_for_nothing_else(
    section: str, changes: dict[str, Any], again: bool
) -> None:
    asked = context(pair_passes=2.0)
    asked.__dict__["dataset"] = Artifact(kind="dataset", path=Path("/nowhere"), digest="a" * 64)
    for name in (baselines.SYMMETRIC, baselines.END_TO_END):
        own, other = (
            baselines._training_step(asked, name, config, "", 1e-3).folder for config in (asked.config, asked.changed(**{section: changes}))
        )
        assert (own != other) is again, name


def test_a_baseline_is_trained_again_where_other_weights_lie_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for name, section, field in ((baselines.SYMMETRIC, "study", "small_encoder"), (baselines.END_TO_END, "towers", "base_model")):
        found = []
        for weights in (b"first", b"other"):
            (tmp_path / "model.safetensors").write_bytes(weights)
            config = load_settings(StudySettings, "smoke", overrides={section: {field: str(tmp_path)}})
            asked = Unchecked(config, NoRecorder())  # type: ignore[arg-type]
            asked.__dict__["dataset"] = Artifact(kind="dataset", path=Path("/nowhere"), digest="a" * 64)
            found.append(baselines._training_step(asked, name, config, "", 1e-3).folder)
        assert found[0] != found[1], name


def test_the_encoder_of_the_baselines_is_taken_at_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.towers.hub.commit_of", lambda name, revision: {None: "a" * 40, "v2": "b" * 40}[revision])
    for revision, commit in ((None, "a" * 40), ("v2", "b" * 40)):
        asked = context(small_encoder="acme/embed", small_revision=revision)
        asked.pin_small_encoder()
        assert asked.config.study.small_revision == commit
        assert {form.revision for form in baselines.small_encoders(asked.config).values()} == {commit}
    with pytest.raises(ConfigError, match=r"small_revision is that of small_encoder, which is empty"):
        smoke(small_revision="v2")


@pytest.mark.parametrize("student", ["teacher", "decoder-64x6"])
def test_baselines_of_another_encoder_lack_the_form_of_a_student_of_more_layers_and_say_so(student: str) -> None:
    for layers, names in ((1, ["", "-cut"]), ((0, 1), ["", "-cut"]), (3, [""]), ((0, 5), [""]), (None, [""])):
        overrides = {"distillation": {"student": student, "layers": layers}, "study": {"small_encoder": "tiny-encoder"}}
        config = load_settings(StudySettings, "smoke", overrides=overrides)
        assert list(baselines.small_encoders(config)) == names
        said = ["Systems of the student's form (-cut) are left out: 'tiny-encoder' has not the layers that the student is cut to."]
        assert baselines.about_forms(config) == (said if layers in (3, (0, 5)) else [])


def test_three_seeds_are_trained_unless_others_are_named() -> None:
    assert [cell.name for cell in tower_ablation.cells(context("mined"))] == [
        f"{name}@{seed}" for name in ("base", "mined") for seed in (13, 14, 15)
    ]
    moved = Unchecked(context().changed(towers={"seed": 5}), NoRecorder(), ["mined"])  # type: ignore[arg-type]
    assert [cell.name for cell in tower_ablation.cells(moved)][:3] == ["base@5", "base@6", "base@7"]
    with pytest.raises(ConfigError, match=r"study\.seeds.*twice"):
        smoke(seeds=[1, 1])
    with pytest.raises(ConfigError, match=r"study\.seeds"):
        smoke(seeds=[-1])


def test_a_whole_training_has_its_own_seeds_of_towers_and_student() -> None:
    moved = context().changed(towers={"seed": 5}, distillation={"seed": 20})
    found = whole_trainings(Unchecked(moved, NoRecorder()))  # type: ignore[arg-type]
    assert {seed: (c.towers.seed, c.distillation.seed) for seed, c in found.items()} == {5: (5, 20), 6: (6, 21), 7: (7, 22)}
    named = whole_trainings(context(seeds=[3, 9]))
    assert {seed: (c.towers.seed, c.distillation.seed) for seed, c in named.items()} == {3: (3, 3), 9: (9, 9)}


@pytest.mark.parametrize(
    ("study", "fixed"),
    [("baselines", {"bm25", "untrained", "cost"}), ("cost_benefit", {"bm25", "student_untrained", "building", "serving"})],
)
def test_what_is_not_trained_has_one_cell_and_the_rest_one_for_each_seed(study: str, fixed: set[str]) -> None:
    names = [cell.name for cell in load_study(study).cells(context(seeds=[1, 2]))]
    assert {name for name in names if "@" not in name} == fixed
    assert {"student@1", "student@2", "teacher@1", "teacher@2"} <= set(names)


def test_tower_ablation_trains_base_and_cells_with_each_seed() -> None:
    cells = tower_ablation.cells(context("mined", seeds=[1, 2]))
    assert [cell.name for cell in cells] == ["base@1", "base@2", "mined@1", "mined@2"]


def _artifact(tmp_path: Path) -> Artifact:
    return seal(tmp_path, "study")


def test_a_collapsed_cell_is_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def collapses() -> Artifact:
        raise CollapseError("all alike")

    ran = run_cells("x", [Cell("good", lambda: _artifact(tmp_path)), Cell("bad", collapses)], context())
    assert list(ran.results) == ["good"] and ran.collapsed == {"bad": "all alike"}
    assert "cell 2 of 2, bad: collapsed: all alike" in capsys.readouterr().out
    with pytest.raises(CollapseError, match="'bad' collapsed"):
        require(ran.results, "bad")


def test_a_mean_without_the_trainings_that_collapsed_says_so(tmp_path: Path) -> None:
    found = _artifact(tmp_path)
    whole = {f"{name}@{seed}": found for name in ("teacher", "student") for seed in (1, 2, 3)} | {"bm25": found}
    asked = smoke(seeds=[1, 2, 3])
    assert "collapsed" not in about_seeds(whole, asked)
    assert about_seeds({"bm25": found}, asked) == "No system of this table was trained, so none needs seeds."
    told = about_seeds({cell: artifact for cell, artifact in whole.items() if cell != "student@2"}, asked)
    assert told.endswith("Where a training collapsed the mean is over the others, and so too good: student (1, 3).")
    told = about_seeds({"student@1": found}, smoke(seeds=[1, 2]))
    assert told.startswith("Every system was trained with the seeds 1, 2;") and told.endswith("so too good: student (1).")
    assert about_seeds({"student@1": found}, smoke(seeds=[1])).startswith("Every system was trained with one seed alone")


def test_a_teacher_that_is_taken_as_it_is_is_not_said_to_be_trained(tmp_path: Path) -> None:
    taken = load_settings(StudySettings, "smoke", overrides={"towers.training": "none"})
    for cell in ("teacher", "teacher+bm25", "clean@teacher"):
        told = about_seeds({f"{cell}@{seed}": _artifact(tmp_path) for seed in (13, 14, 15)}, taken)
        assert "The teacher is no training but taken as it is" in told and "no training" not in about_seeds({f"{cell}@13": None}, smoke())  # type: ignore[dict-item]
    assert "no training" not in about_seeds({"student@13": _artifact(tmp_path)}, taken)
    beside = load_settings(StudySettings, "smoke", overrides={"towers": {"training": "none", "companion": {"base_model": "tiny-encoder"}}})
    assert "no training" not in about_seeds({"teacher@13": _artifact(tmp_path)}, beside)  # its companion is trained


@pytest.mark.parametrize(("training", "told"), [("none", "The teacher is taken as it is."), ("lora", "The teacher is one training,")])
def test_a_retention_tells_a_teacher_that_is_taken_as_it_is(training: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "about_queries", lambda *_, **__: "")
    monkeypatch.setattr(retention, "layers_left_out", lambda _: [])
    monkeypatch.setattr("components.studies.scores.read_result", lambda _: {"machine": "m", "systems": {}})
    found: Any = SimpleNamespace(path=None)
    config = load_settings(StudySettings, "smoke", overrides={"towers.training": training})
    lines = retention.notes({"teacher": found, "speed": found}, pd.DataFrame({"system": []}), config)
    assert sum(line.startswith(told) for line in lines) == 1


@pytest.mark.parametrize("study", ["scaling_law", "robustness", "corpus_growth"])
def test_a_study_of_which_every_cell_collapsed_says_so(study: str, tmp_path: Path) -> None:
    """Predictions, fits and the champion's index are measured all the same, and are no rows."""
    from components.studies.scores import write_result

    further = {"prediction": {"fits": {}, "predictions": []}, "fits": {}, "production": {"documents": 9, "champion": None, "warning": None}}
    results = {}
    for name, numbers in further.items():
        (tmp_path / name).mkdir()
        results[name] = write_result(lambda _, numbers=numbers: numbers, {}, tmp_path / name)  # type: ignore[misc]
    own = {"scaling_law": ("prediction", "fits"), "robustness": (), "corpus_growth": ("production",)}[study]
    ran = Ran({name: results[name] for name in own}, {"a": "all alike"})
    with pytest.raises(CollapseError, match="Every cell collapsed"):
        write_report(study, load_study(study), ran, smoke(), tmp_path)


@pytest.mark.parametrize(
    ("index", "cell", "told"),
    [
        ({"index_key": "IVF4,SQ8", "refine": "none"}, "300", "index.refine is none.*IVF4,SQ8 of 300 documents"),
        ({"index_key": "IVF256,SQ8"}, "200", "has 256 lists, but only 200 vectors"),
    ],
)
def test_an_index_that_cannot_be_measured_is_refused_before_anything_is_trained(index: dict[str, str], cell: str, told: str) -> None:
    from flows.studies import corpus_growth

    config = load_settings(StudySettings, "smoke", overrides={"study.growth_sizes": [200, 300], "index": index})
    with pytest.raises(ConfigError, match=told):
        corpus_growth.cells(Unchecked(config, NoRecorder(), [cell]))  # type: ignore[arg-type]
    assert len(corpus_growth.cells(context(growth_sizes=[200, 300]))) == 3


def test_the_seconds_of_a_step_outlive_the_process_and_leave_its_digest_alone() -> None:
    step = Step("probe", lambda folder: seal(folder, "study"))
    first, second = _made(step), _made(step)
    assert (first.cached, second.cached) == (False, True)
    assert first.timing is not None and first.timing.attempts == 1
    assert second.timing == first.timing
    assert second.artifact.digest == first.artifact.digest


def test_a_step_that_failed_before_counts_its_attempts() -> None:
    fails = True

    def make(folder: Path) -> Artifact:
        (folder / "half").write_text("x")
        if fails:
            raise OSError("gone")
        return seal(folder, "study")

    step = Step("probe", make)
    with pytest.raises(OSError, match="gone"):
        make_step(step)
    fails = False
    timing = _made(step).timing
    assert timing is not None and timing.attempts == 2


class Measured(Unchecked):
    """A context whose artifacts exist, and which keeps the steps that it is asked to run."""

    def __init__(self, config: StudySettings, folder: Path) -> None:
        super().__init__(config, NoRecorder())  # type: ignore[arg-type]
        self.steps: list[Step] = []
        self.made = _artifact(folder)
        self.__dict__["dataset"] = self.made

    def run(self, step: Step) -> Artifact:
        self.steps.append(step)
        return self.made

    def timing(self, artifact: Artifact) -> dict[str, float] | None:
        return {"seconds": 2.0, "attempts": 1.0}


def test_the_costs_of_baselines_are_keyed_by_the_code_that_opens_each_of_them(tmp_path: Path) -> None:
    found = Measured(smoke(small_learning_rates=[0.001]), tmp_path)
    wanted = {name: baselines.systems_of(found)[name] for name in ("bm25", "untrained", "symmetric")}
    baselines._cost(found, wanted, [found.config])
    code = found.steps[-1].reached.code
    for place in ("evaluation/bm25.py", "evaluation/systems.py", "studies/trained_baselines.py", "evaluation/speed.py"):
        assert f"components/{place}" in code, place
    assert found.steps[-1].config["bm25"] == {"bm25_stemmer": "auto"} and found.steps[-1].config["systems"] == list(wanted)


def test_systems_whose_making_went_on_after_a_kill_are_told_beside_their_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Measured(smoke(small_learning_rates=[0.001]), tmp_path)
    wanted = {name: baselines.systems_of(found)[name] for name in ("bm25", "symmetric")}
    for cost in (baselines._cost, worth._cost):
        monkeypatch.setattr(found, "timing", lambda _: {"seconds": 2.0, "attempts": 1.0})
        cost(found, wanted, [found.config])
        assert "again" not in found.steps[-1].config, "a key without need"
        monkeypatch.setattr(found, "timing", lambda _: {"seconds": 2.0, "attempts": 2.0})
        cost(found, wanted, [found.config])
        assert found.steps[-1].config["again"] == ["symmetric"]
    assert baselines.about_attempts({}) == []
    assert baselines.about_attempts({"again": ["symmetric"]})[0].endswith("so it took longer: symmetric.")


def test_an_index_that_is_tuned_with_documents_where_the_teachers_is_with_queries_is_told(tmp_path: Path) -> None:
    pair = seal(tmp_path, "study", counts={"dataset_documents": 210})
    for cell in ("end-to-end@13", "end-to-end-cut@13", "end-to-end+bm25@13"):
        for index, told in (({}, False), ({"exact_below": 200}, True), ({"index_key": "IVF4,SQ8"}, True), ({"index_key": "Flat"}, False)):
            config = load_settings(StudySettings, "smoke", overrides={"index": index})
            assert bool(baselines.about_tuning({"bm25": pair, cell: pair}, config)) is told
            assert not baselines.about_tuning({"bm25": pair}, config)


def test_a_teacher_that_was_not_timed_has_no_cost_and_says_so() -> None:
    config, served = smoke(), {"qps": 10.0, "p50_ms": 1.0, "tokens_per_second": None, "flops_per_query": None}
    rows = [{"system": name, **cost_benefit._cost_columns(60.0, speed, config)} for name, speed in (("teacher", None), ("student", served))]
    assert cost_benefit._break_even(pd.DataFrame(rows), config) == [], "it was told that the student is not cheaper"
    sized = {**served, "parameters": 10**6, "parameters_without_embeddings": 10**5}
    assert [set(found.values()) for found in retention._speed_columns(None, None)] == [{None}, {None}]
    assert "speed-up" not in retention._speed_columns(sized, None)[1] and retention._speed_columns(sized, sized)[1]["speed-up"] == 1.0
    costs = {"seconds": {"teacher": {"training": 5.0, "encoding": 2.0}}, "systems": {}}
    assert baselines._cost_columns("teacher", costs) == {"training s": 5.0, "documents s": 2.0}
    assert framework.about_untimed(["bm25", "teacher"], ["bm25"])[0].startswith("Not timed, and so without a cost: teacher (stored vectors")
    assert framework.about_untimed(["bm25"], ["bm25"]) == []


def test_a_retention_whose_teacher_was_not_timed_and_whose_students_collapsed_still_has_its_table_and_plot(tmp_path: Path) -> None:
    """Nothing was left to be timed: the cell of speeds ended in a traceback, and the plot asked for a column that was not there."""
    assert measure_speeds({}, ["a query"], smoke().evaluation) == {}
    size, timed = retention._speed_columns(None, None)
    frame = pd.DataFrame([{"system": "teacher", "seeds": 1, **size, "R@50": 0.5, "nDCG@10": 0.4, **timed}])
    retention.plot(frame, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").is_file() and list(frame.columns)[2] == "M parameters"


def test_baselines_keep_their_costs_where_the_first_seed_collapses(tmp_path: Path) -> None:
    found = Measured(smoke(), tmp_path)
    first, second = found.config, found.changed(towers={"seed": 99})

    def build(fails: tuple[StudySettings, ...], config: StudySettings) -> baselines.System:
        if config in fails:
            raise CollapseError("all alike")
        return baselines.System(lambda: None, settings={"seed": config.towers.seed})  # type: ignore[arg-type,return-value]

    wanted = {"bm25": partial(build, ()), "teacher": partial(build, (first,)), "student": partial(build, (first, second))}
    baselines._cost(found, wanted, [first, second])
    asked = found.steps[-1].config
    assert (asked["systems"], asked["teacher"], asked["bm25"]["seed"]) == (["bm25", "teacher"], {"seed": 99}, first.towers.seed)


def test_a_learning_rate_that_collapses_costs_a_baseline_nothing_but_that_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    found = context(small_learning_rates=[1e-4, 3e-4, 1e-3])
    monkeypatch.setattr(baselines, "_training_step", lambda _context, _name, _config, _form, rate: rate)
    monkeypatch.setattr(baselines, "_dev_score", lambda _context, system: -system)

    def best(*collapse: float) -> Any:
        def run(rate: float) -> float:
            if rate in collapse:
                raise CollapseError(f"collapsed at {rate}")
            return rate

        monkeypatch.setattr(found, "run", run)
        return baselines._best_on_dev(found, "symmetric", found.config, "", lambda rate: rate)  # type: ignore[arg-type,return-value]

    assert best() == 1e-4 and best(1e-4) == 3e-4 and best(1e-4, 1e-3) == 3e-4
    with pytest.raises(CollapseError, match=r"at 0\.0001"):
        best(1e-4, 3e-4, 1e-3)


def test_baselines_come_whole_and_in_the_students_form_where_that_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["bm25", "untrained", "symmetric", "end-to-end", "teacher", "student-aligned", "student"]
    assert list(baselines.systems_of(context())) == names
    cut = Unchecked(load_settings(StudySettings, "smoke", overrides={"distillation.layers": 1}), NoRecorder())  # type: ignore[arg-type]
    assert [name for name in baselines.systems_of(cut) if name.endswith("-cut")] == ["untrained-cut", "symmetric-cut", "end-to-end-cut"]
    monkeypatch.setattr("components.distillation.student.shape_of", lambda *_: SimpleNamespace(layers=2))
    named = load_settings(StudySettings, "smoke", overrides={"study.small_encoder": "acme/embed", "distillation.layers": 1})
    assert [(form.student, form.layers) for form in baselines.small_encoders(named).values()] == [("acme/embed", None), ("acme/embed", 1)]


def test_a_teacher_that_was_published_as_a_model_of_embeddings_is_asked_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    overrides = {"towers.base_model": str(tmp_path)}
    plain = Unchecked(load_settings(StudySettings, "smoke", overrides=overrides), NoRecorder())  # type: ignore[arg-type]
    assert "teacher-published" not in baselines.systems_of(plain)
    (tmp_path / "modules.json").write_text("[]")
    assert "teacher-published" in baselines.systems_of(plain)


def test_passes_are_those_of_the_refinement_unless_told_otherwise() -> None:
    assert baselines._passes(smoke()) == smoke().distillation.refine_epochs
    assert baselines._passes(smoke(pair_passes=0.5)) == 0.5
    with pytest.raises(ConfigError, match=r"study\.pair_passes: got 0"):
        smoke(pair_passes=0)
    assert "in 1 pass, batches of 16 (as many as the student's refinement)" in baselines._equal(smoke())
    alone = load_settings(StudySettings, "smoke", overrides={"distillation.refine_epochs": 0})
    assert "in 20 batches, batches of 16 (as many as towers.steps says, since the student is not refined)" in baselines._equal(alone)


def test_building_counts_all_that_a_system_stands_on() -> None:
    timing = {"seconds": 10.0, "attempts": 1}
    steps: dict[str, Any] = dict.fromkeys(cost_benefit.STEPS["student"], timing)
    assert cost_benefit.building_seconds("bm25", steps, 0.5) == 0.5
    assert cost_benefit.building_seconds("teacher", steps, 0.5) == 30.0
    assert cost_benefit.building_seconds("student", steps, 0.5) == 60.0
    without = {name: value for name, value in steps.items() if name != "generate_queries"}
    assert cost_benefit.building_seconds("student", without, 0.5) == 50.0
    assert cost_benefit.building_seconds("student", {**steps, "build_index": None}, 0.5) is None


def test_a_layer_subset_is_trained_whole_and_alone_in_the_scaling_law(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.studies import scaling_law

    monkeypatch.setattr(scaling_law, "_revision", lambda model, config: None)
    config = load_settings(StudySettings, "pages", overrides={"data.source": "somewhere"})
    assert config.towers.lora_layers and config.towers.companion.base_model
    context = SimpleNamespace(config=config, changed=lambda towers: config.towers.model_copy(update=towers))
    point = scaling_law.Point(model=f"{config.towers.base_model}@4", parameters=1, share=0.5, steps=20, pairs=640)
    found = scaling_law._settings_of(context, point)  # type: ignore[arg-type]
    assert (found.lora_layers, found.companion, found.steps) == (None, {}, 20)


def test_studies_of_the_towers_training_refuse_towers_that_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell of the ablation was the same teacher, and the table said of each change that it gives nothing."""
    from flows.studies import scaling_law

    taken = Unchecked(context(seeds=[1]).changed(towers={"training": "none"}), NoRecorder())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"varies the training of the towers, and 'tiny-decoder' is taken as it is"):
        tower_ablation.cells(taken)
    taken.dataset = None  # type: ignore[misc]
    for place, found in {"require_measurable": None, "train_pair_count": 640}.items():
        monkeypatch.setattr(f"components.studies.scaling_cell.{place}", lambda *_, found=found: found)
    monkeypatch.setattr(scaling_law, "_sizes", lambda config: {"a/model@2": 1})
    monkeypatch.setattr(scaling_law, "_settings_of", lambda context, point: context.config)
    with pytest.raises(ConfigError, match=r"towers\.training none"):
        scaling_law._grid(taken)


def test_no_baseline_trains_an_llm_where_the_teacher_is_taken_as_it_is() -> None:
    """The study ended there with an error, after its other systems had been trained."""
    trained, taken = context().config, context().changed(towers={"training": "none"})
    for config, there in ((trained, True), (taken, False)):
        systems = baselines.systems_of(Unchecked(config, NoRecorder()))  # type: ignore[arg-type]
        assert ("end-to-end" in systems) == there and {"symmetric", "teacher", "student"} <= systems.keys()
        assert ("end-to-end" in baselines._equal(config)) == there != bool(baselines.left_out(config))
    assert "the teacher none of them, being taken as it is (LLM tiny-decoder, small" in baselines._equal(taken)


def test_a_study_records_the_settings_that_it_runs_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a published teacher the record named the default prompts, and the study asked it with its own."""
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path))
    recorded: list[Any] = []

    def stop(name: str, flow: str, parameters: Any) -> Any:
        recorded.append(parameters["towers"]["query_prompt"])
        raise InterruptedError

    def with_own(config: StudySettings) -> StudySettings:
        return config.model_copy(update={"towers": config.towers.model_copy(update={"query_prompt": "its own: "})})

    monkeypatch.setattr(framework, "recorded_flow", stop)
    monkeypatch.setattr(framework, "at_commits", with_own)
    with pytest.raises(InterruptedError):
        framework.run_study.fn("worth", StudySettings())
    assert recorded == ["its own: "]


def test_a_study_of_many_data_sets_has_a_folder_that_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is that of the data, all their names with a plus between them: after the last cell it could not be made."""
    (folder := tmp_path / "0123456789abcdef").mkdir()
    (folder / "table.csv").write_text("x\n1\n")
    report = seal(folder, "study")
    data = SimpleNamespace(attributes={"name": "+".join(["Größe"] * 100)})
    about = SimpleNamespace(model_dump=lambda mode: {})
    of = SimpleNamespace(dataset=data, config=about, recorder=SimpleNamespace(provenance=about, run_id="1"))
    published = framework._publish(report, "worth", of)  # type: ignore[arg-type]
    assert published.name.startswith("Größe+Größe") and published.name.endswith("-01234567") and (published / "table.csv").is_file()
