"""Programs of others that check what is exported for them. They are used where they are installed; a run without them says so."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = {
    "model_signing": "model-signing with pyopenssl",
    "cyclonedx": "cyclonedx-python-lib[json-validation]",
    "datacontract": "datacontract-cli, in an environment of its own and on the path",
    "openlineage": "openlineage-python",  # sends our events to a receiver
    "datasets": "datasets",  # reads the sets of NanoBEIR for sentence-transformers' evaluator
}

COMMANDS = ("model_signing", "datacontract")  # that are called by their names


def tool(name: str) -> str | None:
    """The command `name` beside this Python or on the path; None where there is none."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def there(name: str) -> bool:
    """Whether a package of `PACKAGES` can be used here."""
    return tool(name) is not None if name in COMMANDS else find_spec(name) is not None


def missing() -> list[str]:
    """The packages whose checks of our exports cannot run here."""
    return [package for name, package in PACKAGES.items() if not there(name)]
