"""What to deploy: the rule on values whose answer is known, its words, and the cells of the study."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components.artifacts import Artifact, read_json
from components.errors import ConfigError, DataError
from components.evaluation.config import EvaluationConfig
from components.evaluation.metrics import per_query_metrics
from components.evaluation.rankers import best_on_dev, fuse, symmetric_ranker
from components.evaluation.summarize import judged_split
from components.studies.scores import Scores, load_rankings, load_scores, write_found, write_rankings, write_scores
from components.studies.worth import choose, hours_of
from flows.config import load_settings
from flows.studies import worth
from flows.studies.context import StudySettings
from flows.studies.framework import about_queries
from tests.encoders import WordEncoder, dataset_of
from tests.unit.evaluation.test_evaluation_fusion import WITH_DEV
from tests.unit.flows.test_flows_studies import Measured, NoRecorder, Unchecked

CONFIG = EvaluationConfig(bootstrap_samples=1000)
QUERIES = 400


def system(level: float, *seeds: int, units: int | None = None) -> list[Scores]:
    """Values around a level, query by query alike in all systems, with a little noise for each seed."""
    common = np.random.default_rng(0).normal(0, 0.1, QUERIES)
    numbers = None if units is None else {"test": np.arange(QUERIES) % units}
    runs = []
    for seed in seeds or (0,):
        values = level + common + np.random.default_rng([seed, int(level * 1000)]).normal(0, 0.02, QUERIES)
        runs.append(Scores({("test", metric): values for metric in ("recall@50", "ndcg@10")}, numbers))
    return runs


def test_the_cheapest_system_that_loses_no_more_than_the_margin_is_chosen() -> None:
    systems = {"bm25": system(0.3), "static": system(0.585, 1, 2, 3), "layers-2": system(0.59, 1, 2, 3), "teacher": system(0.6, 1, 2, 3)}
    hours = {"bm25": 0.1, "static": 1.0, "layers-2": 2.0, "teacher": 9.0}
    found = choose(systems, hours, 0.05, 1000, CONFIG, ["bm25"])
    assert (found.chosen, found.shown, found.claimed) == ("static", True, True)
    assert found.best == {"recall@50": "teacher", "ndcg@10": "teacher"}
    assert {name: s.good_enough for name, s in found.standings.items()} == {
        "bm25": False, "static": True, "layers-2": True, "teacher": True
    }  # fmt: skip
    assert found.sentence.startswith("Deploy static, the cheapest system whose loss against the best (teacher) is shown to be at most 0.05")
    assert "the strongest of the 1 cheaper ones, bm25, may lose 0.3" in found.sentence
    strict = choose(systems, hours, 0.001, 1000, CONFIG, ["bm25"])  # nothing else is shown to lose so little
    assert strict.chosen == "teacher" and strict.sentence.startswith("Deploy teacher, the best in R@50 and nDCG@10 (9.00 hours")
    assert "no cheaper system is shown to lose at most 0.001" in strict.sentence
    assert all(found.low >= -1 for standing in strict.standings.values() for found in standing.behind.values())


def test_bm25_is_enough_where_it_is() -> None:
    systems = {"bm25": system(0.6), "teacher": system(0.6, 1, 2, 3), "layers-2+bm25": system(0.605, 1, 2, 3)}
    found = choose(systems, {"bm25": 0.1, "teacher": 9.0, "layers-2+bm25": 1.0}, 0.05, 1000, CONFIG, ["bm25"])
    assert found.chosen == "bm25" and found.sentence.startswith("BM25 is enough: deploy bm25, the cheapest system")


def test_a_loss_in_one_metric_is_a_loss() -> None:
    good, uneven = system(0.6, 1, 2), system(0.6, 1, 2)
    for run in uneven:
        run["test", "ndcg@10"] = run["test", "ndcg@10"] - 0.2
    found = choose({"good": good, "uneven": uneven}, {"good": 9.0, "uneven": 1.0}, 0.05, 1000, CONFIG)
    assert found.chosen == "good" and not found.standings["uneven"].good_enough


def test_the_best_of_both_metrics_may_be_two_and_none_good_enough() -> None:
    first, second = system(0.6, 1, 2), system(0.6, 1, 2)
    for run in first:
        run["test", "ndcg@10"] = run["test", "ndcg@10"] + 0.3
    for run in second:
        run["test", "recall@50"] = run["test", "recall@50"] + 0.2
    found = choose({"first": first, "second": second}, {"first": 2.0, "second": 1.0}, 0.05, 1000, CONFIG)
    assert (found.chosen, found.shown) == ("first", False)
    assert found.sentence.startswith("Deploy first, which has the highest sum of R@50 and nDCG@10 (2.00 hours")


def test_one_seed_claims_nothing() -> None:
    found = choose({"bm25": system(0.3), "teacher": system(0.6, 1)}, {"bm25": 0.1, "teacher": 9.0}, 0.05, 1000, CONFIG, ["bm25"])
    assert not found.claimed and found.sentence.startswith("With one seed nothing is claimed; by the queries alone: deploy teacher")
    fixed = {"bm25": system(0.3), "untrained": system(0.6)}
    assert choose(fixed, dict.fromkeys(fixed, 0.1), 0.05, 1000, CONFIG, list(fixed)).claimed  # nothing was trained


def test_a_system_that_was_measured_alone_is_not_said_to_be_enough() -> None:
    found = choose({"bm25": system(0.3)}, {"bm25": 0.1}, 0.05, 1000, CONFIG, ["bm25"])
    assert not found.claimed and found.sentence.startswith("bm25 alone was measured, so nothing is compared")


def test_all_queries_in_one_unit_show_nothing() -> None:
    systems = {"cheap": system(0.59, 1, 2, units=1), "best": system(0.6, 1, 2, units=1)}
    found = choose(systems, {"cheap": 1.0, "best": 9.0}, 0.05, 1000, CONFIG)
    assert found.chosen == "best" and not found.standings["cheap"].good_enough
    assert not found.claimed and found.sentence.startswith(
        "All queries are one unit, so nothing is claimed; by the means alone: deploy best"
    )
    assert "inf" not in found.sentence


@pytest.mark.parametrize(("units", "claimed"), [(3, False), (8, True)])
def test_few_units_that_all_say_the_same_show_nothing(units: int, claimed: bool) -> None:
    """Every training of the cheap system loses the same on every query: an interval of no width, also over three units."""
    values, numbers = np.full(QUERIES, 0.59), {"test": np.arange(QUERIES) % units}
    runs = [[Scores({("test", m): found for m in ("recall@50", "ndcg@10")}, numbers)] * 2 for found in (values, values + 0.01)]
    found = choose(dict(zip(("cheap", "best"), runs, strict=True)), {"cheap": 1.0, "best": 9.0}, 0.05, 1000, CONFIG)
    assert (found.claimed, found.chosen) == (claimed, "cheap" if claimed else "best")
    assert claimed or found.sentence.startswith("All queries are few units that all say the same, so nothing is claimed")


def test_more_systems_make_the_intervals_wider() -> None:
    few = {"best": system(0.6, 1, 2, 3), "other": system(0.59, 1, 2, 3)}
    many = few | {f"bad-{i}": system(0.1 + i / 100, 1, 2, 3) for i in range(12)}
    ends = [choose(s, dict.fromkeys(s, 1.0), 0.05, 1, CONFIG).standings["other"].behind["ndcg@10"].low for s in (few, many)]
    assert ends[1] < ends[0] < 0


def test_a_fused_system_is_paired_with_its_own_trainings() -> None:
    dense = system(0.55, 1, 2, 3)
    for seed, run in enumerate(dense):
        for key in run:
            run[key] = run[key] + 0.1 * seed  # trainings far apart
    fused = [Scores({key: value + 0.01 for key, value in run.items()}) for run in dense]
    found = choose({"dense": dense, "dense+bm25": fused}, {"dense": 1.0, "dense+bm25": 2.0}, 0.05, 1, CONFIG)
    assert found.chosen == "dense"
    apart = choose({"dense": dense, "other": fused}, {"dense": 1.0, "other": 2.0}, 0.05, 1, CONFIG)
    assert apart.chosen == "other"


def test_costs_that_nobody_knows_are_not_taken_for_low_ones() -> None:
    systems = {"cheap": system(0.6, 1, 2), "best": system(0.601, 1, 2)}
    assert choose(systems, {"cheap": None, "best": 9.0}, 0.05, 1000, CONFIG).chosen == "best"
    with pytest.raises(DataError, match="known cost"):
        choose(systems, {"cheap": None}, 0.05, 1000, CONFIG)
    with pytest.raises(DataError, match="known cost"):
        choose({}, {}, 0.05, 1000, CONFIG)
    assert hours_of(3600.0, 10.0, 36_000) == 2.0 and hours_of(None, 10.0, 1) is None


def test_what_is_said_of_the_others_leaves_out_those_of_unknown_cost() -> None:
    systems = {"cheap": system(0.5, 1, 2), "unknown": system(0.6, 1, 2)}
    found = choose(systems, {"cheap": 1.0, "unknown": None}, 0.05, 1000, CONFIG)
    assert (found.chosen, found.shown) == ("cheap", False) and found.standings["unknown"].good_enough
    assert "the highest sum of R@50 and nDCG@10 among those of known cost (1.00 hours" in found.sentence
    assert "of no system of known cost a loss above 0.05 against the best can be excluded" in found.sentence


def test_bm25_keeps_its_name_where_one_seed_claims_nothing() -> None:
    found = choose({"bm25": system(0.6), "teacher": system(0.62, 1)}, {"bm25": 0.1, "teacher": 9.0}, 0.05, 1000, CONFIG, ["bm25"])
    assert found.sentence.startswith("With one seed nothing is claimed; by the queries alone: BM25 is enough: deploy bm25")


@pytest.mark.parametrize(("trainings", "claims"), [((1, 2), True), ((1,), False)])
def test_a_rival_of_which_one_training_is_left_claims_nothing(trainings: tuple[int, ...], claims: bool) -> None:
    runs = {"bm25": system(0.3), "symmetric": system(0.4, *trainings), "layers-1": system(0.6, 1, 2)}
    assert ("claim" not in worth._gains(runs, "layers-1", context().config)) == claims


def context(*wanted: str, **study: object) -> Unchecked:
    config = load_settings(StudySettings, "smoke", overrides={"study": study} if study else None)
    return Unchecked(config, NoRecorder(), wanted)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("flows.studies.retention.layers_of", lambda _: 2)


def test_every_system_is_measured_alone_and_fused_with_each_seed() -> None:
    names = [cell.name for cell in worth.cells(context(seeds=[1, 2]))]
    fixed = ["bm25", "untrained", "untrained+bm25", "cost"]
    assert [name for name in names if "@" not in name] == fixed
    trained = ("symmetric", "end-to-end", "teacher", "layers-1", "layers-2", "static")
    assert {name for name in names if "@" in name} == {
        f"{name}{end}@{seed}" for name in trained for end in ("", "+bm25") for seed in (1, 2)
    }  # fmt: skip
    assert [cell.name for cell in worth.cells(context("static+bm25", seeds=[5]))] == ["bm25", "static+bm25@5", "cost"]
    with pytest.raises(ConfigError, match=r"Unknown cell 'static\+bm2'; did you mean"):
        worth.cells(context("static+bm2"))


def test_no_llm_is_trained_end_to_end_where_the_teacher_is_taken_as_it_is() -> None:
    taken = Unchecked(context(seeds=[1]).changed(towers={"training": "none"}), NoRecorder())  # type: ignore[arg-type]
    assert not [cell.name for cell in worth.cells(taken) if cell.name.startswith("end-to-end")]


def test_the_costs_are_keyed_by_the_code_that_opens_each_system(tmp_path: Path) -> None:
    found = Measured(context(seeds=[1], small_learning_rates=[0.001]).config, tmp_path)
    builds, names = worth._builds(found), ["bm25", "untrained+bm25", "symmetric"]
    worth._cost(found, {name: builds[name.removesuffix("+bm25")] for name in names}, [found.config])
    code, keyed = found.steps[-1].reached.code, found.steps[-1].config
    for place in ("evaluation/rankers.py", "evaluation/bm25.py", "evaluation/systems.py", "studies/trained_baselines.py"):
        assert f"components/{place}" in code, place
    assert keyed["systems"] == names and keyed["built"] == {"bm25": 0.0, "untrained+bm25": 0.0, "symmetric": 2.0}


def test_nothing_is_told_of_a_system_that_is_not_in_the_table() -> None:
    config = load_settings(StudySettings, "smoke")
    assert worth._about_end_to_end(pd.DataFrame({"system": ["bm25", "teacher"]}), config) == []
    assert "is ScalingDoc: LLM document tower" in worth._about_end_to_end(pd.DataFrame({"system": ["end-to-end+bm25"]}), config)[0]


def test_margin_and_queries_are_settings() -> None:
    assert worth._margin(context().config) == context().config.policy.margin
    assert worth._margin(context(worth_margin=0.03).config) == 0.03
    for wrong in ({"worth_margin": 0}, {"worth_margin": 0.9}, {"worth_queries": 0}):
        with pytest.raises(ConfigError, match=r"study\.worth_"):
            context(**wrong)


def test_hours_count_building_reading_and_serving() -> None:
    speeds = {"bm25": (1000.0, 3.0), "untrained": (100.0, 5.0), "untrained+bm25": (90.0, 0.0), "layers-1": (200.0, 9.0)}
    costs = {
        "systems": {name: {"qps": qps, "opening_seconds": opening} for name, (qps, opening) in speeds.items()},
        "built": {"bm25": 0.0, "untrained": 0.0, "untrained+bm25": 0.0, "layers-1": 3600.0},
    }
    config = context(worth_queries=3600).config
    assert worth._hours("bm25", costs, config) == pytest.approx((3 / 3600, (3 + 3.6) / 3600))
    assert worth._hours("untrained+bm25", costs, config) == pytest.approx((8 / 3600, (8 + 40) / 3600))
    assert worth._hours("layers-1", costs, config) == pytest.approx((1.0, 1 + 18 / 3600))  # loading an encoder is no building
    alone = {**costs, "systems": {name: costs["systems"][name] for name in ("bm25", "untrained+bm25")}}
    alone["systems"]["untrained+bm25"]["opening_seconds"] = 5.0  # it opened the encoder itself
    assert worth._hours("untrained+bm25", alone, config)[0] == pytest.approx(8 / 3600)
    assert worth._hours("layers-1", {**costs, "built": {"layers-1": None}}, config) == (None, None)


def test_what_was_found_is_kept_and_gives_the_scores_of_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.studies.scores.load_dataset", lambda _: WITH_DEV)
    dataset = Artifact(kind="dataset", path=tmp_path, digest="d" * 64)
    found = {}
    for name in ("dense", "lexical"):
        (tmp_path / name).mkdir()
        found[name] = write_rankings(lambda: symmetric_ranker(WordEncoder(), WITH_DEV), {"dataset": dataset}, CONFIG, tmp_path / name)
    rankings = load_rankings(found["dense"].path)
    assert set(rankings) == {"test", "dev"} and rankings["test"]["q0"][0][0] == "d0"
    for name, more in (("alone", {}), ("fused", {"lexical": found["lexical"]})):
        (tmp_path / name).mkdir()
        made = write_found({"dataset": dataset, "rankings": found["dense"], **more}, CONFIG, tmp_path / name)
        assert load_scores(made.path)["test", "ndcg@10"].tolist() == [1.0] * 8
        assert read_json(made.path / "result.json")["test.recall@50"] == 1.0
    assert str(made.attributes["setup"]).startswith("Fused with BM25: reciprocal ranks with k 60, weight 0.5 for the encoder")
    judged = judged_split(WITH_DEV, "dev")
    setup = best_on_dev(rankings["dev"], rankings["dev"], judged)
    again = {query: fuse(rankings["test"][query], rankings["test"][query], setup) for query in judged.query_ids}
    assert per_query_metrics(judged.judgements, again)["value"].notna().all()


def test_queries_that_the_settings_take_apart_are_told_below_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset_of(
        {"d0": "apple", "d1": "bread"}, {"q0": "apple", "q1": "apple", "q2": "bread"}, [(f"q{n}", f"d{n // 2}", 1) for n in range(3)]
    )
    monkeypatch.setattr("components.studies.scores.load_dataset", lambda _: data)
    dataset = Artifact(kind="dataset", path=tmp_path, digest="d" * 64)
    told = {}
    for groups in ("auto", "queries"):
        (tmp_path / groups).mkdir()
        config = context().config.model_copy(update={"evaluation": EvaluationConfig(query_groups=groups)})
        made = write_scores(lambda: symmetric_ranker(WordEncoder(), data), {"dataset": dataset}, config.evaluation, tmp_path / groups)
        told[groups] = about_queries(made, config)
    assert "The data makes 2 units of them, so intervals and p are narrower than it allows." in told["queries"]
    assert "The data makes" not in told["auto"]


def test_what_beats_every_rival_is_named() -> None:
    columns = {f"over {rival} {metric}": 0.1 for rival in ("bm25", "symmetric") for metric in ("R@50", "nDCG@10")}
    chances = {f"{column} p": 0.01 for column in columns}
    rows = [{"system": "bm25"}, {"system": "static+bm25", **columns, **chances}, {"system": "static", **columns, **chances}]
    rows[2] |= {"over bm25 nDCG@10 p": 0.2}
    assert worth._beaten(pd.DataFrame(rows)) == ("Above each of bm25, symmetric in R@50 and nDCG@10 (p below 0.05 by Holm): static+bm25.")
    assert worth._beaten(pd.DataFrame([{"system": "bm25"}])).endswith("none.")
