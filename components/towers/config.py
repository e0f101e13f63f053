"""Configuration of stage 1: the two towers on one LLM, and encoding with them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.config import StepConfig


class TowerConfig(StepConfig):
    """Stage 1: contrastive training of a query and a document adapter on one frozen decoder."""

    base_model: str = Field(
        "gemma3-270m",
        min_length=1,
        description="Hugging Face name or local path of a decoder, or gemma3-270m (carried by the package of that name)",
    )
    pooling: Literal["last", "mean"] = Field("last", description="Which token states make the embedding")
    query_prompt: str = Field("query: ", description="Put before every query")
    document_prompt: str = Field("document: ", description="Put before every document")
    max_query_length: int = Field(32, ge=4, le=4096, description="Tokens of a query, prompt and end token included")
    max_document_length: int = Field(128, ge=4, le=32768, description="Tokens of a document, prompt and end token included")
    lora_rank: int = Field(16, ge=1, le=512, description="Rank of each adapter")
    lora_alpha: int = Field(32, ge=1, le=2048, description="Scale of each adapter")
    temperature: float = Field(0.03, gt=0, le=1, description="Temperature of InfoNCE on cosine similarities")
    learning_rate: float = Field(3e-4, gt=0, le=1, description="Peak learning rate")
    warmup_share: float = Field(0.1, ge=0, le=1, description="Share of the steps with a rising learning rate")
    steps: int = Field(150, ge=1, le=10_000_000, description="Optimizer steps")
    batch_size: int = Field(32, ge=2, le=1_000_000, description="Pairs that are negatives for each other")
    chunk_size: int = Field(32, ge=1, le=1_000_000, description="Pairs in memory at once; smaller than the batch: cached gradients")
    checkpoint_every: int = Field(25, ge=1, description="Steps between checkpoints")
    max_mean_cosine: float = Field(0.9, gt=0, le=1, description="Collapse check: highest mean cosine of two random embeddings")
    min_effective_rank: float = Field(4.0, ge=1, description="Collapse check: lowest effective rank of the embeddings")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto takes bfloat16 where the machine is fast with it")
    seed: int = Field(13, ge=0, description="Seed of adapters and of the order of the data")


class EncodingConfig(StepConfig):
    """Encoding of the corpus in shards."""

    tokens_per_batch: int = Field(2048, ge=64, le=10_000_000, description="Upper bound on tokens, padding included, in one batch")
    shard_size: int = Field(2048, ge=1, le=10_000_000, description="Documents in one shard")
