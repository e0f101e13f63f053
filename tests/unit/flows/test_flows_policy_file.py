"""A policy in a file of its own: it stands alone, names its version, and mistakes in it are explained."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.errors import ConfigError
from components.gates.config import PolicyConfig
from flows.cli.parser import build_parser
from flows.cli.prepare import read_config


def policy_of(folder: Path, text: str, *more: str) -> PolicyConfig:
    file = folder / "policy.yaml"
    file.write_text(text)
    return read_config(build_parser().parse_args(["retrain", "--preset", "smoke", "--policy", str(file), *more])).policy


def test_it_stands_in_the_place_of_the_presets_policy(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, 'version: "2026-1"\nmargin: 0.02\nfloors: {ndcg@10: 0.4}\n')
    assert policy == PolicyConfig(version="2026-1", margin=0.02, floors={"ndcg@10": 0.4})


def test_a_single_setting_wins_over_it(tmp_path: Path) -> None:
    assert policy_of(tmp_path, 'version: "2026-1"\nmargin: 0.02\n', "--set", "policy.margin=0.03").margin == 0.03


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("margin: 0.02\n", "names no version"),
        ("", "names no version"),
        ('version: "1"\nmargin: 2\n', "policy.margin: got 2; allowed: a number"),
        ('version: "1"\nfloors: {ndcg@7: 0.2}\n', "the metric 'ndcg@7' is not known"),
        ('version: "1"\nmargins: 2\n', "policy.margins: unknown field; did you mean 'policy.margin'"),
        ('version: "1"\nmargin: [\n', "not valid YAML"),
        ('version: "1"\nmargin: -0.01\n', "policy.margin: got -0.01; allowed: a number, above 0"),
        ('version: "1"\nmargin: "0.01"\n', "policy.margin: got '0.01'; allowed: a number"),
        ('version: "1"\nmargin: .nan\n', "policy.margin: got nan"),
        ('version: "1"\nmargin: true\n', "policy.margin: got True"),
        ('version: "1"\nmargin: null\n', "policy.margin: got None; allowed: a number"),
        ('version: "1"\nconfidence: 1.0\n', "policy.confidence: got 1.0; allowed: a number, above 0.5 and at most 0.999"),
        ('version: "1"\nmax_p95_ratio: .inf\n', "policy.max_p95_ratio: got inf"),
        ('version: "1"\nmin_queries: 5.5\n', "policy.min_queries: got 5.5; allowed: a whole number"),
        ('version: "1"\nbeat_bm25: "no"\n', "policy.beat_bm25: got 'no'; allowed: true or false"),
        ('version: "1"\nfloors: {ndcg@10: "0.3"}\n', "policy.floors"),
        ('version: "1"\nfloors: {ndcg@10: .nan}\n', "policy.floors"),
        ('version: "1"\nrequired_slices: language\n', "policy.required_slices"),
        ("version: 1\n", "policy.version: got 1; allowed: a text"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        policy_of(tmp_path, text)
    assert words in str(caught.value)


def test_every_command_that_decides_takes_one() -> None:
    parser = build_parser()
    for command in (["demo"], ["retrain"], ["refresh-index", "--data", "x"], ["refresh-query-tower"]):
        assert parser.parse_args([*command, "--policy", "p.yaml"]).policy == Path("p.yaml")
