"""The command export: a release's vectors for a store that a team has, or its encoders as one package of sentence-transformers."""

from __future__ import annotations

import argparse
import time
from typing import Any

from components.errors import ConfigError
from flows.cli.output import only_result_on_stdout, retriever_name, show


def export(options: argparse.Namespace) -> None:
    """Write Parquet shards, or fill a Qdrant collection, or both; all that can be wrong is said before anything is written."""
    if options.router is not None:
        if options.to is not None or options.qdrant is not None:
            raise ConfigError("--router writes encoders, --to and --qdrant write vectors. Give one of the two.")
        _export_router(options)
        return
    if options.part is not None:
        raise ConfigError(f"--part {options.part} says which encoders --router writes; --to and --qdrant write vectors. Leave it out.")
    if options.to is None and options.qdrant is None:
        raise ConfigError(
            "export needs a place to write to: --to FOLDER for Parquet shards, --qdrant PATH|URL, or both; or --router FOLDER for encoders."
        )
    from components.index import export as exporting
    from components.promotion.release_index import verified_index

    if options.to is not None:
        exporting.require_empty(options.to)
    release, index = verified_index(retriever_name(options), options.release)
    source = exporting.open_source(index)
    collection = options.collection or retriever_name(options)
    client = None if options.qdrant is None else exporting.open_qdrant(options.qdrant, collection)
    started = time.monotonic()
    result: dict[str, Any] = {"release": release, "index_digest": index.digest, "space_id": index.space_id}
    if options.to is not None:
        written = exporting.export_parquet(source, options.to)
        result |= {"folder": str(options.to), "digest": written.digest, **written.counts}
    if client is not None:
        result |= {"collection": collection, "documents": exporting.export_qdrant(source, client, collection)}
        client.close()
    result["seconds"] = round(time.monotonic() - started, 2)
    show(options, result, _sentence(result))


def _export_router(options: argparse.Namespace) -> None:
    from components.distillation.router import export_router, require_new
    from components.promotion.model_cards import Part, folders_of, model_card
    from components.promotion.pinned import open_pinned

    require_new(options.router)
    part: Part = options.part or "pair"
    release = open_pinned(retriever_name(options), options.release)
    with only_result_on_stdout(options):
        found = export_router(folders_of(release, part), options.router, lambda differences: model_card(release, part, differences))
    routes = " and ".join(f"encode_{role} (within {difference:.1g} of the release)" for role, difference in found.items())
    missing = " and ".join(f"encode_{role}" for role in ("query", "document") if role not in found)
    alone = f" {missing} is refused: there is no encoder for it in the package." if missing else ""
    result = {"release": release.title, "folder": str(options.router), "part": part, "space_id": release.index.space_id}
    text = f"{release.title} as one package of sentence-transformers in {options.router}: {routes}.{alone} README.md is its model card."
    show(options, {**result, "differences": found}, text)


def _sentence(result: dict[str, Any]) -> str:
    places = [f"{result['shards']:,} Parquet shards in {result['folder']}"] if "folder" in result else []
    places += [f"the Qdrant collection '{result['collection']}'"] if "collection" in result else []
    return (
        f"{result['documents']:,} documents of {result['release']} exported in {result['seconds']:.1f} s: {', and '.join(places)}. "
        f"Query vectors must come from the space {result['space_id'][:12]}."
    )
