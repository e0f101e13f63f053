"""A new teacher's queries in the space of an index that stays: the map, and the tower that answers through it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.artifacts import EncoderArtifact, IndexArtifact, open_artifact, seal, verify
from components.data.config import DataConfig
from components.data.dataset import load_dataset
from components.data.snapshot import snapshot
from components.distillation.config import DistillationConfig
from components.distillation.new_teacher import RIDGES, MapInputs, best_map, map_query_tower, sampled
from components.distillation.plan import DevSet, dev_metrics
from components.distillation.student import check_student, new_student
from components.distillation.student.encoder import ridge
from components.distillation.student.storage import load_student, save_student
from components.distillation.train import dev_set
from components.errors import ArtifactError, DataError, ModelError
from components.towers.config import TowerConfig
from components.towers.contract import check_probes, load_contract, save_contract, space_id_of, unit
from components.towers.encoder import MAP, load_tower
from components.towers.train import train_towers
from components.towers.trained.published import with_own_settings
from tests.data_world import write_lines, write_rows
from tests.published_world import FORMS
from tests.training.tiny_world import documents, pairs, queries

CONFIG = DistillationConfig(student="tiny-encoder", precision="float32", map_documents=60)
OLD = 24  # dimensions of the index


def directions(rows: int, dimension: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32))


def exact(vectors: np.ndarray, doc_ids: list[str]) -> Any:
    def search(asked: np.ndarray, k: int) -> list[list[str]]:
        return [[doc_ids[row] for row in found[:k]] for found in np.argsort(-(asked @ vectors.T), axis=1, kind="stable")]

    return search


@pytest.fixture
def data(tmp_path: Path, home: Path) -> Any:
    """The 64 documents of the tiny world; of four queries one is a dev query, the others are train queries."""
    folder = tmp_path / "data"
    texts = (document.split("\n") for document in documents())
    write_rows(folder / "corpus.jsonl", [{"_id": f"d{n:02}", "title": title, "text": text} for n, (title, text) in enumerate(texts)])
    write_rows(folder / "queries.jsonl", [{"_id": f"q{n:02}", "text": text} for n, text in enumerate(queries())])
    for split, chosen in (("dev", range(0, 64, 4)), ("train", [n for n in range(64) if n % 4 > 1]), ("test", range(1, 64, 4))):
        write_lines(folder / "qrels" / f"{split}.tsv", ["query-id\tcorpus-id\tscore", *(f"q{n:02}\td{n:02}\t1" for n in chosen)])
    made = tmp_path / "snapshot"
    made.mkdir()
    return snapshot(DataConfig(source=str(folder)), made)


def index_of(folder: Path) -> IndexArtifact:
    folder.mkdir()
    (folder / "index").write_text("stands for one")
    found = seal(folder, "index", counts={"documents": 64}, attributes={"space_id": "old space", "dimension": OLD})
    return IndexArtifact.model_validate(found.model_dump())


def towers_of(folder: Path, **settings: Any) -> dict[str, EncoderArtifact]:
    given = {
        "base_model": "tiny-decoder",
        "pooling": "mean",
        "steps": 30,
        "batch_size": 16,
        "chunk_size": 16,
        "checkpoint_every": 30,
        "lora_rank": 4,
        "learning_rate": 3e-3,
        "precision": "float32",
        **settings,
    }
    folder.mkdir()
    train_towers(pairs(), with_own_settings(TowerConfig(**given)), {}, folder)
    parts = {role: open_artifact(folder / role) for role in ("query_tower", "document_tower")}
    return {role: EncoderArtifact.model_validate(part.model_dump()) for role, part in parts.items()}


def mapped(data: Any, tmp_path: Path, towers: dict[str, EncoderArtifact], old: np.ndarray, config: DistillationConfig = CONFIG) -> Any:
    """The mapped tower for an index that holds `old`."""
    index = index_of(tmp_path / "index")
    folder = tmp_path / "mapped"
    folder.mkdir()
    inputs = MapInputs(data, towers["query_tower"], towers["document_tower"], index)
    whole = load_dataset(data.path).documents["doc_id"].tolist()

    def opened(_index: Any, _vectors: Any, ids: Any) -> Any:
        return old[[whole.index(doc_id) for doc_id in ids]], exact(old, whole)

    return map_query_tower(inputs, config, opened, folder)


def test_a_rotation_is_found_exactly_and_a_strong_ridge_shrinks_the_map() -> None:
    new, turned = directions(300, 16), np.linalg.qr(np.random.default_rng(1).standard_normal((16, 16)))[0].astype(np.float32)

    def found(rows: np.ndarray, wanted: np.ndarray, strength: float) -> np.ndarray:
        return ridge(torch.from_numpy(rows), torch.from_numpy(wanted), strength).T.numpy()

    assert np.allclose(found(new, new @ turned, 1e-9), turned, atol=1e-4)
    assert np.linalg.norm(found(new, new @ turned, 10.0)) < 0.2 * np.linalg.norm(turned)
    wide = found(directions(20, 64), directions(20, 8, 3), 0.1)  # fewer rows than dimensions
    assert wide.shape == (64, 8) and wide.dtype == np.float32 and np.isfinite(wide).all()


@pytest.mark.parametrize("tell", ["documents", "queries"])
def test_the_map_that_finds_most_for_dev_queries_is_taken(tell: str) -> None:
    """Whichever of the two knows the way from the new space to the old one; the other leads elsewhere."""
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((16, 16)))[0].astype(np.float32)
    new, astray = directions(200, 16), directions(200, 16, 5)
    old = new @ turn
    asked, doc_ids = new[:40], [f"d{n}" for n in range(200)]
    dev = DevSet([f"q{n}" for n in range(40)], [frozenset([f"d{n}"]) for n in range(40)], exact(old, doc_ids))
    right, wrong = (new[100:], old[100:]), (astray[:40], directions(40, 16, 6))
    found = best_map(right, wrong, asked, dev) if tell == "documents" else best_map(wrong, right, asked, dev)
    assert found.queries == (0 if tell == "documents" else 100) and found.ridge in RIDGES
    assert found.score == dev_metrics(unit(asked @ found.matrix), dev)["score"] > 1.9
    alone = best_map(right, None, asked, dev)
    assert alone.queries == 0 and alone.ridge == RIDGES[0]  # of equally good ones the first


def test_the_mapped_tower_answers_in_the_space_of_the_index(data: Any, tmp_path: Path) -> None:
    towers = towers_of(tmp_path / "towers", seed=1)
    # The old space is a turned one of another teacher.
    other = load_tower(towers_of(tmp_path / "other", seed=2)["document_tower"].path)
    old = unit(other.encode(documents()) @ directions(other.contract.dimension, OLD, 7))
    made = mapped(data, tmp_path, towers, old)
    verify(made.path)
    assert made.space_id == "old space" and made.attributes["dimension"] == OLD and made.attributes["role"] == "query"
    assert made.counts["mapped_documents"] == 60 and made.counts["mapped_queries"] in (0, 32)
    assert set(made.parents) == {"dataset", "query_tower", "document_tower", "index"}

    tower, plain = load_tower(made.path), load_tower(towers["query_tower"].path)
    assert check_probes(tower, made.path, 1e-6) < 1e-6
    matrix = np.load(made.path / MAP)
    assert matrix.shape == (plain.width, OLD) and np.allclose(tower.encode(queries()), unit(plain.encode(queries()) @ matrix), atol=1e-5)
    own, through = (float(made.attributes[f"dev_ndcg_at_10_{which}"]) for which in ("own", "mapped"))
    dataset = load_dataset(data.path)
    dev = dev_set(dataset, exact(old, dataset.documents["doc_id"].tolist()))
    random = dev_metrics(directions(len(dev.queries), OLD, 9), dev)["ndcg@10"]
    assert own >= through > 2 * random
    # The tower that was mapped is as it was.
    assert load_contract(towers["query_tower"].path)[0].map_digest is None


def test_of_the_index_only_the_vectors_that_the_map_is_learned_from_are_read(
    data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, asked = load_dataset(data.path), list[str]()
    whole, old = dataset.documents["doc_id"].tolist(), directions(64, OLD)

    def opened(_index: Any, _vectors: Any, ids: Any) -> Any:
        asked.extend(ids)
        return old[[whole.index(doc_id) for doc_id in ids]], exact(old, whole)

    few = CONFIG.model_copy(update={"map_documents": 50})
    towers, folder = towers_of(tmp_path / "towers"), tmp_path / "mapped"
    folder.mkdir()
    monkeypatch.setattr("components.distillation.new_teacher._judged", lambda _data, _config: {"a query": whole[:2]})
    inputs = MapInputs(data, towers["query_tower"], towers["document_tower"], index_of(tmp_path / "index"))
    map_query_tower(inputs, few, opened, folder)
    chosen = sampled(dataset, dev_set(dataset, lambda vectors, k: []), few)
    assert sorted(asked) == sorted({*(whole[row] for row in chosen), *whole[:2]}) and len(asked) < len(whole)


def test_a_map_that_was_changed_or_is_gone_is_refused(data: Any, tmp_path: Path) -> None:
    made = mapped(data, tmp_path, towers_of(tmp_path / "towers"), directions(64, OLD))
    matrix = np.load(made.path / MAP)
    np.save(made.path / MAP, matrix * 2)
    with pytest.raises(ArtifactError, match="the map is not the one its contract names"):
        load_tower(made.path)
    (made.path / MAP).unlink()
    with pytest.raises(ArtifactError, match=f"{MAP} cannot be read"):
        load_tower(made.path)


def test_a_tower_whose_vectors_are_cut_is_mapped_by_what_is_left_of_them(data: Any, tmp_path: Path) -> None:
    towers = towers_of(tmp_path / "towers", matryoshka=(16,), dimension=16)
    made = mapped(data, tmp_path, towers, directions(64, OLD))
    matrix, plain = np.load(made.path / MAP), load_tower(towers["query_tower"].path)
    assert plain.contract.dimension == 16 < plain.width == len(matrix) and not matrix[16:].any()
    assert np.allclose(load_tower(made.path).encode(queries()), unit(plain.encode(queries()) @ matrix[:16]), atol=1e-5)


def test_a_published_teacher_keeps_its_own_maps_before_that_one(data: Any, tmp_path: Path) -> None:
    model = FORMS["embeddinggemma"].write([*documents(), *queries()], tmp_path / "model")
    towers = towers_of(tmp_path / "towers", base_model=str(model), training="none")
    made = mapped(data, tmp_path, towers, directions(64, OLD))
    plain, tower = load_tower(towers["query_tower"].path), load_tower(made.path)
    assert np.allclose(tower.encode(queries()), unit(plain.encode(queries()) @ np.load(made.path / MAP)), atol=1e-5)


def test_a_student_can_be_cut_from_a_mapped_teacher(data: Any, tmp_path: Path) -> None:
    made = mapped(data, tmp_path, towers_of(tmp_path / "towers"), directions(64, OLD))
    config = DistillationConfig(student="teacher", precision="float32")
    check_student(config, OLD, made.path)
    student = new_student(queries(), load_tower(made.path).encode(queries()), "old space", config, made.path)
    folder = tmp_path / "student"
    save_contract(folder, save_student(student, folder), "old space")
    found, wanted = load_student(folder, precision="float32").encode(queries()), load_tower(made.path).encode(queries())
    assert (found * wanted).sum(1).min() > 0.95  # its own head was fitted to these


def test_answers_of_dev_queries_are_in_the_sample_and_leave_room_for_others(data: Any) -> None:
    dataset = load_dataset(data.path)
    dev = dev_set(dataset, lambda vectors, k: [])
    chosen = sampled(dataset, dev, CONFIG)
    assert len(chosen) == len(set(chosen)) == 60 and chosen == sorted(chosen) and {*range(0, 64, 4)} <= {*chosen}
    assert sampled(dataset, dev, CONFIG) == chosen != sampled(dataset, dev, CONFIG.model_copy(update={"seed": 14}))
    everything = DevSet(dev.queries, [frozenset(dataset.documents["doc_id"])] * len(dev.queries), dev.search)
    few = CONFIG.model_copy(update={"map_documents": 50})
    assert len(sampled(dataset, everything, few)) == 50


def test_too_few_documents_and_a_teacher_without_weights_are_refused_in_words(data: Any, tmp_path: Path) -> None:
    dataset = load_dataset(data.path)
    short = type(dataset)(**{**vars(dataset), "documents": dataset.documents.head(49)})
    with pytest.raises(DataError, match="learned on 50 documents at least; the data has 49"):
        sampled(short, dev_set(dataset, lambda vectors, k: []), CONFIG)
    stored = tmp_path / "stored"
    stored.mkdir()
    contract = load_contract(towers_of(tmp_path / "towers")["query_tower"].path)[0].model_copy(update={"base_model": "vectors"})
    save_contract(stored, contract, "any")
    with pytest.raises(ModelError, match="'vectors'"):
        load_tower(stored)


def test_a_document_contract_without_a_map_names_the_space_that_it_named_before(data: Any, tmp_path: Path) -> None:
    from components.artifacts import digest_of

    contract = load_contract(towers_of(tmp_path / "towers")["document_tower"].path)[0]
    assert contract.map_digest is None
    before = {"base_revision", "head", "head_digest", "base_code", "map_digest", "companion", "companion_share"}
    assert space_id_of(contract) == digest_of(contract.model_dump(exclude=before))
