"""Several processes for one training: started on this machine by torch's elastic launcher, or by torchrun on many.

    torchrun --nnodes 2 --nproc-per-node 8 -m components.towers.launch --pairs pairs.json --config towers.json --out FOLDER

`write_pairs` makes the pairs file; the configuration is the section `towers` as JSON. FOLDER has to be shared by all machines: the
main process writes checkpoints and towers there, and every process continues from them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from components import errors
from components.artifacts import read_json, write_atomic, write_json
from components.errors import ConfigError, DataError, ModelError, ScalingNoteError
from components.towers.config import TowerConfig
from components.towers.pairs import Pairs
from components.towers.processes import current_world, leave_world, obey_launcher

FAILURE = "failure.json"


def train_in_processes(pairs: Pairs, config: TowerConfig, parents: Mapping[str, str], folder: Path) -> None:
    """Train with `config.processes` processes on this machine; an expected failure of one of them is raised here."""
    with tempfile.TemporaryDirectory(prefix="scalingnote-launch-") as scratch:
        given = Path(scratch)
        write_pairs(pairs, given / "pairs.json")
        write_json(given / "config.json", config.model_dump())
        write_json(given / "parents.json", dict(parents))
        names = {"pairs": given / "pairs.json", "config": given / "config.json", "parents": given / "parents.json"}
        names |= {"out": folder.resolve(), "failure": given / FAILURE}
        _launch(config.processes, [text for name, path in names.items() for text in (f"--{name}", str(path))], given)


def _launch(processes: int, arguments: Sequence[str], scratch: Path) -> None:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The launcher prints a page about a failed process, whose message is raised below.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"towers-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        # Ctrl-C reaches every process of the terminal by itself.
        signals_to_handle="SIGTERM",
        logs_specs=DefaultLogsSpecs(log_dir=str(scratch / "logs")),
    )
    with _signals_kept():
        try:
            elastic_launch(settings, sys.executable)("-m", "components.towers.launch", *arguments)
        except ChildFailedError as failed:
            raise failure_of(failed, scratch) from None


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Put back the handler of SIGTERM, which the launcher replaces for good when it runs in the main thread."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def failure_of(failed: Any, scratch: Path) -> ScalingNoteError:
    """What the failed process left in `scratch`, as an error of its own class; else the exit status that `failed` knows of torch."""
    told = scratch / FAILURE
    if told.exists():
        raw = read_json(told)
        found: ScalingNoteError = getattr(errors, raw["class"])(raw["message"])
        return found
    rank, process = failed.get_first_failure()
    return ModelError(
        f"Process {rank} of the training ended with exit status {process.exitcode}; if it wrote why, that stands above. "
        "Killed without a word (-9) it most often lacked memory: lower towers.chunk_size or towers.processes."
    )


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
    parser.add_argument("--pairs", type=Path, required=True, help="training pairs, written by write_pairs")
    parser.add_argument("--config", type=Path, required=True, help="JSON file with the settings of the section towers")
    parser.add_argument("--out", type=Path, required=True, help="folder of the towers, shared by all processes")
    parser.add_argument("--parents", type=Path, help="JSON file with the digests of what the towers are made from, by role")
    parser.add_argument("--failure", type=Path, help="file for the message of a failure, instead of stderr")
    return parser.parse_args(arguments)


def _take_part(given: argparse.Namespace) -> None:
    # The module of the training imports this one, to start processes.
    from components.towers.train import take_part

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


def write_pairs(pairs: Pairs, path: Path) -> None:
    """Write the training pairs as one JSON file."""
    relevant = [[query, sorted(documents)] for query, documents in pairs.relevant.items()]
    content = {name: list(getattr(pairs, name)) for name in ("queries", "documents", "pairs", "origins")} | {
        "relevant": relevant,
        "own": list(pairs.own.items()),
    }
    write_atomic(path, json.dumps(content, ensure_ascii=False).encode())


def read_pairs(path: Path) -> Pairs:
    """The training pairs written by `write_pairs`; raises DataError for another file."""
    raw = read_json(path)
    try:
        return Pairs(
            queries=raw["queries"],
            documents=raw["documents"],
            pairs=[(query, document) for query, document in raw["pairs"]],
            relevant={query: frozenset(documents) for query, documents in raw["relevant"]},
            origins=raw["origins"],
            own=dict(raw["own"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} does not hold training pairs as write_pairs writes them: {error!r}. Write it again.") from None


if __name__ == "__main__":
    main()
