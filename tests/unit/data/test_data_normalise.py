# ruff: noqa: RUF001 (letters that look alike are what is tested here)
"""Which wordings count as the same text, in every script, in code and in units; and which texts nobody sees."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from components.data.config import DataConfig
from components.data.contracts import contracts_folder
from components.data.dataset import may_read_as, normalise_text
from components.data.snapshot import snapshot
from components.data.validation import load_report, validate
from components.evaluation.slices import words_of
from components.text import is_blank, written
from tests.data_world import Row, queries, write_folder, write_rows

DIFFERENT = {
    "Hindi: a boy, a girl": ("वह लड़का है", "वह लड़की है"),
    "Hindi: yesterday, art": ("कल", "कला"),
    "Thai: old, nine": ("เก่า", "เก้า"),
    "Thai: come, dog, horse": ("มา", "หมา", "ม้า"),
    "Arabic: he wrote, books": ("كَتَبَ", "كُتُب"),
    "Hebrew: book, barber": ("סֵפֶר", "סַפָּר"),
    "Vietnamese: ghost, mother, but, tomb": ("ma", "má", "mà", "mả", "mã", "mạ"),
    "Turkish: lukewarm, marrow": ("ılık", "ilik"),
    "Chinese: buy, sell": ("买", "卖"),
    "Japanese: voiced and not": ("かき", "かぎ", "がき"),
    "Korean": ("물", "불", "뿔"),
    "comparisons": ("x > 3", "x < 3", "x = 3", "x ≥ 3", "x != 3", "x == 3"),
    "signs of numbers": ("5 °C", "-5 °C", "5 °F", "+5 °C"),
    "per cent": ("5", "5%", "5‰", "$5", "€5", "-5", "~5"),
    "points and powers": ("15", "1.5", "1:5", "1/5", "1-5", ".15"),
    "powers": ("10²", "102", "10⁻²", "10⁵"),
    "fractions": ("1½", "11/2", "1/2", "1 12"),
    "languages": ("C", "C++", "C#", ".NET", "NET"),
    "operators": ("a && b", "a || b", "a * b", "a / b", "a + b", "a ^ b"),
    "negation": ("!ready", "ready"),
    "steps": ("i++", "i--"),
    "lengths": ("5 mm", "5 µm", "5 m", "5′", "5″"),
}
EQUAL = {
    "case, punctuation, spaces": ("Kidney-stone,  acute?", "kidney stone ACUTE", "(kidney) stone: acute!"),
    "spaces around signs": ("x>3", "x > 3", " x  >3 "),
    "units": ("5%", "5 %", "５％"),
    "not equal": ("a!=b", "a != b"),
    "kinds of the minus": ("-5 °C", "−5 °C", "–5 °C"),
    "powers and fractions": ("10² ½", "10^2 1/2", "10² 1⁄2"),
    "composed and not": ("Việt Nam", "Vie\u0323\u0302t Nam"),
    "widths": ("トウキョウ 12", "ﾄｳｷｮｳ １２"),
    "Chinese punctuation": ("东京，日本。", "东京 日本"),
    "Hindi full stop": ("वह लड़का है।", "वह लड़का है"),
    "Turkish capitals": ("İSTANBUL", "istanbul"),
    "German": ("Straße", "STRASSE"),
    "ligatures": ("ﬁne", "fine"),
    "Arabic stretched": ("كتـــاب", "كتاب"),
    "Hebrew quotation marks": ('צה"ל', "צה״ל"),
    "nothing to be seen": ("kidney", "kid\u00adney", "\u200bkidney\ufeff", "kid\u2060ney"),
    "decoration": ("Aspirin® now", "aspirin now", "Aspirin™ now"),
    "markdown": ("**kidney** stone", "kidney stone"),
}


@pytest.mark.parametrize("texts", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_what_a_reader_tells_apart_is_not_the_same_text(texts: tuple[str, ...]) -> None:
    assert len({normalise_text(text) for text in texts}) == len(texts)


@pytest.mark.parametrize("texts", EQUAL.values(), ids=EQUAL.keys())
def test_what_reads_the_same_is_the_same_text(texts: tuple[str, ...]) -> None:
    assert len({normalise_text(text) for text in texts}) == 1


@pytest.mark.parametrize("text", ["", "?!", "...", "$?", "< >", "🙂", " \u200b ", "\ufdd0", "\u0640", "\x00\x07"])
def test_a_text_without_letters_or_signs_normalises_to_nothing(text: str) -> None:
    assert normalise_text(text) == "" == normalise_text(None)


@pytest.mark.parametrize("text", [*(t for group in (*DIFFERENT.values(), *EQUAL.values()) for t in group)])
def test_a_normalised_text_stays_as_it_is(text: str) -> None:
    assert normalise_text(normalise_text(text)) == normalise_text(text)


def test_signs_that_stand_alone_are_no_words_of_a_query() -> None:
    assert words_of("Is 5 % > 3°, C++?") == ["is", "5", "3", "c++"]
    assert words_of("वह लड़की है") == ["वह", "लड़की", "है"]


@pytest.mark.parametrize(
    "letter", "\u200b\u2060\ufeff\u00ad\u180e\u2800\u3164\u115f\uffa0\u034f\u200d\ufe0f\u061c\U000e0020 \n\t\x00\u00a0\u3000"
)
def test_letters_that_nobody_sees_are_blank(letter: str) -> None:
    assert is_blank(letter)
    assert is_blank(f" {letter}\n{letter}")
    assert not is_blank(f"{letter}a{letter}")
    assert written(f"{letter} a{letter}b \n{letter}") == f"a{letter}b"
    assert written(letter) == written(None) == ""


def validated(folder: Path, rows: list[Row], data: Path) -> dict[str, int]:
    """Rule -> rows that break it."""
    write_rows(data / "queries.jsonl", rows)
    for name in ("dataset", "report"):
        (folder / name).mkdir()
    dataset = snapshot(DataConfig(source=str(data)), folder / "dataset")
    report = load_report(validate(dataset, contracts_folder(""), folder / "report"))
    return {result.rule: result.count for result in report.results if not result.passed and result.table == "queries"}


def test_the_contracts_tell_a_boy_from_a_girl_and_find_texts_that_nobody_sees(tmp_path: Path) -> None:
    data, rows = write_folder(tmp_path / "data"), queries()
    pairs = ("वह लड़का है", "वह लड़की है"), ("is x > 3", "is x < 3"), ("turn on 5%", "turn on 5"), ("เก่า", "เก้า")
    for number, (train, test) in enumerate(pairs):
        rows[number]["text"], rows[150 + number]["text"] = train, test
    rows[5]["text"], rows[6]["text"] = "\u200b\u00ad", " \u3164 visible"
    rows[7]["text"], rows[160]["text"] = "Where is it?", "where is IT"
    broken = validated(tmp_path, rows, data)
    assert broken["text.not_blank"] == 1
    assert broken["leakage.test_in_train.normalised"] == 1
    assert json.loads((data / "queries.jsonl").read_text().splitlines()[0])["text"] == pairs[0][0]


def test_no_text_that_equals_a_wording_is_passed_over() -> None:
    texts = [text for group in (*DIFFERENT.values(), *EQUAL.values()) for text in group] + ["İstanbul", "I.B.M.", "10 %", "?!", "", "a1"]
    wordings = [normalise_text(text) for text in texts]
    for wording in {*wordings} - {""}:
        found = may_read_as(pd.Series(texts, dtype="str"), [wording])
        assert all(may for may, own in zip(found, wordings, strict=True) if own == wording), wording
    assert may_read_as(pd.Series(["Where is it?", "where was it", None, "wo ist das"], dtype="str"), ["where is it"]).tolist() == [
        True,
        False,
        False,
        False,
    ]
