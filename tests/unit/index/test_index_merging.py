"""Merging of parts: the same codes, list by list, as an index built in one go; no memory is written over; what was damaged is refused.

FAISS's own `merge_from` writes past its buffers when a list of a fast scan holds a non-zero multiple of `block_size` rows. Here every list
meets that on purpose: rows are put into the first list of an index, whose vectors all lie at its centroid.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from components.artifacts import Artifact, IndexArtifact, seal
from components.errors import ArtifactError, ConfigError
from components.index import merging, parts
from components.index.config import IndexConfig
from components.index.engine import FaissEngine, OpenPart, Settings, empty_index, inner_index, inverted_file, write_faiss
from components.index.merging import Contents, ListRows, Merge, can_merge, lists_damaged_by_faiss, rows_of
from components.index.parts import INDEX_FILE, merge_parts, open_part, train_template, write_part
from components.index.refresh import changes_since, refresh_index
from components.index.search import load_index
from components.promotion.verification import verify_release
from tests.unit import promotion_world
from tests.unit.index_world import SPACE, built, clustered, sealed_again, shards_of
from tests.unit.promotion_world import make_part

ROOT = Path(__file__).resolve().parents[3]
FAST_SCANS = (
    *("IVF1,PQ1x4fs", "IVF1,PQ3x4fs", "IVF1,PQ4x4fs", "IVF1,PQ4x4fsr", "IVF1,PQ12x4fsr", "IVF2,PQ4x4fs", "IVF4,PQ5x4fsr"),
    *("IVF1,RQ4x4fs", "IVF2,RQ3x4fsr", "IVF1,PRQ2x2x4fs", "IVF1,LSQ2x4fs", "IVF1,PLSQ2x2x4fs"),
    *("IVF1,RaBitQfs", "IVF2,RaBitQfs4", "PCA4,IVF1,PQ4x4fs", "IVF4(RCQ2x1),PQ4x4fsr", "IVF2_HNSW4,PQ4x4fs"),
)
PLAIN = (
    *("IVF4,Flat", "IVF4,SQ8", "IVF4,SQ4", "IVF4,SQfp16", "IVF4,SQ0", "IVF4,PQ4x4", "IVF4,PQ4x4np", "IVF4,RQ2x4", "IVF4,LSQ2x4"),
    *("IVF4,PRQ2x2x4", "IVF4,RaBitQ", "IVF4,RaBitQ4", "IVF4(RCQ2x1),SQ8", "PCA4,IVF4,Flat", "OPQ4,IVF2,PQ4x4"),
    *("PQ4x4", "PQ6x5", "OPQ4,PQ4x4", "SQ8", "SQ4", "SQfp16", "PCA8,Flat", "RR8,SQ8"),
)
UNMERGED = ("HNSW8", "HNSW8_SQ8", "PCA8,HNSW8", "IVF2,PQ4x4fs_64", "IVF2,PQ4x4fsr_128", "IVF2,RaBitQfs_64")
TRAINING = clustered(300, seed=8, dimension=60)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of FAISS that wait for each other take most of the time of indexes this small."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@lru_cache
def trained(key: str) -> Any:
    index = empty_index(key, 60)
    for clustering in [inverted_file(index).cp] if inverted_file(index) is not None else []:  # type: ignore[union-attr]
        clustering.min_points_per_centroid = 1
    index.train(TRAINING)
    return index


def filled(template: Any, vectors: NDArray[np.float32]) -> Any:
    return in_one_go(template, [vectors])


def merged_of(template: Any, blocks: Sequence[NDArray[np.float32]]) -> Any:
    """The merged index of one part for each block, and the check against its parts."""
    merge = Merge()
    for block in blocks:
        merge.append(filled(template, block))
    whole = merge.take()
    assert merge.difference(whole) is None
    return whole


def in_one_go(template: Any, blocks: Sequence[NDArray[np.float32]]) -> Any:
    index = faiss.clone_index(template)
    for block in blocks:
        if len(block):  # RaBitQ refuses to add nothing
            index.add(block)
    return index


def bytes_of(index: Any) -> bytes:
    return bytes(faiss.serialize_index(index).tobytes())


def block_size(index: Any) -> int:
    return int(faiss.downcast_InvertedLists(inverted_file(index).invlists).block_size)  # type: ignore[union-attr]


def same_list(count: int, seed: int) -> NDArray[np.float32]:
    """Vectors that all fall into one list: near one of the vectors that trained the template."""
    noise = np.random.default_rng(seed).normal(size=(count, 60)) * 1e-3
    return np.asarray(TRAINING[0] + noise, np.float32)


@pytest.mark.parametrize("key", FAST_SCANS)
def test_lists_that_end_at_a_block_of_faiss_are_merged_as_if_built_in_one_go(key: str) -> None:
    template = trained(key)
    size = block_size(template)
    assert size > 1 and faiss.downcast_InvertedLists(inverted_file(template).invlists).n_per_block == 32  # type: ignore[union-attr]
    for first in (0, 1, size - 1, size, size + 1, 2 * size) if "LSQ" not in key else (size, 2 * size):
        for second in (1, size):
            blocks = [same_list(first, 1), same_list(second, 2), TRAINING[:40]]
            whole, expected = merged_of(template, blocks), in_one_go(template, blocks)
            assert whole.ntotal == first + second + 40
            assert bytes_of(whole) == bytes_of(expected), f"{key}: {first} rows and {second} rows"


@pytest.mark.parametrize("waiting", [0, 100, 2**26])
def test_parts_are_packed_together_or_one_by_one(waiting: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "WAITING", waiting)
    monkeypatch.setattr(merging, "AT_ONCE", 4096)
    template = trained("IVF4,PQ5x4fsr")
    blocks = [TRAINING[start : start + 23] for start in range(0, 300, 23)]
    assert bytes_of(merged_of(template, blocks)) == bytes_of(in_one_go(template, blocks))


@pytest.mark.parametrize("key", PLAIN)
def test_plain_codes_are_merged_as_if_built_in_one_go(key: str) -> None:
    template = trained(key)
    assert can_merge(template)
    blocks = [TRAINING[:130], TRAINING[130:131], TRAINING[:0], TRAINING[131:]]
    assert bytes_of(merged_of(template, blocks)) == bytes_of(in_one_go(template, blocks))


@pytest.mark.parametrize("key", UNMERGED)
def test_what_cannot_be_merged_is_grown_as_one_index(tmp_path: Path, key: str) -> None:
    assert not can_merge(empty_index(key, 16))
    with pytest.raises(ArtifactError, match=r"merge"):
        merged_of(trained(key), [TRAINING[:40], TRAINING[40:]])
    config = IndexConfig(index_key=key, part_size=40, recall_at=10)
    vectors = shards_of(tmp_path / "vectors", clustered(300), [50, 60, 70])
    whole = built(tmp_path / "whole", vectors, config)
    apart = built(tmp_path / "apart", vectors, config.model_copy(update={"layout": "shards"}))
    assert (whole.counts["parts"], apart.counts["parts"]) == (1, 4)
    if "fs" in key:
        queries = clustered(8, seed=3)
        assert load_index(whole.path, SPACE).search(queries, 20)[1] == load_index(apart.path, SPACE).search(queries, 20)[1]
    assert merge_parts(apart.path, 4) == 300
    assert len(list(apart.path.glob("part-*.faiss"))) == 4


@pytest.mark.parametrize("key", ["IVF4,FlatDedup", "IVF4,FlatPanorama2", "L2norm,IVF4,Flat", "ITQ8,IVF4,Flat"])
def test_keys_of_which_faiss_makes_no_true_copies_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"index_key {key} cannot be used: it .*(faiss#5606|deleted documents|cannot copy)"):
        empty_index(key, 16)


@pytest.mark.parametrize("key", ["IVF2,PQ4x4fs", "IVF2,RaBitQfs", "HNSW8"])
def test_faiss_own_merge_is_refused_by_name_for_what_it_destroys(key: str) -> None:
    index, other = (filled(trained(key), TRAINING[:40]) for _ in range(2))
    with pytest.raises(ArtifactError, match=r"merge_from must not be called on Index\w+( with BlockInvertedLists)?: .*Merge"):
        merging._merge_from(index, other, 40)
    assert (index.ntotal, other.ntotal) == (40, 40)


def test_a_part_of_other_centroids_is_refused() -> None:
    other = empty_index("IVF4,PQ4x4fs", 60)
    other.train(TRAINING[:200])
    merge = Merge()
    merge.append(filled(trained("IVF4,PQ4x4fs"), TRAINING[:40]))
    with pytest.raises(ArtifactError, match="does not go with the parts before it"):
        merge.append(filled(other, TRAINING[:40]))


@pytest.mark.parametrize("key", ["IVF4,PQ4x4fsr", "IVF2,RaBitQfs", "IVF4,SQ8", "PQ4x4"])
def test_contents_are_those_of_the_rows_in_their_order(key: str) -> None:
    index = filled(trained(key), TRAINING)
    rows = list(rows_of(index))
    assert sorted(np.concatenate([some.ids for some in rows]).tolist()) == list(range(300))
    merge, turned, fewer = Merge(), filled(trained(key), TRAINING[::-1].copy()), filled(trained(key), TRAINING[:-1])
    merge.append(index)
    assert merge.difference(index) is None
    assert "holds other rows or codes than the parts" in str(merge.difference(turned)) or "rows instead of" in str(merge.difference(turned))
    assert "rows instead of the" in str(merge.difference(fewer))


def rows_in(lists: list[int], ids: list[list[int]], codes: list[list[int]]) -> ListRows:
    sizes = np.array([len(some) for some in ids])
    return ListRows(np.array(lists), sizes, np.concatenate(ids), np.array(codes, np.uint8), np.cumsum(sizes) - sizes)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (rows_in([0, 2], [[0, 3], [1]], [[1, 2], [3, 4], [5, 6]]), None),
        (rows_in([0, 2], [[0, 3], [1]], [[1, 2], [3, 4], [5, 7]]), "list 2 holds other rows or codes than the parts"),
        (rows_in([0, 2], [[0, 4], [1]], [[1, 2], [3, 4], [5, 6]]), "list 0 holds other rows or codes than the parts"),
        (rows_in([0, 2], [[0, 3], [1]], [[3, 4], [1, 2], [5, 6]]), "list 0 holds other rows or codes than the parts"),
        (rows_in([0, 2], [[3, 0], [1]], [[3, 4], [1, 2], [5, 6]]), "its rows are not in order"),
        (rows_in([0, 1], [[0, 3], [1]], [[1, 2], [3, 4], [5, 6]]), "list 1 holds 1 rows instead of the 0 of the parts"),
        (rows_in([0], [[0, 3]], [[1, 2], [3, 4]]), "list 2 holds 0 rows instead of the 1 of the parts"),
    ],
)
def test_contents_differ_by_every_row_code_list_and_order(other: ListRows, said: str | None) -> None:
    expected, found = Contents(), Contents()
    expected.add(rows_in([0, 2], [[0], [1]], [[1, 2], [5, 6]]), 0)
    expected.add(rows_in([0], [[1]], [[3, 4]]), 2)
    found.add(other, 0)
    assert expected.difference(found) == said


def three_parts(folder: Path, key: str = "IVF2,PQ4x4fs") -> list[NDArray[np.float32]]:
    blocks = [TRAINING[:130], TRAINING[130:200], TRAINING[200:]]
    template = train_template(key, TRAINING, SPACE, "fp16", folder)
    for number, block in enumerate(blocks):
        write_part(folder, number, template, [block])
    return blocks


@pytest.mark.parametrize("key", ["IVF2,PQ4x4fs", "IVF2,RaBitQfs4", "IVF2,SQ8", "SQ8"])
def test_a_merged_file_that_lost_something_is_refused_and_the_parts_stay(tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    three_parts(tmp_path, key)

    def corrupted(index: Any, path: Path) -> None:
        """One half byte of one code becomes another, as by a fault of the memory."""
        lists = inverted_file(index)
        codes = inner_index(index).codes.data() if lists is None else lists.invlists.get_codes(1)
        faiss.rev_swig_ptr(codes, 1)[0] ^= 1
        write_faiss(index, path)

    monkeypatch.setattr(parts, "write_faiss", corrupted)
    with pytest.raises(ArtifactError, match=r"merged from parts of 300 rows, but list \d holds other rows or codes.*build the"):
        merge_parts(tmp_path, 3)
    assert not (tmp_path / INDEX_FILE).exists()
    assert [open_part(tmp_path, number).ntotal for number in range(3)] == [130, 70, 100]
    monkeypatch.undo()
    assert merge_parts(tmp_path, 3) == 300


def test_a_part_with_other_rows_than_it_says_is_refused(tmp_path: Path) -> None:
    three_parts(tmp_path)
    write_faiss(filled(trained("IVF2,PQ4x4fs"), TRAINING[:3]), tmp_path / "part-00001.faiss")
    with pytest.raises(ArtifactError, match=r"part-00001.faiss holds 3 rows where 70 are recorded"):
        merge_parts(tmp_path, 3)
    assert not (tmp_path / INDEX_FILE).exists()


# What else this project relies on in FAISS ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [*FAST_SCANS, *PLAIN, "HNSW8", "HNSW8_SQ8"])
def test_rows_that_are_left_out_are_never_found_in_several_pieces(key: str) -> None:
    """FAISS's own shards drop or shift selectors (faiss#5581, faiss#5584), graphs obey them in bounded searches alone (faiss#5504)."""
    template, gone = trained(key), np.arange(0, 150, 3)
    halves = [(filled(template, TRAINING[:150]), 0), (filled(template, TRAINING[150:]), 150)]
    widest = Settings(nprobe=10_000, ef_search=300)
    everything = FaissEngine([OpenPart(*half) for half in halves]).search(TRAINING[:20], 300, widest)[1]
    scores, rows = FaissEngine([OpenPart(*half, deleted=gone) for half in halves]).search(TRAINING[:20], 300, widest)
    left_out = {-1, *gone.tolist(), *(gone + 150).tolist()}
    for before, after in zip(everything.tolist(), rows.tolist(), strict=True):
        assert set(after) - {-1} <= set(range(300)) - left_out
        assert "HNSW" in key or set(after) - {-1} == set(before) - left_out  # a graph may miss some
    assert (np.isneginf(scores) == (rows < 0)).all()


@pytest.mark.parametrize("key", FAST_SCANS)
def test_a_part_starts_as_a_true_copy_of_the_template(key: str) -> None:
    """FAISS's copies lose the layout of some lists (faiss#5606)."""
    template = trained(key)
    written = faiss.deserialize_index(faiss.serialize_index(template))
    assert bytes_of(filled(template, TRAINING)) == bytes_of(in_one_go(written, [TRAINING]))


# Indexes of earlier versions ---------------------------------------------------------------------------------------------------------


def old_index(folder: Path, sizes: Sequence[int], key: str = "IVF1,PQ4x4fs", refine: str = "fp16") -> IndexArtifact:
    """An index as an earlier version merged it, by what its manifest says; in truth no memory was written over."""
    config = IndexConfig(index_key=key, part_size=min(sizes), refine=refine, recall_at=10)  # type: ignore[arg-type]
    made = built(folder / "index", shards_of(folder / "vectors", clustered(sum(sizes)), sizes[:-1]), config)
    assert made.counts["parts"] == len(sizes)
    attributes = {name: value for name, value in made.attributes.items() if name != "merge_version"}
    return IndexArtifact(**seal(made.path, "index", counts=made.counts, parents=made.parents, attributes=attributes).model_dump())


@pytest.mark.parametrize(
    ("sizes", "damaged"),
    [
        ([64, 100], True),
        ([65, 63, 64], True),
        ([64, 64, 64], True),
        ([100, 28, 70], True),
        ([63, 100], False),
        ([65, 100], False),
        ([100, 64], False),
        ([32, 96], False),
    ],
)
def test_the_merging_of_an_earlier_version_is_done_over_in_numbers(tmp_path: Path, sizes: list[int], damaged: bool) -> None:
    artifact = old_index(tmp_path, sizes)
    index = faiss.read_index(str(artifact.path / INDEX_FILE))
    assert lists_damaged_by_faiss(index, sizes) == ([0] if damaged else [])


@pytest.mark.parametrize("bits", [64, 128])
def test_blocks_that_faiss_cannot_unpack_were_lost_wherever_two_parts_met(bits: int) -> None:
    template = trained(f"IVF1,PQ4x4fs_{bits}")
    index = in_one_go(template, [same_list(5, 1), same_list(7, 2)])
    assert lists_damaged_by_faiss(index, [5, 7]) == [0]
    assert lists_damaged_by_faiss(index, [12, 0]) == []


def test_row_numbers_that_were_written_over_are_refused(tmp_path: Path) -> None:
    artifact = old_index(tmp_path, [63, 100])
    index = faiss.read_index(str(artifact.path / INDEX_FILE))
    ids = faiss.rev_swig_ptr(inverted_file(index).invlists.get_ids(0), 163)  # type: ignore[union-attr]
    for place, wrong in ((5, 6), (5, -1), (162, 10**12), (7, 2**40)):
        kept, ids[place] = ids[place], wrong
        with pytest.raises(ArtifactError, match="holds row numbers that no merge"):
            lists_damaged_by_faiss(index, [63, 100])
        ids[place] = kept
    assert lists_damaged_by_faiss(index, [63, 100]) == []
    write_faiss(filled(index, clustered(1)), artifact.path / INDEX_FILE)
    with pytest.raises(ArtifactError, match="row 164 is in none of the lists"):
        lists_damaged_by_faiss(filled(index, clustered(1)), [64, 101])


def test_an_index_that_faiss_damaged_is_searched_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = old_index(tmp_path, [64, 100])
    found = load_index(artifact.path, SPACE).search(clustered(4, seed=1), 5)[1]
    assert all(len(line) == 5 for line in found)
    said = capsys.readouterr()
    assert "Warning: " in said.err and "at 1 of its lists" in said.err and "scalingnote retrain" in said.err and not said.out
    load_index(old_index(tmp_path / "sound", [63, 100]).path, SPACE)
    assert not capsys.readouterr().err


def test_an_index_of_this_version_is_not_suspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = IndexConfig(index_key="IVF1,PQ4x4fs", part_size=64, recall_at=10)
    artifact = built(tmp_path / "index", shards_of(tmp_path / "vectors", clustered(164), [64]), config)
    assert artifact.attributes["merge_version"] == merging.MERGE_VERSION == 2
    load_index(artifact.path, SPACE)
    assert not capsys.readouterr().err


def test_an_index_whose_row_numbers_were_written_over_is_refused(tmp_path: Path) -> None:
    artifact = old_index(tmp_path, [63, 100])
    index = faiss.read_index(str(artifact.path / INDEX_FILE))
    faiss.rev_swig_ptr(inverted_file(index).invlists.get_ids(0), 1)[0] = 2**40  # type: ignore[union-attr]
    write_faiss(index, artifact.path / INDEX_FILE)
    with pytest.raises(ArtifactError, match=r"index.faiss was damaged when it was merged.*Build the index again"):
        load_index(sealed_again(artifact).path, SPACE)


def refreshed(folder: Path, previous: IndexArtifact, removed: Sequence[int]) -> IndexArtifact:
    """Refresh without the documents of some rows; nothing is encoded."""
    table = pq.read_table(previous.path / "doc_ids.parquet", columns=["doc_id", "content_hash"])
    kept = table.take([row for row in range(len(table)) if row not in removed])
    changes = changes_since(previous.path, kept)
    folder.mkdir()
    return refresh_index(previous, None, changes, IndexConfig(part_size=64), folder)


@pytest.mark.parametrize("removed", [(), (3, 70)])
def test_a_refresh_writes_a_damaged_index_anew(tmp_path: Path, removed: Sequence[int], capsys: pytest.CaptureFixture[str]) -> None:
    artifact = refreshed(tmp_path / "refreshed", old_index(tmp_path, [64, 100]), removed)
    assert (artifact.attributes["merge_version"], artifact.counts["rows"], artifact.counts["deleted"]) == (2, 164 - len(removed), 0)
    assert not (artifact.path / INDEX_FILE).samefile(tmp_path / "index" / INDEX_FILE)
    load_index(artifact.path, SPACE)
    assert "Warning" not in capsys.readouterr().err


def test_a_refresh_carries_a_sound_index_over_and_does_not_say_that_it_merged_it(tmp_path: Path) -> None:
    sound = old_index(tmp_path, [63, 100])
    assert refreshed(tmp_path / "same", sound, ()) == sound
    artifact = refreshed(tmp_path / "refreshed", sound, (3, 70))
    assert "merge_version" not in artifact.attributes and artifact.counts["deleted"] == 2
    assert (artifact.path / INDEX_FILE).samefile(sound.path / INDEX_FILE)


def test_a_damaged_index_without_vectors_cannot_be_refreshed(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"at 1 of its lists.*keeps no vectors .*only a retraining"):
        refreshed(tmp_path / "refreshed", old_index(tmp_path, [64, 100], refine="none"), (3,))


@pytest.mark.parametrize(("sizes", "ok"), [([64, 100], False), ([63, 100], True)])
def test_verify_names_a_damaged_index_and_proves_the_others(
    tmp_path: Path, sizes: list[int], ok: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def part(folder: Path, role: str) -> Artifact:
        if role != "index":
            return make_part(folder, role)
        made = old_index(folder, sizes)
        return sealed_again(made, space_id=promotion_world.SPACE)

    monkeypatch.setattr(promotion_world, "make_part", part)
    tracking = promotion_world.MemoryTracking()
    tracking.install(monkeypatch)
    promotion_world.World(tracking, tmp_path / "world").candidate()
    (found,) = [check for check in verify_release(promotion_world.NAME, "candidate/1") if check.name == "index"]
    assert found.ok is ok
    assert ok or ("index.faiss was merged by an earlier version" in found.detail and "Build the index again" in found.detail)


# The tree ----------------------------------------------------------------------------------------------------------------------------

REFUSED = {
    "merge_from": "writes past its buffers on block-packed lists",
    "merge_into": "calls merge_from",
    "merge_ondisk": "checks no centroids",
    "add_entries": "takes block_size for the rows of a block",
    "add_entry": "copies a whole block into block-packed lists",
    "add_sa_codes": "adds plain codes to block-packed lists",
    "copy_subset_to": "adds plain codes to block-packed lists",
    "IndexShards": "asks selectors with the numbers of a shard (faiss#5581)",
    "IndexShardsIVF": "drops selectors (faiss#5584)",
    "IndexPQFastScan": "ignores add_id when it is merged (faiss#5590) and crashes after reset (faiss#5591)",
    "IndexRefine": "gives no filter",
    "bounded_queue": "an unbounded search of a graph ignores selectors (faiss#5504)",
}
ALLOWED = {("components/index/merging.py", "_merge_from", "merge_from"), ("tests/benchmarks/index_merge.py", "_by_faiss", "merge_from")}


def uses(file: Path, tree: ast.AST) -> set[tuple[str, str, str]]:
    """Refused names that a file uses, as attribute, name, keyword or string: (file, function, name)."""
    found = set()
    for outer in ast.walk(tree):
        if not isinstance(outer, ast.FunctionDef | ast.Module):
            continue
        for node in ast.walk(outer):
            name = getattr(node, "attr", None) or getattr(node, "id", None) or getattr(node, "arg", None)
            name = name or (node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None)
            if name in REFUSED:
                found.add((file.relative_to(ROOT).as_posix(), getattr(outer, "name", ""), str(name)))
    return {use for use in found if use[1] or not any(other[1] and (other[0], other[2]) == (use[0], use[2]) for other in found)}


def test_no_code_calls_what_faiss_does_wrong_but_the_guarded_function() -> None:
    files = [path for room in ("components", "flows", "tests/benchmarks") for path in sorted((ROOT / room).rglob("*.py"))]
    assert len(files) > 100
    found = {use for file in files for use in uses(file, ast.parse(file.read_text(encoding="utf-8")))}
    assert found == ALLOWED, "; ".join(f"{file}: {name} {REFUSED[name]}" for file, _, name in sorted(found - ALLOWED))


@pytest.mark.parametrize(
    "code",
    ["def f(a, b):\n    a.merge_from(b)", "x = getattr(index, 'merge_from')", "from faiss import IndexShardsIVF as S\nIndexShardsIVF()"],
)
def test_the_scan_of_the_tree_finds_a_new_caller(code: str) -> None:
    assert uses(ROOT / "components" / "new.py", ast.parse(code)) - ALLOWED


CRASH = """
import faiss, numpy as np
from components.index.merging import Merge
vectors = np.random.default_rng(0).normal(size=(4000, 16)).astype("float32")
template = faiss.index_factory(16, "IVF1,PQ4x4fs", faiss.METRIC_INNER_PRODUCT)
template.train(vectors)
for first in (64, 128, 192, 640):
    merge = Merge()
    for block in (vectors[:first], vectors[first:]):
        part = faiss.clone_index(template)
        part.add(block)
        merge.append(part)
    assert merge.difference(merge.take()) is None
print("whole")
"""


def test_a_process_that_merges_full_blocks_ends_well() -> None:
    """glibc's own checks of the heap, which ended the process before, find nothing to say."""
    environment = {"MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "165", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CRASH], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, "whole"), done.stderr
