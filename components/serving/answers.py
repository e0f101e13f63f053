"""The log of served answers: which release gave which documents, under an id that `trace` follows back."""

from __future__ import annotations

import json
from pathlib import Path

from components import settings


def answers_file(name: str) -> Path:
    """The log of the retriever `name`, JSON lines, oldest first."""
    return settings.home() / "answers" / f"{name}.jsonl"


def logged_queries(name: str, limit: int) -> list[str]:
    """The newest `limit` different queries whose text was logged, newest first; empty when none was."""
    path = answers_file(name)
    if not path.exists():
        return []
    texts = [json.loads(line).get("query") for line in path.read_text(encoding="utf-8").splitlines()]
    return list(dict.fromkeys(text for text in reversed(texts) if text))[:limit]
