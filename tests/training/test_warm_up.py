"""The shipped warm-up: what it was made from, what it weighs, and that its adapter is merged as peft would."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.artifacts import file_sha256, read_json, write_json
from components.errors import ModelError
from components.settings import shipped
from components.towers import base_models
from components.towers.base_models import WARM_GEMMA, WARM_NOTE, WARM_UP, WARM_WEIGHTS, resolve_base
from tests.benchmarks.warm_up import pairs_of, plain

WORDS = {
    "noun": [
        "  1 This software and database is being provided to you, the LICENSEE, by",
        '00000001 26 n 02 heart_attack 0 coronary 0 000 | a sudden severe instance of heart trouble; "he had a heart attack"  ',
        "00000002 26 n 02 cholera 0 asiatic_cholera 0 000 | an acute intestinal infection  ",
        "00000003 06 n 01 hammer 0 000 | a hand tool with a heavy head  ",
        "00000004 06 n 01 mallet 0 000 | a hand tool with a heavy head  ",
    ],
    "verb": ["00000005 30 v 01 pound(a) 0 000 | hit hard  "],
    "adj": [],
    "adv": [],
}


@pytest.fixture
def dictionary(tmp_path: Path) -> Path:
    for part, lines in WORDS.items():
        (tmp_path / f"data.{part}").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def test_pairs_hold_no_banned_text_and_no_text_twice(dictionary: Path) -> None:
    made = list(pairs_of(dictionary, {plain("Cholera"), plain("Asiatic cholera")}))
    assert made == list(pairs_of(dictionary, {plain("Cholera"), plain("Asiatic cholera")}))
    texts = [plain(text) for query, document, _ in made for text in (query, document)]
    assert len(set(texts)) == len(texts)
    assert not any("cholera" in text for text in texts)
    assert {kind for *_, kind in made} == {"noun26", "noun06", "verb30"}
    assert ("pound" in texts) and len(made) == 3  # the second tool has the gloss of the first


def test_an_adapter_is_merged_into_the_maps_that_it_names(tmp_path: Path) -> None:
    weights = {"layers.0.q.weight": torch.ones(4, 3, dtype=torch.bfloat16), "norm.weight": torch.ones(3)}
    first, second = torch.randn(2, 3), torch.randn(4, 2)
    save_file(weights, tmp_path / "base.safetensors")
    names = [f"base_model.model.layers.0.q.lora_{part}.weight" for part in "AB"]
    save_file({names[0]: first, names[1]: second}, tmp_path / "adapter.safetensors")
    base_models._merge(tmp_path / "base.safetensors", tmp_path / "adapter.safetensors", 2.0, tmp_path / "merged.safetensors")
    found = load_file(tmp_path / "merged.safetensors")
    torch.testing.assert_close(found["layers.0.q.weight"], (1 + 2 * second @ first).to(torch.bfloat16))
    assert torch.equal(found["norm.weight"], weights["norm.weight"])
    assert found.keys() == weights.keys()


def test_the_shipped_adapter_is_the_one_of_its_note_and_small() -> None:
    folder = shipped(WARM_UP)
    note = read_json(folder / WARM_NOTE)
    assert file_sha256(folder / WARM_WEIGHTS) == note["adapter_sha256"]
    assert (folder / WARM_WEIGHTS).stat().st_size <= 8 * 10**6
    assert "WordNet" in note["licence"] and "Gemma Terms of Use" in note["licence"]
    assert set(note["sources"]) == set(WORDS)
    assert note["settings"]["query_prompt"] == note["settings"]["document_prompt"] == ""


def test_it_is_made_again_when_the_adapter_is_another(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "gemma"
    base.mkdir()
    save_file({"layers.0.self_attn.q_proj.weight": torch.zeros(1024, 640)}, base / "model.safetensors")
    (base / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(base_models, "_gemma", lambda: base_models.BaseModel("gemma3-270m", str(base), "d" * 64))
    monkeypatch.setattr(base_models, "shipped", lambda name: tmp_path / "warm")
    (tmp_path / "warm").mkdir()
    digests = []
    for value in (0.0, 1.0):
        names = [f"base_model.model.layers.0.self_attn.q_proj.lora_{part}.weight" for part in "AB"]
        save_file({names[0]: torch.ones(1, 640), names[1]: torch.full((1024, 1), value)}, tmp_path / "warm" / WARM_WEIGHTS)
        write_json(tmp_path / "warm" / WARM_NOTE, _note(tmp_path / "warm" / WARM_WEIGHTS))
        digests.append(resolve_base(WARM_GEMMA).digest)
        assert resolve_base(WARM_GEMMA).digest == digests[-1]
    assert digests[0] != digests[1]
    save_file({}, tmp_path / "warm" / WARM_WEIGHTS)
    with pytest.raises(ModelError, match="expected an adapter with sha256"):
        resolve_base(WARM_GEMMA)


def _note(weights: Path) -> dict[str, object]:
    return {"adapter_sha256": file_sha256(weights), "scale": 2.0, "licence": "of the test"}
