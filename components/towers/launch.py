"""Several processes for one training: started on this machine by torch's elastic launcher, or by torchrun on many.

    torchrun --nnodes 2 --nproc-per-node 8 -m components.towers.launch --pairs pairs.json --config towers.json --out FOLDER

`components.towers.processes.write_pairs` makes the pairs file; the configuration is the section `towers` as JSON. FOLDER has to be shared
by all machines: the main process writes checkpoints and towers there, and every process continues from them.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from components.artifacts import MOST_JSON, read_json, write_json
from components.errors import ConfigError, DataError, ScalingNoteError
from components.towers.config import TowerConfig
from components.towers.pairs import Pairs
from components.towers.processes import current_world, leave_world, obey_launcher
from components.towers.train import take_part


def main(arguments: Sequence[str] | None = None) -> None:
    """One process of the training, started by a launcher."""
    given = _parsed(arguments)
    obey_launcher()
    _end_with_launcher()
    try:
        _take_part(given)
    except ScalingNoteError as error:
        _tell(error, given.failure)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    leave_world()


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="components.towers.launch", description="One process of a training that torchrun started.")
    parser.add_argument("--pairs", type=Path, required=True, help="training pairs, written by components.towers.processes.write_pairs")
    parser.add_argument("--config", type=Path, required=True, help="JSON file with the settings of the section towers")
    parser.add_argument("--out", type=Path, required=True, help="folder of the towers, shared by all processes")
    parser.add_argument("--parents", type=Path, help="JSON file with the digests of what the towers are made from, by role")
    parser.add_argument("--failure", type=Path, help="file for the message of a failure, instead of stderr")
    return parser.parse_args(arguments)


def _take_part(given: argparse.Namespace) -> None:
    try:
        config = TowerConfig.model_validate(read_json(given.config))
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{given.config}: {'.'.join(map(str, first['loc'])) or 'settings'}: {first['msg']}. Correct it.") from None
    parents = {} if given.parents is None else read_json(given.parents)
    given.out.mkdir(parents=True, exist_ok=True)
    take_part(read_pairs(given.pairs), config, parents, given.out)


def _tell(error: ScalingNoteError, told: Path | None) -> None:
    if told is not None:
        write_json(told, {"class": type(error).__name__, "message": str(error)})
    elif current_world().main:
        print(f"Error: {error}", file=sys.stderr, flush=True)


def _end_with_launcher() -> None:
    """End this process when its launcher is gone: killed, it cannot end it, and both this and the next run would write the checkpoint."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def read_pairs(path: Path) -> Pairs:
    """The training pairs written by `write_pairs`, however many bytes all documents take; raises DataError for another file."""
    raw = read_json(path, max(MOST_JSON, path.stat().st_size if path.is_file() else 0))
    try:
        return Pairs(
            queries=raw["queries"],
            documents=raw["documents"],
            pairs=[(query, document) for query, document in raw["pairs"]],
            relevant={query: frozenset(documents) for query, documents in raw["relevant"]},
            origins=raw["origins"],
            own=dict(raw["own"]),
            kinds=raw.get("kinds", ()),  # files of before had none
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} does not hold training pairs as write_pairs writes them: {error!r}. Write it again.") from None


if __name__ == "__main__":
    main()
