"""The studies by name. Light on purpose: the command line reads this for its help."""

from __future__ import annotations

from typing import Any

from components.errors import ConfigError

# Name, which is also that of the module in this package -> one line for the help.
STUDIES = {
    "worth": "what to deploy: BM25, small encoders, teacher and students, alone and fused with BM25, with cost",
    "baselines": "every way to build a retriever, from BM25 to the refined student, at equal training pairs",
    "retention": "students of several sizes: quality kept of the teacher, and speed",
    "tower_ablation": "what each choice of the towers' training gives: mined negatives, filter, query prediction, pooling",
    "distillation_ablation": "what each choice of the distillation gives: losses, refinement, sources, batch size",
    "scaling_law": "how the contrastive entropy falls with model and data size, and what the next size should give",
    "robustness": "noisy queries and foreign documents: what teacher and student lose against clean ones",
    "corpus_growth": "latency, memory, build time and recall over corpus sizes, and what larger corpora should cost",
    "cost_benefit": "training time, energy and serving cost against the quality gained",
}


def require_study(name: str) -> str:
    """`name`; raises ConfigError with all names when it is none of them."""
    from flows.config import did_you_mean

    if name not in STUDIES:
        raise ConfigError(f"Unknown study '{name}'{did_you_mean(name, list(STUDIES)) or '.'} Studies: {', '.join(STUDIES)}.")
    return name


def load_study(name: str) -> Any:
    """The module of the study `name`, a `flows.studies.framework.Study`."""
    from importlib import import_module

    return import_module(f"flows.studies.{require_study(name)}")


def list_studies() -> str:
    """One line for each study."""
    width = max(map(len, STUDIES))
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in STUDIES.items())
