"""Configuration of the encoding of a corpus and of its index."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.settings import LARGEST_SEED, StepConfig


class EncodingConfig(StepConfig):
    """Encoding of the corpus in shards."""

    tokens_per_batch: int = Field(2048, ge=64, le=10_000_000, description="Upper bound on tokens, padding included, in one batch")
    shard_size: int = Field(2048, ge=1, le=10_000_000, description="Documents in one shard, the unit that a killed worker loses")
    runner: Literal["in_process", "process_pool", "dask"] = Field(
        "in_process", description="Where shards are encoded: here, in processes of this machine, or on a Dask cluster"
    )
    workers: int = Field(1, ge=1, le=1024, description="Processes that encode, each a shard at a time; on a machine with GPUs one each")
    dask_address: str = Field(
        "", description="Scheduler of a Dask cluster, such as tcp://host:8786; empty: a local one of that many workers"
    )
    attempts: int = Field(3, ge=1, le=20, description="How often a shard is tried whose worker died")


class IndexConfig(StepConfig):
    """How the document vectors are made searchable."""

    index_key: str = Field(
        "auto", min_length=1, max_length=120, description="auto, or a FAISS factory key: Flat, IVF1024,Flat, HNSW32, IVF4096,PQ48x4fs, ..."
    )
    exact_below: int = Field(100_000, ge=0, description="auto: corpora of fewer documents are searched exactly")
    target_recall: float = Field(
        0.97, gt=0, le=1, description="Recall against exact search that the search parameters are tuned to; above policy.min_ann_recall"
    )
    recall_at: int = Field(100, ge=1, le=10_000, description="Depth of that recall")
    tuning_queries: int = Field(1000, ge=10, le=100_000, description="At most this many dev queries for the tuning")
    nprobe: int | None = Field(None, ge=1, description="Lists visited by an inverted file; null: tuned")
    ef_search: int | None = Field(None, ge=1, le=1_000_000, description="Width of the search in a graph; null: tuned")
    refine: Literal["none", "int8", "fp16"] = Field(
        "fp16", description="Stored vectors that score the best candidates again; with fp16 a refresh needs nothing else"
    )
    refine_factor: int | None = Field(None, ge=1, le=1000, description="Candidates scored again for each document asked for; null: tuned")
    train_vectors: int = Field(262_144, ge=256, description="At most this many vectors train the template")
    layout: Literal["merged", "shards"] = Field("merged", description="One index file, or one for each shard, opened together")
    part_size: int = Field(262_144, ge=1, description="Documents from which a part of the index is full and the next begins")
    compact_share: float = Field(0.2, gt=0, le=1, description="Refresh: share of deleted rows from which the index is written anew")
    max_imbalance: float = Field(2.0, ge=1, description="Refresh: growth of the lists' imbalance from which a new template is due")
    max_distance: float = Field(1.2, ge=1, description="Refresh: distance of new vectors to their centroids, over that of the old ones")
    max_recall_loss: float = Field(0.05, gt=0, le=1, description="Refresh: loss of recall on new documents against the old ones")
    probe_tolerance: float = Field(0.01, gt=0, le=0.5, description="Largest 1 - cosine of a probe text against its record at load")
    seed: int = Field(13, ge=0, le=LARGEST_SEED, description="Seed of the sample that trains the template")
