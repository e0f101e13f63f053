"""The command export: a release's vectors for a store that a team has, its encoders as one package, or all of it signed for others."""

from __future__ import annotations

import argparse
import time
from typing import Any

from components.errors import ConfigError
from flows.cli.output import only_result_on_stdout, retriever_name, show


def export(options: argparse.Namespace) -> None:
    """Write Parquet shards, or fill a Qdrant collection, or both; all that can be wrong is said before anything is written."""
    vectors = options.to is not None or options.qdrant is not None
    if (vectors, options.router is not None, options.signed is not None).count(True) > 1:
        raise ConfigError("--router writes encoders, --to and --qdrant write vectors, --signed a whole release. Give one of the three.")
    if options.router is not None:
        _export_router(options)
        return
    if options.signed is not None:
        _export_signed(options)
        return
    if options.part is not None:
        raise ConfigError(f"--part {options.part} says which encoders --router writes; --to and --qdrant write vectors. Leave it out.")
    if not vectors:
        raise ConfigError(
            "export needs a place to write to: --to FOLDER for Parquet shards, --qdrant PATH|URL, or both; or --router FOLDER for "
            "encoders; or --signed FOLDER for the whole release, signed for others."
        )
    from components.index import export as exporting
    from components.release.release_index import verified_index

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
    from components.evidence.model_cards import Part, folders_of, model_card
    from components.release.open import open_pinned

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


def _export_signed(options: argparse.Namespace) -> None:
    import shlex

    from components.promotion.model_signing import BUNDLE, export_signed

    release, key, parts = export_signed(retriever_name(options), options.release, options.signed)
    result = {"release": release, "folder": str(options.signed), "signature": str(options.signed / BUNDLE), "key_id": key, "digests": parts}
    command = shlex.join(["model_signing", "verify", "certificate", str(options.signed), "--signature", str(options.signed / BUNDLE)])
    lines = (
        f"{release} with its parts in {options.signed}, signed for others (OpenSSF Model Signing 1.0) by {key[:16]}. They check it with",
        f"  {command} --certificate_chain CERTIFICATE",
        "where CERTIFICATE is the key's own, from `scalingnote keys certificate`. Give it to them on another way than the folder.",
    )
    show(options, result, "\n".join(lines))


def _sentence(result: dict[str, Any]) -> str:
    places = [f"{result['shards']:,} Parquet shards in {result['folder']}"] if "folder" in result else []
    places += [f"the Qdrant collection '{result['collection']}'"] if "collection" in result else []
    return (
        f"{result['documents']:,} documents of {result['release']} exported in {result['seconds']:.1f} s: {', and '.join(places)}. "
        f"Query vectors must come from the space {result['space_id'][:12]}."
    )
