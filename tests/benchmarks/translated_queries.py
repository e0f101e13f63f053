"""Queries in other languages for the pages of tldr, from Debian: what a student of several languages learns from and is measured on.

    python -m tests.benchmarks.translated_queries --data tldr --debian FOLDER --to OUT [--languages de,fr,es,it,pl,pt_BR] [--most 3000]

FOLDER holds what Debian's mirrors give: `Translation-LL.*` (descriptions of packages, from dists/SUITE/main/i18n/, `en` among them) and the
packages `manpages-LL_*.deb`, unpacked into it (`dpkg-deb -x FILE FOLDER`). OUT becomes a copy of the data with

- `queries_translated.jsonl`: one-line descriptions of packages, each with the English one of the same package (same MD5 of the whole);
- `qrels/test_LL.tsv` and their queries: the one line that a manual page in that language says of its command, without the command's name;
  relevant are the pages of tldr that have this name. They are sentences that people wrote in their own language, not translated queries.

Whatever reads as a one-line description of a package is no test query. Prints how many there are of each. Descriptions and manual pages
have the licences of their packages (most of them GPL); nothing of them is in this repository.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import json
import lzma
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from components.data.dataset import normalise_text

LANGUAGES = ("de", "fr", "es", "it", "pl", "pt_BR")
_OPENERS = {".bz2": bz2.open, ".gz": gzip.open, ".xz": lzma.open}
_DASH = "\u2013"  # between a command and what it does; roff has several ways to write it
_HEADING = re.compile(r"^\.S[Hh]\s")
_MARKUP = re.compile(r"\\f(\[\w*\]|\(..|.)|\\[,/&|^%]|\\m\[\w*\]|\\s[-+]?\d")


def main() -> None:
    """Write the folder."""
    options = _arguments()
    languages = options.languages.split(",")
    if not (options.data / "corpus.jsonl").is_file() or not options.debian.is_dir() or options.to.exists():
        raise SystemExit(
            "Expected --data with corpus.jsonl, --debian that is a folder, and --to that is not there yet (remove a half-made one)."
        )
    shutil.copytree(options.data, options.to)
    everything = list(_translations(options.debian, languages))
    translated = [row for language in languages for row in _some(everything, language, options.most)]
    _write(options.to / "queries_translated.jsonl", translated)
    known = {normalise_text(row["text"]) for row in everything}
    pages = _pages(options.to / "corpus.jsonl")
    with (options.to / "queries.jsonl").open("a", encoding="utf-8") as queries:
        for language in languages:
            judged = []
            for name, text in sorted(_manual(options.debian, language).items()):
                if name in pages and normalise_text(text) not in known:
                    query = f"man-{language}-{name}"
                    queries.write(json.dumps({"_id": query, "text": text}, ensure_ascii=False) + "\n")
                    judged += [f"{query}\t{page}\t1" for page in pages[name]]
            lines = "".join(f"{line}\n" for line in ("query-id\tcorpus-id\tscore", *judged))
            (options.to / "qrels" / f"test_{language}.tsv").write_text(lines, encoding="utf-8")
            learned = sum(row["_id"].startswith(f"{language}-") for row in translated)
            print(f"{language}: {learned:,} translations, {len({line.split(chr(9))[0] for line in judged}):,} test queries")


def _translations(folder: Path, languages: list[str]) -> Iterator[dict[str, str]]:
    """Descriptions of packages with the English ones; each text once."""
    english = dict(_descriptions(folder, "en"))
    for language in languages:
        seen: set[str] = set()
        for digest, text in _descriptions(folder, language):
            original = english.get(digest, "")
            if original and text != original and text not in seen:
                seen.add(text)
                yield {"_id": f"{language}-{digest}", "text": text, "original": original}


def _some(rows: list[dict[str, str]], language: str, most: int) -> list[dict[str, str]]:
    """At most so many of a language, which the digests choose."""
    return sorted((row for row in rows if row["_id"].startswith(f"{language}-")), key=lambda row: row["_id"])[:most]


def _descriptions(folder: Path, language: str) -> Iterator[tuple[str, str]]:
    """The digest of each description and its first line."""
    path = next((path for path in sorted(folder.rglob(f"Translation-{language}.*")) if path.suffix in _OPENERS), None)
    if path is None:
        raise SystemExit(f"{folder} holds no Translation-{language}.xz, .bz2 or .gz. Fetch it from a mirror of Debian.")
    digest = ""
    with _OPENERS[path.suffix](path, "rt", encoding="utf-8") as lines:
        for line in lines:
            field, _, value = line.partition(": ")
            if field == "Description-md5":
                digest = value.strip()
            elif field == f"Description-{language}" and value.strip():
                yield digest, value.strip()


def _manual(folder: Path, language: str) -> dict[str, str]:
    """Command -> the line in which its manual page says what it does."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob(f"man/{language}/man[18]/*.gz")):
        lines = gzip.decompress(path.read_bytes()).decode("utf-8", "replace").splitlines()
        start = next((number for number, line in enumerate(lines) if _HEADING.match(line)), None)
        if start is not None:
            end = next((n for n, line in enumerate(lines[start + 1 :], start + 1) if _HEADING.match(line)), len(lines))
            said = " ".join(line for line in lines[start + 1 : end] if not line.startswith((".", "'")))
            names, dash, text = _MARKUP.sub("", said).replace("\\-", _DASH).replace("\\(en", _DASH).partition(_DASH)
            text = " ".join(text.replace(_DASH, "-").replace("\\", "").split())
            if dash and len(text.split()) > 1:
                for name in names.replace(",", " ").split():
                    found.setdefault(name, text)
    return found


def _pages(corpus: Path) -> dict[str, list[str]]:
    """Name of a command -> ids of its pages."""
    pages: dict[str, list[str]] = {}
    with corpus.open(encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)
            pages.setdefault(document["title"], []).append(document["_id"])
    return pages


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the set tldr in the layout of BEIR")
    parser.add_argument("--debian", type=Path, required=True, help="folder with Debian's descriptions and unpacked manual pages")
    parser.add_argument("--to", type=Path, required=True, help="folder to write, which is not there yet")
    parser.add_argument("--languages", default=",".join(LANGUAGES))
    parser.add_argument("--most", type=int, default=3000, help="translations of a language")
    return parser.parse_args()


if __name__ == "__main__":
    main()
