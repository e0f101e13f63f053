"""The steps of the production line as plain Python: importable without Prefect and without a server.

What other programs may rely on, in one example: open the release that serves, search it, verify it, and follow it back to its data.

    from components import settings
    from components.lineage.graph import follow
    from components.promotion.verification import verify_release
    from components.serving.loader import open_release

    settings.activate()  # the home folder, as SCALINGNOTE_HOME names it

    release = open_release("retriever", "champion")  # or previous, candidate/N, release/N
    for hit in release.retriever.search(["kidney stone", "heart attack"], k=3)[0]:
        print(hit.doc_id, round(hit.score, 3), release.titles[hit.doc_id])

    for check in verify_release("retriever", "champion"):  # hashes every byte; findings are returned, never raised
        print("ok" if check.ok else "WRONG", check.name, check.detail)

    print(follow("retriever", "champion").text())  # or a model, an index, the id of a document

All errors that a caller can act on are `components.errors.ScalingNoteError`. README.md of this folder says what lies where.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Registered versions carry model files that import modules by the names of their day; entry points of an older installation do the same.
FORMER = {
    "components.promotion.pinned": "components.serving.loader",
    "components.tracking.audit_plugin": "components.tracking.server.plugin",
    "components.tracking.package_files": "components.tracking.packaging",
}


class _Former(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in FORMER else None

    def exec_module(self, module: ModuleType) -> None:
        now = vars(importlib.import_module(FORMER[module.__name__]))
        vars(module).update({name: value for name, value in now.items() if not name.startswith("__")})


sys.meta_path.append(_Former())
