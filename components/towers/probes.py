"""Probe texts: 64 fixed texts whose vectors are recorded beside every encoder and computed again when it is loaded.

A digest cannot see a changed kernel, library or number format; the probes can.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from components.errors import ArtifactError, ProbeMismatch

if TYPE_CHECKING:
    from components.towers.contract import TextEncoder

PROBE_FILE = "probes.npy"
_SUBJECTS = ("kidney stone", "red bicycle", "tax return", "list files by size", "cold coffee", "broken leg", "Łódź 1945", "x = y + 1")
_FRAMES = ("{}", "what is {}?", "{} in winter", "how to treat {} at home", "NO {}", "{}, {}", "a long story about {} and the sea", "{}!")
PROBE_TEXTS: tuple[str, ...] = tuple(frame.replace("{}", subject) for subject in _SUBJECTS for frame in _FRAMES)


def record_probes(encoder: TextEncoder, folder: Path) -> None:
    """Write the encoder's vectors for the probe texts, float32 (64, dimension), into `folder`."""
    np.save(folder / PROBE_FILE, encoder.encode(PROBE_TEXTS, batch_size=16))


def check_probes(encoder: TextEncoder, folder: Path, tolerance: float) -> float:
    """Largest 1 - cosine between recorded and fresh probe vectors; raises ProbeMismatch when above `tolerance`."""
    try:
        recorded = np.load(folder / PROBE_FILE, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder / PROBE_FILE} cannot be read ({error}). Restore the encoder or retrain.") from None
    fresh = encoder.encode(PROBE_TEXTS, batch_size=16)
    if fresh.shape != recorded.shape:
        raise ProbeMismatch(f"{folder}: the probe vectors have the shape {recorded.shape}, the encoder gives {fresh.shape}.")
    cosines = (fresh * recorded).sum(1) / np.linalg.norm(recorded, axis=1).clip(1e-9)
    worst = float(1 - cosines.min())
    if not worst <= tolerance:
        text = PROBE_TEXTS[int(cosines.argmin())]
        raise ProbeMismatch(
            f"{folder}: the encoder no longer gives its recorded vectors (1 - cosine is {worst:.4f} for the probe '{text}', allowed "
            f"{tolerance}). A library, kernel or number format has changed: use the recorded versions, or retrain."
        )
    return worst
