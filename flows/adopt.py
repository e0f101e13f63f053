"""Vectors that exist become the document side of a retriever: checked, indexed and registered, without any encoder.

snapshot -> validate -> take vectors -> index -> register. The query encoder that makes a release of it is `refresh-query-tower`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from prefect import flow

from components import settings
from components.errors import ConfigError, PromotionError
from components.release.champion import CHAMPION, release_model
from components.release.open import resolve
from components.tracking import registry
from components.tracking.runs import FlowRun, newest_flow_run
from flows.candidate import register_documents, require_decidable
from flows.config import RetrainConfig
from flows.parameters import NO_SETTINGS, NameOrEmpty, Preset, SettingsForm, requested_config
from flows.recorder import recorded_flow
from flows.refresh_index import RefreshConfig
from flows.reporting import AS_OURS, ended
from flows.retrain import build_documents
from flows.steps import at_commits

FLOW = "adopt"
COLLECTIONS, EXISTING = "collections", "existing_vectors"  # folders of the work folder, for vectors that a command puts there
ADOPTED = "adopted"  # names what was adopted last, in the place of a release
Settings = Annotated[dict[str, Any], SettingsForm()]


@flow(name=FLOW, **AS_OURS)
def adopt(
    preset: Preset | None = None,
    data: str = "",
    name: NameOrEmpty = "",
    settings: Settings = NO_SETTINGS,
    config: RetrainConfig | None = None,
) -> dict[str, Any]:
    """Take vectors over and register towers and index; nothing is encoded, and no candidate is made yet.

    Returns counts, dimension, space and the registered version of the index. Raises DataError, with counts, for vectors that do not fit
    the data, ConfigError for a configuration that names none.

    Args:
        preset: Settings to start from; none: the defaults of all fields
        data: Data folder, or icd10cm for the built-in set; empty: the preset's
        name: Name of the retriever, small letters, digits and hyphens; empty: the preset's
        settings: Settings over the preset; towers.vectors names the folder of the vectors
        config: A whole configuration, instead of a preset
    """
    from components.settings import activate

    chosen = requested_config(preset, data, name, settings, config)
    if chosen.towers.vectors is None:
        raise ConfigError("Nothing to adopt: set towers.base_model to vectors, and towers.vectors to the folder that holds them.")
    activate()
    require_decidable(chosen.name)
    chosen = at_commits(chosen)
    with recorded_flow(chosen.name, FLOW, chosen.model_dump(mode="json")) as recorder:
        made = build_documents(chosen, recorder)
        versions = register_documents(recorder, (made.query_tower, made.document_tower, made.index), made.dataset.digest)
        result = {
            "name": chosen.name,
            "documents": made.index.counts["documents"],
            "queries": made.query_tower.counts["texts"],
            "dimension": made.index.attributes["dimension"],
            "space_id": made.index.space_id,
            "index": f"{versions['index'].name}/{versions['index'].version}",
            "cached": recorder.all_cached,
            "mlflow_run_id": recorder.run_id,
        }
    return ended(result, f"{result['documents']:,} vectors are now {result['index']}.")


def adopted_run(request: RefreshConfig) -> FlowRun | None:
    """The run that adopted the vectors which `request` starts from; None where it starts from a release.

    Adopted vectors count until there is a release, and whenever `adopted` is asked for. Raises PromotionError where nothing was adopted.
    """
    wanted = request.release == ADOPTED
    if not wanted and (request.release != CHAMPION or _released(request.name)):
        return None
    found = newest_flow_run(request.name, FLOW)
    if found is None or found.config is None:
        if wanted:
            raise PromotionError(f"'{request.name}' has adopted no vectors yet; 'scalingnote adopt --vectors DIR' takes some over.")
        return None
    return replace(found, config=with_vectors_at_home(found.config))


def with_vectors_at_home(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded configuration whose vectors, where a command has put them into the home folder, are those in the home as it lies now.

    The home may have been moved since. Their folder is named by a digest of what it holds, so another's of that name has the same.
    """
    towers = recorded.get("towers", {})
    before = Path(towers.get("vectors") or "")
    now = settings.work_folder() / before.parent.name / before.name
    if before.parent.name not in (COLLECTIONS, EXISTING) or not now.is_dir():
        return dict(recorded)
    return {**recorded, "towers": {**towers, "vectors": str(now)}}


def _released(name: str) -> bool:
    try:
        resolve(name, CHAMPION)
    except PromotionError:
        return bool(registry.versions(release_model(name)))
    return True


# --- The index that exists before `scalingnote demo --adopt`: vectors of the built-in data as a team would have them, in Parquet.


def existing_vectors(config: RetrainConfig) -> Path:
    """Encode documents and queries of the data with the student's encoder as published, once, and return the folder of their vectors.

    They are those of the evaluation's untrained encoder, which finds its documents encoded.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from components.artifacts import digest_of, is_complete, seal
    from components.data.dataset import load_dataset
    from components.evaluation.systems import untrained_ranker
    from components.index.search import vectors_of
    from components.towers.base_models import resolve_base
    from components.towers.trained.adoption import query_texts
    from flows.runner import make_step
    from flows.steps import snapshot_step

    snapshot = make_step(snapshot_step(config))
    base = resolve_base(config.distillation.student)
    folder = settings.work_folder() / EXISTING / digest_of([snapshot.digest, base.digest])[:24]
    if is_complete(folder):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    data = load_dataset(snapshot.path)
    published = untrained_ranker(data, config.distillation, None, kept=True)
    doc_ids, queries = data.documents["doc_id"].tolist(), query_texts(data)
    found = {"documents": (doc_ids, vectors_of(published.index, doc_ids))}
    found["queries"] = (list(queries), published.encode(list(queries.values())))
    for kind, (ids, vectors) in found.items():
        pq.write_table(pa.table({"_id": ids, "vector": list(vectors)}), folder / f"{kind}.parquet")
    seal(folder, EXISTING, counts={kind: len(ids) for kind, (ids, _) in found.items()})
    return folder
