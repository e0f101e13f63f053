"""Configuration of stage 1: the two towers on one LLM, or a teacher that is trained already, and encoding with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from components.settings import LARGEST_SEED, StepConfig

# As long as a published model's own may be (see `trained.published`): what it brings is recorded, and read again by every refresh.
LONGEST_TEXT = 1_000_000
WITHOUT_WEIGHTS = ("vectors", "endpoint")  # what `base_model` names where no model is here


class EndpointConfig(StepConfig):
    """A server of embeddings as OpenAI, vLLM and TEI have it. Its key is in SCALINGNOTE_ENDPOINT_KEY or SCALINGNOTE_ENDPOINT_KEY_FILE."""

    url: str = Field("", max_length=2000, description="Address that /embeddings is asked below, such as http://127.0.0.1:8000/v1")
    model: str = Field("", max_length=300, description="Name of the model there")
    batch_size: int = Field(64, ge=1, le=2048, description="Texts in one request")
    concurrency: int = Field(4, ge=1, le=64, description="Requests at the same time")
    timeout: float = Field(60.0, gt=0, le=3600, description="Seconds until a request without an answer counts as failed")
    patience: float = Field(600.0, ge=0, le=86_400, description="Seconds that a request is tried again where the server is busy or silent")
    price: float = Field(0.0, ge=0, le=10_000, description="Price of a million tokens, in whatever currency")
    max_cost: float | None = Field(
        None,
        ge=0,
        description="Highest cost of a run, in that currency: of its estimate, and of each step as it is counted; null: no limit",
    )
    max_tokens: int | None = Field(
        None, ge=1, description="Most tokens of a run: of its estimate, and of each step as they are counted; null: no limit"
    )

    @field_validator("url")
    @classmethod
    def _without_secrets(cls, url: str) -> str:
        if url and not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", url):
            raise ValueError("expected http://HOST/PATH or https://HOST/PATH, without user, password, question mark or key")
        return url.rstrip("/")


class BesideConfig(StepConfig):
    """A model beside that of the towers. One that is null is none, as in a file that takes a preset's back."""

    base_model: str = ""

    @field_validator("base_model", mode="before")
    @classmethod
    def _none_is_empty(cls, given: Any) -> Any:
        return "" if given is None else given


class CompanionConfig(BesideConfig):
    """A small encoder that is trained on the towers' pairs as they are, and whose vectors stand beside theirs as one.

    The cosine of two such vectors is the mean of both encoders' cosines, weighted by `share`.
    """

    base_model: str = Field(
        "", max_length=1000, description="Hugging Face name or local path of an encoder, or all-minilm-l6-v2; empty: the towers stand alone"
    )
    revision: str | None = Field(None, min_length=1, description="Branch, tag or commit of a model from a hub; null: its main branch")

    share: float = Field(0.5, gt=0, lt=1, description="What its cosine counts in a score; the rest is that of towers.base_model")
    pooling: Literal["last", "mean", "cls"] = Field("mean", description="Which token states make its vector")
    attention: Literal["causal", "bidirectional"] = Field("bidirectional", description="Whether a token sees the tokens after it")
    query_prompt: str = Field("", description="Put before every query")
    document_prompt: str = Field("", description="Put before every document")
    training: Literal["lora", "full"] = Field("lora", description="Two adapters on one frozen encoder, or two fully trained encoders")
    lora_rank: int = Field(16, ge=1, le=512, description="Rank of each adapter; its scale is twice that")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="Peak learning rate; a fully trained encoder wants a tenth of it")
    steps: int = Field(150, ge=1, le=10_000_000, description="Optimizer steps of towers.batch_size pairs")


class JudgeConfig(BesideConfig):
    """A model whose scores the towers learn to order documents by; no vector holds anything of it."""

    base_model: str = Field(
        "",
        max_length=1000,
        description="Hugging Face name or local path of a cross-encoder with one score, or of a SentenceTransformer; empty: no judge",
    )
    revision: str | None = Field(None, min_length=1, description="Branch, tag or commit of a model from a hub; null: its main branch")

    weight: float = Field(1.0, gt=0, le=100, description="Weight of its loss beside the contrastive one")
    temperature: float | None = Field(
        None, gt=0, le=100, description="Temperature of its scores; null: 1 for a cross-encoder's, towers.temperature for cosines"
    )
    documents: int = Field(
        8, ge=1, le=1000, description="Documents of a batch that it scores beside the relevant one: those that the towers find nearest"
    )
    max_length: int | None = Field(
        None,
        ge=8,
        le=32768,
        description="Tokens that it reads, of a cross-encoder query and document together; null: twice what the towers read of both",
    )
    batch_size: int = Field(32, ge=1, le=100_000, description="Pairs of query and document that a cross-encoder scores at once")


class TowerConfig(StepConfig):
    """Stage 1: contrastive training of a query and a document adapter on one frozen decoder."""

    base_model: str = Field(
        "gemma3-270m",
        min_length=1,
        description="Hugging Face name or local path of a decoder, or gemma3-270m (carried by the package of that name); with @6 behind "
        "it six of its layers, first and last ones, with @first6 its first six; vectors, for those that exist already; or endpoint",
    )
    endpoint: EndpointConfig = Field(default_factory=EndpointConfig, description="The server, for the base model endpoint")
    vectors: str | None = Field(
        None,
        min_length=1,
        description="Folder with vectors of documents and, as far as there are any, of queries, for the base model vectors",
    )
    revision: str | None = Field(
        None,
        min_length=1,
        description="Branch, tag or commit of a model from a hub; null: its main branch. The commit is recorded and loaded ever after",
    )
    trust_remote_code: bool = Field(
        False, description="Run the Python code that a model of a hub brings; only of the full commit in `revision`. Read it first"
    )
    pooling: Literal["last", "mean", "cls"] = Field("last", description="Which token states make the embedding")
    query_prompt: str = Field("query: ", description="Put before every query")
    document_prompt: str = Field("document: ", description="Put before every document")
    max_query_length: int = Field(32, ge=4, le=LONGEST_TEXT, description="Tokens of a query, prompt and end token included")
    max_document_length: int = Field(128, ge=4, le=LONGEST_TEXT, description="Tokens of a document, prompt and end token included")
    attention: Literal["causal", "bidirectional"] = Field("causal", description="Whether a token sees the tokens after it")
    matryoshka: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="Prefixes of the vectors that are trained to work alone, such as [128, 256]"
    )
    dimension: int | None = Field(
        None,
        ge=1,
        description="Dimensions kept of a vector: null for all, else one of `matryoshka` (any where nothing is trained). "
        "A companion's come on top",
    )
    training: Literal["lora", "full", "none"] = Field(
        "lora",
        description="Two adapters on one frozen model, two fully trained models, or none: a published embedding model as it is, whose own "
        "pooling, prompts, lengths and dimension take the place of those that are not set here",
    )
    lora_rank: int = Field(16, ge=1, le=512, description="Rank of each adapter")
    lora_alpha: int = Field(32, ge=1, le=2048, description="Scale of each adapter")
    lora_layers: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Layers with adapters, counted from the output; those below cost no gradient, and one forward pass alone. null: all",
    )
    temperature: float = Field(0.03, gt=0, le=1, description="Temperature of InfoNCE on cosine similarities")
    learning_rate: float = Field(3e-4, gt=0, le=1, description="Peak learning rate")
    warmup_share: float = Field(0.1, ge=0, le=1, description="Share of the steps with a rising learning rate")
    steps: int = Field(150, ge=1, le=10_000_000, description="Optimizer steps")
    batch_size: int = Field(32, ge=2, le=1_000_000, description="Pairs that are negatives for each other")
    chunk_size: int = Field(8, ge=1, le=1_000_000, description="Full-length documents in memory at once; below the batch: cached gradients")
    activation_checkpointing: bool | None = Field(
        None,
        description="Keep the layers' inputs alone for the backward pass and work the layers out again: equal gradients, one more "
        "forward pass, far less memory. null: where a chunk would else take more than half of the memory that is free",
    )
    length_window: int = Field(1, ge=1, le=10_000, description="Batches whose pairs are sorted by length among each other; 1 for none")
    homogeneous_batches: bool = Field(False, description="All pairs of a batch from one data set, when several are mixed (data.mix)")
    batches_by: str = Field(
        "",
        description="Field of the documents' metadata whose value the pairs of a batch share, such as chapter: their negatives are near "
        "misses, at no cost; empty: any pairs",
    )
    hard_negatives: int = Field(0, ge=0, le=1000, description="Mined negatives for each pair; 0 for in-batch negatives alone")
    mining_start: int = Field(50, ge=0, description="Step of the first mining; before it the towers cannot tell what is hard")
    mining_interval: int = Field(0, ge=0, description="Steps from one mining to the next; 0 for a single one")
    mining_depth: int = Field(50, ge=1, le=10_000, description="Nearest documents of a query that negatives are drawn from")
    positive_share: float | None = Field(
        0.95, gt=0, le=1, description="Drop a mined negative above this share of the positive's score; null keeps all"
    )
    suspect_margin: float | None = Field(
        0.1, ge=0, le=2, description="Mask a negative of the batch that scores above the positive by more than this; null masks none"
    )
    query_prediction_weight: float = Field(
        0.0, ge=0, le=100, description="Weight of predicting the query's tokens from its document's vector"
    )
    processes: int = Field(1, ge=1, le=1024, description="Processes on this machine that share every batch")
    sharding: Literal["none", "fsdp"] = Field("none", description="fsdp: full fine-tuning of a model that one device cannot hold")
    checkpoint_every: int = Field(25, ge=1, description="Steps between checkpoints")
    merge_last: int = Field(
        1,
        ge=1,
        le=100,
        description="The towers become the mean of so many weights: those after the last step and, checkpoint_every steps apart, before. "
        "1: those of the last step alone",
    )
    max_mean_cosine: float = Field(0.9, gt=0, le=1, description="Collapse check: highest mean cosine of two random embeddings")
    min_effective_rank: float = Field(4.0, ge=1, description="Collapse check: lowest effective rank of the embeddings")
    companion: CompanionConfig = Field(default_factory=CompanionConfig, description="A second, small encoder beside the towers")
    judge: JudgeConfig = Field(default_factory=JudgeConfig, description="A model that says in training which documents are how relevant")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto takes bfloat16 where the machine is fast with it")
    seed: int = Field(13, ge=0, le=LARGEST_SEED, description="Seed of adapters and of the order of the data")

    @model_validator(mode="before")
    @classmethod
    def _nothing_to_train(cls, given: Any) -> Any:
        """What has no weights here cannot be trained here."""
        if isinstance(given, Mapping) and given.get("base_model") in WITHOUT_WEIGHTS and "training" not in given:
            return {**given, "training": "none"}
        return given

    @field_validator("companion", "endpoint", "judge", mode="before")
    @classmethod
    def _null_is_none(cls, given: Any) -> Any:
        return {} if given is None else given

    @model_validator(mode="after")
    def _can_be_merged(self) -> TowerConfig:
        if self.merge_last > 1 and self.sharding == "fsdp":
            raise ValueError("merge_last keeps a second copy of all trained weights in one place; set it to 1 with sharding fsdp")
        if self.merge_last > 1 and (self.merge_last - 1) * self.checkpoint_every >= self.steps:
            raise ValueError(
                f"merge_last {self.merge_last} with checkpoint_every {self.checkpoint_every} reaches back beyond the first of {self.steps} "
                "steps; lower one of them"
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> TowerConfig:
        if self.base_model in WITHOUT_WEIGHTS and self.training != "none":
            raise ValueError(f"base_model {self.base_model} has no weights that could be trained; set training to none")
        if (self.base_model == "vectors") != (self.vectors is not None):
            raise ValueError("base_model vectors and a folder in towers.vectors belong together; set both or neither")
        if self.base_model == "endpoint" and not (self.endpoint.url and self.endpoint.model):
            raise ValueError("base_model endpoint needs towers.endpoint.url and towers.endpoint.model; set both")
        if self.training != "none" and self.pooling == "cls" and self.attention == "causal":
            raise ValueError("pooling cls takes the first token, which sees no other in causal attention; set attention to bidirectional")
        if self.training != "none" and self.dimension is not None and self.dimension not in self.matryoshka:
            raise ValueError(
                f"dimension {self.dimension} is not in the matryoshka list {list(self.matryoshka)}; add it there or choose from it"
            )
        if self.sharding == "fsdp" and self.training != "full":
            raise ValueError("sharding fsdp is for training full; adapters are small enough to be kept whole on every device")
        if self.hard_negatives > self.mining_depth:
            raise ValueError(f"hard_negatives {self.hard_negatives} cannot be drawn from mining_depth {self.mining_depth} documents")
        if self.batch_size % self.processes:
            raise ValueError(f"batch_size {self.batch_size} cannot be shared equally by {self.processes} processes")
        return self

    @model_validator(mode="after")
    def _companion_fits(self) -> TowerConfig:
        if self.companion.base_model in WITHOUT_WEIGHTS:
            raise ValueError(f"companion.base_model {self.companion.base_model} has no weights that could be trained; name an encoder")
        if self.companion.base_model and self.base_model in WITHOUT_WEIGHTS:
            raise ValueError(f"a companion stands beside towers with weights, not {self.base_model}; set companion.base_model to ''")
        if self.companion.base_model and self.companion.pooling == "cls" and self.companion.attention == "causal":
            raise ValueError("companion.pooling cls takes the first token, which sees no other in causal attention; set it to mean or last")
        if self.companion.base_model and self.sharding != "none":
            raise ValueError("a companion stands beside towers that one device can hold; set sharding to none")
        return self

    @model_validator(mode="after")
    def _judge_has_work(self) -> TowerConfig:
        if self.judge.base_model in WITHOUT_WEIGHTS:
            raise ValueError(f"judge.base_model {self.judge.base_model} is no model that could score texts; name one, or set it to ''")
        if self.judge.base_model and self.training == "none":
            raise ValueError("a judge takes part in a training, and training is none; set judge.base_model to '', or training to lora")
        return self

    @model_validator(mode="after")
    def _code_is_pinned(self) -> TowerConfig:
        if not self.trust_remote_code:
            return self
        if not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError("trust_remote_code runs code of others, so it needs the full commit (40 digits) in revision; set it")
        if self.training == "full":
            raise ValueError("trust_remote_code goes with training lora or none; a fully trained model would carry that code along")
        return self
