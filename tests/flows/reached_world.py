"""A process of its own that runs commands and writes down what the making of each step really executes and reads.

python -m tests.flows.reached_world OUTPUT < commands, each a JSON list on a line: the exit status that is expected, and the words.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Observer:
    """Collects the project's code that is executed, and the settings that are read, while `on`."""

    def __init__(self) -> None:
        self.on = False
        self.executed: set[tuple[str, str]] = set()
        self.settings: set[tuple[str, str]] = set()
        self._met: set[CodeType] = set()

    def call(self, frame: FrameType, _event: str, _: Any) -> None:
        """For `sys.settrace`: where this gives None, it hears of calls of Python functions alone; a profile also of C's, and of returns."""
        if not self.on or frame.f_code in self._met:
            return
        self._met.add(frame.f_code)  # most calls are not the project's, and are met millions of times
        if frame.f_code.co_filename.startswith((f"{ROOT}/components/", f"{ROOT}/flows/")):
            place = Path(frame.f_code.co_filename).relative_to(ROOT).as_posix()
            self.executed.add((place, frame.f_code.co_qualname))

    def begin(self) -> None:
        self.executed, self.settings, self._met, self.on = set(), set(), set(), True

    def watch_settings(self) -> None:
        from components.settings import StepConfig

        plain = StepConfig.__getattribute__

        def read(config: StepConfig, name: str) -> Any:
            if self.on and name in type(config).model_fields:
                self.settings.add((type(config).__name__, name))
            return plain(config, name)

        StepConfig.__getattribute__ = read  # type: ignore[method-assign]


def main(output: Path) -> None:
    """Run the commands and write one line for each step that was made."""
    import flows.runner
    from flows.cli.main import main as scalingnote

    observer = Observer()
    observer.watch_settings()
    timed = flows.runner._timed

    def observed(step: flows.runner.Step) -> Any:
        observer.begin()
        sys.settrace(observer.call)
        threading.settrace(observer.call)
        try:
            return timed(step)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
            observer.on = False
            seen = {"executed": sorted(observer.executed), "settings": sorted(observer.settings)}
            with output.open("a") as handle:
                handle.write(json.dumps({"step": step.name, "config": step.parts["settings"], "code": step.reached.code, **seen}) + "\n")

    flows.runner._timed = observed
    for line in sys.stdin:
        expected, *words = json.loads(line)
        if (status := scalingnote(words)) != expected:
            raise SystemExit(f"{words} ended with {status}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
