"""Configuration of the studies: a retraining's configuration and one more section, `study`, so the presets serve both."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from components.config import StepConfig
from flows.config import RetrainConfig

NoiseKind = Literal["typos", "dropped_words", "upper_case", "lower_case", "verbosity"]
Rate = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0)]
Layers = Annotated[int, Field(ge=1)]
Documents = Annotated[int, Field(ge=200, le=10**12)]


class StudyConfig(StepConfig):
    """What the studies vary and measure; each reads the fields it needs."""

    layers: tuple[Layers, ...] = Field(
        (1, 2, 4, 6), description="retention, worth: numbers of layers kept; those the encoder does not have are left out"
    )
    static: bool = Field(True, description="retention, worth: also the static student, which has no transformer")
    seeds: tuple[Seed, ...] = Field(
        (),
        description="Seeds that everything a study compares is trained with; empty: that of the section and the two after it. With one "
        "seed nothing is claimed",
    )
    noise: dict[NoiseKind, tuple[Rate, ...]] = Field(
        {"typos": (0.1, 0.3), "dropped_words": (0.1, 0.3), "upper_case": (1.0,), "lower_case": (1.0,), "verbosity": (1.0,)},
        description="robustness: typos, dropped_words, upper_case, lower_case, verbosity, each with the shares from 0 to 1 of the words "
        "(for verbosity of the queries) that change",
    )
    noise_seed: int = Field(13, ge=0, description="robustness: seed of the noise")
    foreign_documents: str = Field("", description="robustness: data folder whose documents are mixed into the index; empty for none")
    max_foreign_documents: int = Field(10_000, ge=50, description="robustness: at most this many of them")
    watts: float = Field(65.0, gt=0, le=100_000, description="cost_benefit: power that the machine draws under load, in watts")
    price_per_kwh: float = Field(0.3, ge=0, le=1000, description="cost_benefit: price of a kilowatt-hour of electricity")
    price_per_hour: float = Field(0.1, ge=0, le=100_000, description="cost_benefit: price of the machine for an hour, power apart")
    small_encoder: str = Field(
        "", description="baselines, worth: encoder of the untrained, symmetric and end-to-end systems; empty: the student's"
    )
    small_learning_rates: tuple[float, ...] = Field(
        (1e-4, 3e-4), min_length=1, description="baselines, worth: peak learning rates of the small encoders; the best on dev counts"
    )
    pair_passes: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="baselines, worth: passes of the symmetric and end-to-end pairs over train judgements and titles; null: as many as the "
        "student's refinement takes",
    )
    worth_margin: float | None = Field(
        None, gt=0, le=0.5, description="worth: largest loss against the best that is accepted for less cost; null: policy.margin"
    )
    worth_queries: int = Field(
        1_000_000,
        ge=1,
        le=10**12,
        description="worth: queries that a system answers before it is built anew; their time is a part of its cost",
    )
    scaling_models: tuple[str, ...] = Field(
        (),
        description="scaling_law: decoders of one family, such as decoder-128x4 or gemma3-270m@6; empty: towers.base_model cut to layers",
    )
    scaling_layers: tuple[int, ...] = Field(
        (1, 2, 4, 8), description="scaling_law: layers kept of towers.base_model beside the whole one, when scaling_models is empty"
    )
    scaling_shares: tuple[float, ...] = Field(
        (0.25, 0.5, 1.0), min_length=1, description="scaling_law: shares of the training pairs, above 0 up to 1"
    )
    scaling_negatives: int = Field(256, ge=1, le=100_000, description="scaling_law: random negatives of the contrastive entropy")
    scaling_refits: int = Field(200, ge=20, le=10_000, description="scaling_law: resamples behind the intervals of a fit")
    growth_sizes: tuple[Documents, ...] = Field(
        (10_000, 30_000, 100_000, 200_000, 400_000, 1_000_000),
        min_length=1,
        description="corpus_growth: documents in each measured index; beyond the real ones they are synthetic",
    )
    growth_targets: tuple[Documents, ...] = Field(
        (100_000_000, 1_000_000_000), description="corpus_growth: documents that the measurements are extrapolated to"
    )
    growth_queries: int = Field(500, ge=20, le=100_000, description="corpus_growth: at most this many judged queries are asked")
    currency: str = Field("USD", min_length=1, max_length=8, description="cost_benefit: currency of the prices")

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed stands there twice, which would count one training as two; name different seeds")
        return seeds


class StudySettings(RetrainConfig):
    """A retraining's configuration with the section `study`."""

    study: StudyConfig = Field(default_factory=StudyConfig, description="What the studies vary")
