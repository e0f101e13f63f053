"""When negatives are mined, and where they are kept: mined once a round with the towers of that step, saved, and read ever after.

A round's file is written last, so a continued run reads the rounds that a killed one has finished.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.errors import ConfigError
from components.towers.config import TowerConfig
from components.towers.mining_report import add_round
from components.towers.negatives import Mined
from components.towers.processes import from_main


class HardNegatives:
    """The mined negatives of every step; `mined(round)` mines with the towers as they are, in all processes alike."""

    def __init__(self, config: TowerConfig, folder: Path, mined: Callable[[int], Mined]) -> None:
        self._config, self._folder, self._mined = config, folder, mined
        self._round: int | None = None
        self._negatives: NDArray[np.int64] | None = None

    def of_step(self, step: int) -> NDArray[np.int64] | None:
        """int64 (pairs, hard_negatives) document numbers, -1 where there are fewer; None before the first mining."""
        wanted = round_of_step(step, self._config)
        if wanted != self._round and wanted is not None:
            self._negatives = self._read(wanted)
            self._round = wanted
        return self._negatives

    def _read(self, number: int) -> NDArray[np.int64]:
        path = self._folder / f"negatives_{number}.npy"
        # Asked of the main process alone: another one would see the file appear while it looks.
        if not from_main(path.exists):
            mined = self._mined(number)
            from_main(lambda: self._write(mined, path))
        return from_main(lambda: np.load(path, allow_pickle=False))

    def _write(self, mined: Mined, path: Path) -> None:
        add_round(self._folder, mined.report)
        beside = path.with_name(f".{path.name}.tmp")
        with beside.open("wb") as handle:
            np.save(handle, mined.negatives)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(beside, path)


def round_of_step(step: int, config: TowerConfig) -> int | None:
    """Number of the mining whose negatives the step uses; None while there are none."""
    if not config.hard_negatives or step < config.mining_start:
        return None
    return (step - config.mining_start) // config.mining_interval if config.mining_interval else 0


def check_mining(config: TowerConfig) -> None:
    """Raise ConfigError when hard negatives are asked for and the training ends before the first mining."""
    if config.hard_negatives and config.mining_start >= config.steps:
        raise ConfigError(
            f"towers.hard_negatives is {config.hard_negatives}, but towers.mining_start ({config.mining_start}) is not below "
            f"towers.steps ({config.steps}), so none would ever be mined. Lower mining_start, or set hard_negatives to 0."
        )
