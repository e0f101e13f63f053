"""The built-in data set: a wording of a diagnosis -> its entry in ICD-10-CM, from the official tabular list.

The list (a work of the US government) is carried as XML by the package `simple-icd-10-cm` (MIT). Documents are the categories and
codes; queries are the official inclusion terms, other wordings that experts listed under a code; the scope `quick` takes the `includes`
notes of categories as well. All queries of a three-character category fall into the same split, so a test query asks for a category that
no training query has named.
"""

from __future__ import annotations

import hashlib
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from components.artifacts import digest_of, file_sha256
from components.data.dataset import DOCUMENT_COLUMNS, GROUPS, JUDGEMENT_COLUMNS, RawTables, normalise_text, query_table
from components.errors import DataError
from components.syntax import tree_digest

NAME = "icd10cm"
QUICK = "quick"
DEMO_CHAPTERS = frozenset({"3", "4", "5", "6", "9", "10", "11", "14", "16", "17"})
TRAIN_SHARE = 0.83
DEV_SHARE = 0.05
_PACKAGE = "simple_icd_10_cm"
_AGAIN = "Install it again: pip install --force-reinstall simple-icd-10-cm==1.5.0"
_CODE_RANGE = re.compile(r"\s*\([A-Z0-9]{3}(-[A-Z0-9]{3})?\)\s*$")


@dataclass(frozen=True)
class Entry:
    """One category or code, with the titles above it from the nearest (parents, section, chapter) and its inclusion terms."""

    code: str
    title: str
    above: tuple[str, ...]
    chapter: str
    section: str
    terms: tuple[str, ...]


@dataclass(frozen=True)
class Query:
    """One wording, the codes it stands under, and its split."""

    query_id: str
    text: str
    codes: tuple[str, ...]
    split: str


def build(scope: str) -> RawTables:
    """The tables of `scope`: full; demo, some chapters; or quick, half of their entries with more of the wordings that ask for them.

    Raises DataError when the package is not installed.
    """
    entries = list(read_entries(tabular_list(), includes=scope == QUICK))
    kept = [entry for entry in entries if scope == "full" or entry.chapter in DEMO_CHAPTERS]
    # Wordings are compared over all chapters, so that a query has the same id and split in every scope.
    queries = build_queries(entries)
    codes = {entry.code for entry in kept}
    wanted = [query for query in queries if codes.intersection(query.codes)]
    kept = _asked_for(kept, wanted) if scope == QUICK else kept
    return RawTables(
        documents=_documents(kept),
        queries=query_table([query.query_id for query in wanted], [query.text for query in wanted]),
        judgements=_judgements(wanted, codes),
        unlabelled=query_table([], []),
        notes={
            "scope": scope,
            GROUPS: "category",
            "inclusion_terms_left_out": sum(len(e.terms) for e in entries) - sum(len(q.codes) for q in queries),
        },
    )


def _asked_for(entries: list[Entry], queries: list[Query]) -> list[Entry]:
    """The categories that dev and test ask for, whole, so that a query has all its near misses; of others the head and what is asked for.

    Half of the entries is what two cores without bfloat16 encode in time.
    """
    codes = {code for query in queries for code in query.codes}
    whole = {_category(code) for query in queries if query.split != "train" for code in query.codes}
    return [e for e in entries if e.code in codes or e.code == _category(e.code) or _category(e.code) in whole]


def _category(code: str) -> str:
    return code.split(".")[0]


def source_digest() -> str:
    """sha256 over the tabular list and the code that turns it into tables."""
    return digest_of({"list": file_sha256(tabular_list()), "code": tree_digest(Path(__file__))})


def tabular_list() -> Path:
    """The XML file inside the installed package; the package itself, which is slow to import, is not loaded. Raises DataError."""
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise DataError("The built-in data set icd10cm needs a package that is not installed: pip install simple-icd-10-cm")
    folder = Path(spec.origin).parent / "data"
    found = sorted(folder.glob("icd10c*tabular*.xml"))
    if len(found) != 1:
        raise DataError(f"Expected one tabular list in {folder}, found {len(found)}. {_AGAIN}")
    return found[0]


def read_entries(path: Path, includes: bool = False) -> Iterator[Entry]:
    """Every category and code of a tabular list, in its order; with `includes` their notes of that name are wordings too.

    Raises DataError for what is no tabular list.
    """
    places = ("inclusionTerm", "includes") if includes else ("inclusionTerm",)
    try:
        root = ET.parse(path).getroot()
    except ET.ParseError as error:
        raise DataError(f"{path} is not the tabular list ({error}). {_AGAIN}") from None
    for chapter in root.iter("chapter"):
        chapter_title = _CODE_RANGE.sub("", _words(chapter.find("desc")))
        for section in chapter.findall("section"):
            above = (_CODE_RANGE.sub("", _words(section.find("desc"))), chapter_title)
            place = Entry("", "", above, _words(chapter.find("name")), section.get("id", ""), ())
            for diagnosis in section.findall("diag"):
                yield from _walk(diagnosis, place, places)


def split_of(code: str) -> str:
    """train, dev or test, by the three-character category of `code`."""
    share = int(hashlib.sha256(f"{NAME}:{_category(code)}".encode()).hexdigest()[:12], 16) / 16**12
    if share < TRAIN_SHARE:
        return "train"
    return "dev" if share < TRAIN_SHARE + DEV_SHARE else "test"


def build_queries(entries: Iterable[Entry]) -> list[Query]:
    """One query for each wording. A wording that repeats its own title, or stands under codes of two splits, is left out.

    The first asks for nothing; the second would be seen in training and asked again in the test.
    """
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for entry in entries:
        for number, term in enumerate(entry.terms):
            wording = normalise_text(term)
            if wording and wording != normalise_text(entry.title):
                groups.setdefault(wording, []).append((f"{entry.code}#{number}", term, entry.code))
    queries = []
    for group in groups.values():
        codes = tuple(dict.fromkeys(code for _, _, code in group))
        splits = {split_of(code) for code in codes}
        if len(splits) == 1:
            queries.append(Query(group[0][0], group[0][1], codes, splits.pop()))
    return queries


def _walk(diagnosis: ET.Element, parent: Entry, places: tuple[str, ...]) -> Iterator[Entry]:
    above = (parent.title, *parent.above) if parent.title else parent.above
    entry = Entry(
        code=_words(diagnosis.find("name")),
        title=_words(diagnosis.find("desc")),
        above=above,
        chapter=parent.chapter,
        section=parent.section,
        terms=tuple(_words(note) for place in places for note in diagnosis.findall(f"{place}/note")),
    )
    yield entry
    for child in diagnosis.findall("diag"):
        yield from _walk(child, entry, places)


def _documents(entries: list[Entry]) -> pd.DataFrame:
    # The nearest title comes first: it tells more than the chapter, and an encoder's token limit cuts at the end.
    rows = [(e.code, e.title, " | ".join(e.above), _metadata(e)) for e in entries]
    return pd.DataFrame(rows, columns=list(DOCUMENT_COLUMNS)).astype("str")


def _metadata(entry: Entry) -> str:
    return json.dumps({"chapter": entry.chapter, "section": entry.section, "category": _category(entry.code)})


def _judgements(queries: list[Query], codes: set[str]) -> pd.DataFrame:
    rows = [(query.query_id, code, 1, query.split) for query in queries for code in query.codes if code in codes]
    table = pd.DataFrame(rows, columns=list(JUDGEMENT_COLUMNS))
    return table.astype({"query_id": "str", "doc_id": "str", "score": "int64", "split": "str"})


def _words(element: ET.Element | None) -> str:
    return "" if element is None else " ".join("".join(element.itertext()).split())
