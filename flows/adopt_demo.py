"""The index that exists before `scalingnote demo --adopt`: vectors of the built-in data as a team would have them, in Parquet."""

from __future__ import annotations

from pathlib import Path

from components import settings
from flows.config import RetrainConfig

ENCODER = "all-minilm-l6-v2"


def existing_vectors(config: RetrainConfig) -> Path:
    """Encode documents and queries of the data with the published MiniLM, once, and return the folder of their vectors."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from components.artifacts import digest_of, is_complete, seal
    from components.data.dataset import load_dataset
    from components.towers.base_models import resolve_base
    from components.towers.config import TowerConfig
    from components.towers.encoder import published_encoder
    from components.towers.trained.adoption import query_texts
    from components.towers.trained.published import with_own_settings
    from components.towers.two_towers import published_contracts
    from flows.runner import make_step
    from flows.steps import snapshot_step

    snapshot = make_step(snapshot_step(config))
    base = resolve_base(ENCODER)
    folder = settings.work_folder() / "existing_vectors" / digest_of([snapshot.digest, base.digest])[:24]
    if is_complete(folder):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    data = load_dataset(snapshot.path)
    contracts = published_contracts(base, with_own_settings(TowerConfig(base_model=ENCODER, training="none")))
    encoder = published_encoder(base, contracts["document"])
    texts = {"documents": dict(zip(data.documents["doc_id"], data.document_texts(), strict=True)), "queries": query_texts(data)}
    for kind, known in texts.items():
        vectors = encoder.encode(list(known.values()), progress=f"{ENCODER}: {kind}")
        pq.write_table(pa.table({"_id": list(known), "vector": list(vectors)}), folder / f"{kind}.parquet")
    seal(folder, "existing_vectors", counts={kind: len(known) for kind, known in texts.items()})
    return folder
