"""What the steps really execute and read, against the code and the settings in their keys: every step of every flow and study."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.code import HANDED, ROOT, UNDECIDING, UNFOLLOWED
from flows.config import RetrainConfig
from flows.why import STEPS
from tests.flows.cli_world import SMALL, environment, write_collection

pytestmark = [pytest.mark.server, pytest.mark.slow]
# No student collapses here by its training's length.
BUILD = (*SMALL, "--set", "distillation.max_mean_cosine=1.0", "--set", "distillation.min_effective_rank=1.0")
BUILD += ("--set", "towers.steps=4", "--set", "index.index_key=IVF4,Flat")
STUDIES = {
    "worth": ("study.small_learning_rates=[0.001]", "study.pair_passes=0.5", "distillation.noised=5", "distillation.spans=5"),
    "baselines": ("study.small_learning_rates=[0.001, 0.003]", "study.pair_passes=0.5"),
    "scaling_law": ("study.scaling_models=[decoder-32x1, decoder-64x1]", "study.scaling_shares=[0.5, 1.0]", "study.scaling_negatives=64"),
    "retention": ("towers.companion.base_model=tiny-encoder", "towers.companion.steps=4"),  # the towers are found finished
    "robustness": ("study.noise={typos: [0.5]}",),
    "cost_benefit": ("study.watts=100", "study.price_per_hour=1"),
    "corpus_growth": ("study.growth_sizes=[200, 300]",),
}
CELLS = {
    "worth": "untrained+bm25,layers-1,layers-1+bm25",
    "retention": "layers-2",
    "robustness": "typos,foreign_documents",
    "baselines": "bm25,untrained,symmetric,end-to-end,cost",
}
ONE_SEED = "study.seeds=[13]"  # what a study does with more is the same again
OF_STUDIES = {
    "keep_train_share", "train_symmetric", "train_end_to_end", "study_dev", "study_scores", "study_scaling", "study_prediction",
    "study_fits", "study_speed", "study_building", "study_serving", "study_baseline_costs", "study_growth_queries", "study_growth",
    "study_growth_production", "study_report", "study_rankings", "study_found_scores", "study_worth_costs",
}  # fmt: skip
# Settings that are read although they are not in the key, since they decide no result.
READ_WITHOUT_KEY = {
    "encoding.runner": "where shards are encoded",
    "index.probe_tolerance": "how far a loaded encoder may be from its probes: a refusal, not a result",
}
DECIDES_NOTHING = {
    ("train_towers", "towers.companion"): "it is looked at, so that what is wrong with it is said before the training",
    ("train_companion", "towers.lora_alpha"): "twice its rank, which is in the key",
    ("train_companion", "towers.judge"): "a companion has none",
}
# They open the student's encoder before training with a length of its own in the place of the setting.
UNTRAINED_LENGTH = {"evaluate", "study_scores", "study_rankings", "study_serving", "study_baseline_costs", "study_worth_costs"}
Seen = list[dict[str, Any]]


def commands(folder: Path) -> Iterator[list[Any]]:
    """Commands that make every step once: the exit status that each must have, and its words."""
    data = write_collection(folder / "clinic")
    newer = write_collection(folder / "newer")
    corpus = newer / "corpus.jsonl"
    corpus.write_text(corpus.read_text(encoding="utf-8").replace("A patient with stone", "A person with stone"), encoding="utf-8")
    build = ("retrain", *BUILD, "--data", str(data))
    # The tiny decoder has nothing to say, which is found when the step is nearly done.
    yield [4, *build, "--set", "distillation.generated=4", "--set", "distillation.generator=tiny-decoder"]
    yield [0, *build]
    yield [0, "approve", "candidate/1", "--as", "Ada", "--override", "its gates do not matter here"]
    yield [0, "promote"]
    yield [0, "refresh-index", "--data", str(newer)]
    yield [0, "refresh-query-tower", "--set", "distillation.epochs=2"]
    yield [0, "refresh-query-tower", "--new-teacher", "--set", "towers.seed=5"]
    for study, given in STUDIES.items():
        foreign = (f"study.foreign_documents={data}",) if study == "robustness" else ()
        cells = ("--cells", CELLS[study]) if study in CELLS else ()
        settings = [word for one in (*given, *foreign, ONE_SEED) for word in ("--set", one)]
        yield [0, "study", study, *BUILD, "--data", str(data), *cells, *settings]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Seen:
    """What was seen of every step that was made, in a process of its own: no module is loaded there by another test."""
    folder = tmp_path_factory.mktemp("reached")
    variables = environment(folder / "home", mlflow_template)
    variables |= {"PREFECT_HOME": str(folder / "prefect"), "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180"}
    given = "\n".join(json.dumps(words) for words in commands(folder))
    run = (sys.executable, "-m", "tests.flows.reached_world", str(folder / "seen.jsonl"))
    done = subprocess.run(run, cwd=ROOT, env=variables, input=given, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [json.loads(line) for line in (folder / "seen.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_step_of_flows_and_studies_was_made(seen: Seen) -> None:
    assert {step["step"] for step in seen} == {*STEPS, *OF_STUDIES}


def test_no_code_is_executed_that_is_not_in_the_key(seen: Seen) -> None:
    missing = {(step["step"], place, name) for step in seen for place, name in step["executed"] if not _counted(step, place, name)}
    assert not missing, sorted(missing)
    assert all(len(step["executed"]) > 3 for step in seen)  # or nothing was observed


def test_no_setting_is_read_that_is_not_in_the_key(seen: Seen) -> None:
    fields = RetrainConfig.model_fields.items()
    sections = {field.annotation.__name__: name for name, field in fields if hasattr(field.annotation, "model_fields")}
    missing = {
        (step["step"], f"{sections[owner]}.{name}")
        for step in seen
        for owner, name in step["settings"]
        if owner in sections and not _keyed(step, f"{sections[owner]}.{name}")
    }
    assert not missing, sorted(missing)


def _counted(step: dict[str, Any], place: str, name: str) -> bool:
    """Whether an executed function is in the step's code, or left out with a reason."""
    module = place.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    places = {counted.partition(":")[0] for counted in step["code"]}
    unfollowed = [end for start, end in UNFOLLOWED if f"{start.replace('.', '/')}.py" in places]
    if any(module == known or module.startswith(f"{known}.") for known in (*UNDECIDING, *unfollowed)):
        return True
    name, _, within = name.partition(".<locals>.")
    within = "" if within.startswith("<") and not within.startswith("<lambda>") else within  # a comprehension is a part of its method
    if module == "flows.runner" or (module in HANDED and not within):  # what runs the steps, and methods of what they are handed
        return True
    if place.startswith("components/"):
        return place in step["code"] or place.endswith("__init__.py")
    # Of the wiring definitions count; running the module itself makes no more than those.
    return name == "<module>" or bool({f"{place}:{name}", f"{place}:{name.split('.')[0]}"} & step["code"].keys())


def _keyed(step: dict[str, Any], name: str) -> bool:
    """Whether a setting is in the key, under its full name, within another one, or under its own name alone."""
    last, keys = name.rpartition(".")[2], step["config"]
    if (step["step"], name) in DECIDES_NOTHING:
        return True
    if name in READ_WITHOUT_KEY or (name == "distillation.max_query_length" and step["step"] in UNTRAINED_LENGTH):
        return True
    return any(key in (name, last) or key.endswith(f".{last}") or key.startswith(f"{name}.") for key in keys)
