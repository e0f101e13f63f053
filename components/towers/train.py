"""Stage 1: train both towers contrastively and save them, or take a published model as it is. A killed training continues from its last
checkpoint. A small encoder beside them, the companion, is trained apart and put beside them in a step that trains nothing.

One code path serves one process and many: each process of a group runs `take_part`, the main one writes. `train_towers` starts the
processes that the configuration asks for on this machine.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from components.artifacts import (
    MANIFEST,
    SIGNATURE,
    Artifact,
    DatasetArtifact,
    Scalar,
    digest_of,
    file_sha256,
    linked,
    open_artifact,
    read_json,
    seal,
    write_json,
)
from components.data.dataset import load_dataset
from components.errors import ConfigError
from components.towers.base_models import BaseModel, named_as, resolve_base, tower_base
from components.towers.config import CompanionConfig, TowerConfig
from components.towers.contract import (
    COMPANION,
    CONTRACT_FILE,
    PROBE_FILE,
    ROLES,
    EncodingContract,
    Role,
    Spread,
    load_contract,
    measure_spread,
    record_probes,
    refuse_collapse,
    save_contract,
    space_id_of,
)
from components.towers.device import give_back_memory
from components.towers.encoder import joined_contract, load_tower
from components.towers.loop import CHECKPOINT, Training
from components.towers.losses import Judge
from components.towers.negatives import check_mining
from components.towers.pairs import Pairs, training_pairs
from components.towers.processes import current_world, from_main, join_world, launched, require_same_data, train_in_processes, wait_for_all
from components.towers.trained.published import other_prompts, read_published, with_own_settings
from components.towers.two_towers import TwoTowers, published_contracts

LOG = "training_log.json"
COLLAPSE_SAMPLE = 256
Bases = tuple[BaseModel, BaseModel | None]  # of the towers, and of what judges them
OF_TEXTS = ("pooling", "query_prompt", "document_prompt")
OF_TRAINING = ("steps", "learning_rate", "hard_negatives", "query_prediction_weight", "matryoshka", "merge_last")
JUDGE = "judge"  # the section of its settings, and what lineage calls it
# What a companion takes of the towers' settings: what concerns data and loss. Its chunks are theirs too, or larger.
SHARED = (
    "max_query_length", "max_document_length", "temperature", "warmup_share", "batch_size", "length_window", "homogeneous_batches",
    "batches_by", "suspect_margin", "checkpoint_every", "max_mean_cosine", "min_effective_rank", "precision", "seed",
)  # fmt: skip


def train_on(dataset: DatasetArtifact, config: TowerConfig, folder: Path) -> Artifact:
    """The step train_towers: `train_towers` on the pairs of a data set. Raises as that does, and DataError for data without pairs."""
    pairs = training_pairs(load_dataset(dataset.path), config.batches_by)
    return train_towers(pairs, config, {"dataset": dataset.digest}, folder)


def train_towers(pairs: Pairs, config: TowerConfig, parents: Mapping[str, str], folder: Path) -> Artifact:
    """Train and write `folder`/query_tower and `folder`/document_tower, each an encoder artifact of its own.

    Raises ModelError for an unusable base model, ConfigError for settings that cannot work together, DataError when processes hold
    different data, and CollapseError when the embeddings have collapsed. A companion is trained apart (`train_companion`) and put beside
    them afterwards (`join_companion`): here it is looked at alone, so that what is wrong with it is said before the towers are trained.
    """
    if config.companion.base_model:
        with named_as(COMPANION):
            own = companion_towers(config)
            TwoTowers(_resolved(pairs, own), own)
        give_back_memory()
        config = config.model_copy(update={"companion": CompanionConfig()})
    if config.training == "none":
        return take_as_published(pairs, config, parents, folder)
    check_mining(config)
    if config.processes > 1 and not launched():
        train_in_processes(pairs, config, parents, folder)
    else:
        take_part(pairs, config, parents, folder)
    return open_artifact(folder)


def train_companion_on(dataset: DatasetArtifact, config: TowerConfig, folder: Path) -> Artifact:
    """The step train_companion: `train_companion` on the pairs of a data set. Raises as `train_on` does."""
    pairs = training_pairs(load_dataset(dataset.path), config.batches_by)
    return train_companion(pairs, config, {"dataset": dataset.digest}, folder)


def train_companion(pairs: Pairs, config: TowerConfig, parents: Mapping[str, str], folder: Path) -> Artifact:
    """Train the small encoder of `config.companion` as towers of its own, in this process alone. Raises as `train_towers` does."""
    with named_as(COMPANION):
        take_part(pairs, companion_towers(config), parents, folder, "train companion")
    return open_artifact(folder)


def join_companion(towers: Artifact, companion: Artifact, share: float, folder: Path) -> Artifact:
    """The step join_companion: both `towers` with those of the `companion` beside them, whose cosine counts `share` of a score.

    The towers of one space then; nothing is trained, and their files are linked. Raises as `load_tower` does.
    """
    of_parts = shutil.ignore_patterns(MANIFEST, SIGNATURE, CONTRACT_FILE, PROBE_FILE, ".*")
    shutil.copytree(towers.path, folder, copy_function=linked, ignore=of_parts, dirs_exist_ok=True)
    for role in ROLES:
        tower = f"{role}_tower"
        hidden, target = shutil.ignore_patterns(".*"), folder / tower / COMPANION
        shutil.copytree(companion.path / tower, target, copy_function=linked, ignore=hidden, dirs_exist_ok=True)
    own, beside = ({role: load_contract(made.path / f"{role}_tower")[0] for role in ROLES} for made in (towers, companion))
    contracts = {role: joined_contract(own[role], beside[role], share) for role in ROLES}
    parents = {"towers": towers.digest, "companion": companion.digest, **towers.parents}
    recorded = {"companion": open_artifact(companion.path / "query_tower").attributes["base_model"]}
    judged = {key: value for key, value in open_artifact(towers.path / "query_tower").attributes.items() if key.startswith(JUDGE)}
    _seal_towers(contracts, parents, folder, recorded | judged)
    attributes = {f"companion_{key}": companion.attributes[key] for key in ("final_loss", "steps")}
    return seal(folder, "towers", counts=towers.counts, parents=parents, attributes={**towers.attributes, **attributes})


def companion_towers(config: TowerConfig) -> TowerConfig:
    """The configuration of the companion as towers of their own: its own settings, and those of the towers' that it shares."""
    own = config.companion
    # Of short texts a small encoder keeps little: all of a batch at once spares what the cached gradients cost.
    chunk = max(config.chunk_size, min(config.batch_size, 32)) if config.max_document_length <= 128 else config.chunk_size
    shared = {field: getattr(config, field) for field in SHARED}
    return TowerConfig(**own.model_dump(exclude={"share"}), **shared, lora_alpha=2 * own.lora_rank, chunk_size=chunk)


def take_part(pairs: Pairs, config: TowerConfig, parents: Mapping[str, str], folder: Path, label: str = Training.label) -> None:
    """Train as one process of those that a launcher started, or as the only one; `folder` is shared by all of them.

    `label` names the training in its progress. Raises ConfigError for a companion and for batches that the processes cannot share,
    DataError for processes with other data, ModelError and CollapseError as the training does.
    """
    world = join_world()
    if config.companion.base_model:
        raise ConfigError("A companion is trained in one process. Leave torchrun out and set towers.processes, or train without companion.")
    _check_shares(config)
    bases = _resolved(pairs, config), _judge_base(config)
    require_same_data(_identity(pairs, config, bases, folder))
    losses, spread = _trained(pairs, config, bases, folder, parents, label)
    if world.main:
        write_json(folder / LOG, {"loss": losses, "spread": {k: vars(v) for k, v in spread.items()}})
        attributes = {"final_loss": round(float(np.mean(losses[-10:])), 4), "steps": config.steps, **_recorded(bases[1])}
        (folder / CHECKPOINT).unlink(missing_ok=True)
        seal(folder, "towers", counts={"pairs": len(pairs.pairs)}, parents=parents, attributes=attributes)
    wait_for_all()


def _judge_base(config: TowerConfig) -> BaseModel | None:
    """The model that judges; the main process looks for it first, since that may fetch it. Raises ModelError."""
    own = config.judge
    if not own.base_model:
        return None
    with named_as(JUDGE):
        found = from_main(lambda: resolve_base(own.base_model, revision=own.revision))
        return found if current_world().main else resolve_base(own.base_model, revision=found.revision)


def _judge(base: BaseModel | None, config: TowerConfig) -> Judge | None:
    with named_as(JUDGE):
        return None if base is None else Judge(base, config)


def _recorded(judge: BaseModel | None) -> dict[str, Scalar]:
    """What lineage tells of the model that the towers learnt to order documents by."""
    if judge is None:
        return {}
    revision = {f"{JUDGE}_revision": judge.revision} if judge.revision else {}
    return {JUDGE: judge.name, f"{JUDGE}_digest": judge.digest, **revision}


def _trained(
    pairs: Pairs, config: TowerConfig, bases: Bases, folder: Path, parents: Mapping[str, str], label: str
) -> tuple[list[float], dict[str, Spread]]:
    """Train, write both towers and seal them; the training's memory is given back before a finished tower is loaded."""
    judge = _judge(bases[1], config)  # before the seeds of the towers are set
    towers = TwoTowers(bases[0], config)
    run = Training(towers, pairs, config, folder)
    run.label, run.judge = label, judge
    run.to_end()
    spread, losses = _check_collapse(run, config), run.losses
    contracts = _write_towers(towers, folder)
    del run, towers, judge
    give_back_memory()
    if contracts:
        _seal_towers(contracts, parents, folder, _recorded(bases[1]))
    return losses, spread


def take_as_published(pairs: Pairs, config: TowerConfig, parents: Mapping[str, str], folder: Path) -> Artifact:
    """Write both towers of a model that is trained already: contracts, probes, and nothing of its weights.

    Prompts, pooling and lengths are the configuration's, which holds the model's own where nobody set others (`with_own_settings`). How
    far the vectors spread is recorded and not judged: the model is what it is.
    """
    config = with_own_settings(config)
    if idle := [name for name in OF_TRAINING if getattr(config, name) != TowerConfig.model_fields[name].default]:
        shown = ", ".join(f"towers.{name} {getattr(config, name)!r}" for name in idle)
        print(f"[train_towers] towers.training is none, so nothing is trained and these do nothing: {shown}.", flush=True)
    base = tower_base(config, [*pairs.documents, *pairs.queries])
    if not config.query_prompt and (others := other_prompts(base)):
        print(
            f"'{base.name}' has prompts for {', '.join(others)} and none for queries, which are read without one. Give the one that fits "
            "as towers.query_prompt.",
            flush=True,
        )
    contracts = published_contracts(base, config)
    if read_published(base) is None and (unsaid := [name for name in OF_TEXTS if name not in config.model_fields_set]):
        shown = ", ".join(f"towers.{name} {getattr(config, name)!r}" for name in unsaid)
        print(f"'{base.name}' does not say how it was trained to read texts (no modules.json), so it reads them with {shown}.", flush=True)
    _start_over(folder)
    _seal_towers(contracts, parents, folder)
    spreads = {}
    for role, texts in zip(ROLES, (pairs.queries, pairs.documents), strict=True):
        chosen = np.random.default_rng(config.seed).permutation(len(texts))[:COLLAPSE_SAMPLE]
        spreads[role] = measure_spread(load_tower(folder / f"{role}_tower", config.precision).encode([texts[i] for i in chosen]))
    write_json(folder / LOG, {"loss": [], "spread": {role: vars(spread) for role, spread in spreads.items()}})
    return seal(folder, "towers", counts={"pairs": len(pairs.pairs)}, parents=parents, attributes={"steps": 0})


def _check_shares(config: TowerConfig) -> None:
    check_mining(config)
    size = current_world().size
    if config.batch_size % size:
        raise ConfigError(f"towers.batch_size {config.batch_size} cannot be shared equally by {size} processes. Give a multiple of {size}.")


def _resolved(pairs: Pairs, config: TowerConfig) -> BaseModel:
    """The base model; the main process looks first, since looking may build or convert the model."""
    texts = [*pairs.documents, *pairs.queries]
    found = from_main(lambda: tower_base(config, texts))
    # The commit that the main process found: a branch may move before the others ask.
    return found if current_world().main else tower_base(config.model_copy(update={"revision": found.revision}), texts)


def _identity(pairs: Pairs, config: TowerConfig, bases: Bases, folder: Path) -> str:
    """Digest of all that has to be equal in every process."""
    if current_world().size == 1:
        return ""
    checkpoint = folder / CHECKPOINT
    data = [pairs.queries, pairs.documents, pairs.pairs, sorted((q, sorted(d)) for q, d in pairs.relevant.items())]
    data += [pairs.origins, pairs.kinds]
    resumed = file_sha256(checkpoint) if checkpoint.exists() else None
    return digest_of([digest_of(data), config.model_dump(), [base and base.digest for base in bases], resumed])


def _check_collapse(run: Training, config: TowerConfig) -> dict[str, Spread]:
    rng = np.random.default_rng(config.seed)
    spreads: dict[str, Spread] = {}
    sides = ((run.query_tokens, run.pairs.queries), (run.document_tokens, run.pairs.documents))
    for role, (rows, texts) in zip(ROLES, sides, strict=True):
        sample = rng.permutation(len(rows))[:COLLAPSE_SAMPLE]
        spreads[role] = measure_spread(run.towers.encode([rows[i] for i in sample], role))
        # A few texts, as of a set with three queries, cannot span more directions than there are texts. Token rows are not counted: of
        # many texts few are left where a prompt takes all the room, and that is to be refused.
        different = len({texts[i] for i in sample})
        refuse_collapse(f"{role} tower", spreads[role], config.max_mean_cosine, min(config.min_effective_rank, different / 2))
    return spreads


def _write_towers(towers: TwoTowers, folder: Path) -> dict[Role, EncodingContract]:
    """Save both towers; all processes have to call it. The main one writes, and gets their contracts."""
    contracts: dict[Role, EncodingContract] = {}
    if current_world().main:
        _start_over(folder)
    for role in ROLES:
        contract = towers.save(role, folder / f"{role}_tower")
        if contract is not None:
            contracts[role] = contract
    return contracts


def _start_over(folder: Path) -> None:
    for role in ROLES:
        shutil.rmtree(folder / f"{role}_tower", ignore_errors=True)
        (folder / f"{role}_tower").mkdir(parents=True)


def _seal_towers(
    contracts: Mapping[Role, EncodingContract],
    parents: Mapping[str, str],
    folder: Path,
    recorded: Mapping[str, Scalar] = MappingProxyType({}),
) -> None:
    """Write contract, space and probes of each tower. The probes are encoded as a user will encode: by the tower loaded from its folder.

    `recorded`: more attributes of both.
    """
    space_id = space_id_of(contracts["document"])
    for role, contract in contracts.items():
        target = folder / f"{role}_tower"
        save_contract(target, contract, space_id)
        record_probes(load_tower(target), target)
        attributes: dict[str, Scalar] = {
            "space_id": space_id,
            "role": role,
            "dimension": contract.dimension,
            "base_model": contract.base_model,
            **({"base_code": contract.base_code} if contract.base_code else {}),
            **recorded,
        }
        seal(target, "encoder", counts={"probes": 64}, parents=parents, attributes=attributes)


def training_losses(folder: Path) -> list[float]:
    """Loss of every step of a finished training."""
    return [float(x) for x in read_json(folder / LOG)["loss"]]


def losses_of(tower: Path) -> list[float] | None:
    """Loss of every step of the training that `tower` is a part of; None for a tower that lies apart from it, as in the registry."""
    return training_losses(tower.parent) if (tower.parent / LOG).is_file() else None
