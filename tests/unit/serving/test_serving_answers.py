"""The log of served answers: ids, what is kept of a query, and what is said when the log was changed."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from components.errors import ArtifactError, ConfigError, DataError
from components.serving import answer_log as answers
from components.serving.answer_log import Served, answers_file, find_answer, log_answers, logged_queries, query_digest
from components.serving.retriever import Hit

SERVED = Served("retriever", "retriever-release", 3, "d" * 64)
HITS = [Hit("d1", 0.9), Hit("d2", 0.5)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path))
    monkeypatch.delenv(answers.SETTING, raising=False)
    return tmp_path


def test_an_answer_is_found_again_by_its_id_without_the_text_of_the_query() -> None:
    (first,), (second,) = (log_answers(SERVED, [query], [HITS]) for query in ("my knee hurts", "my knee hurts"))
    answer = find_answer(first)
    assert (answer.model, answer.version, answer.digest) == ("retriever-release", 3, "d" * 64)
    assert (answer.doc_ids, answer.scores) == (("d1", "d2"), (0.9, 0.5))
    assert answer.query is None and "knee" not in answers_file("retriever").read_text()
    assert answer.query_digest == query_digest(first, "my knee hurts") != find_answer(second).query_digest


def test_the_answers_of_a_run_are_numbered() -> None:
    ids = log_answers(SERVED, ["a", "b", "c"], [HITS, [], HITS[:1]])
    assert [answer_id.split(".")[1] for answer_id in ids] == ["1", "2", "3"]
    assert [find_answer(answer_id).doc_ids for answer_id in ids] == [("d1", "d2"), (), ("d1",)]
    with pytest.raises(DataError, match="No answer"):
        find_answer(ids[0].split(".")[0])


def test_queries_come_back_newest_first_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "BLOCK", 64)  # lines longer than a block
    assert logged_queries("retriever", 5) == []
    log_answers(SERVED, ["private"], [HITS])
    monkeypatch.setenv(answers.SETTING, "full")
    for query in ("knee", "eye\nline", "knee", "ohr ü"):
        log_answers(SERVED, [query], [HITS])
    assert logged_queries("retriever", 5) == ["ohr ü", "knee", "eye\nline"]
    assert logged_queries("retriever", 2) == ["ohr ü", "knee"]


def test_off_writes_nothing_and_another_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(answers.SETTING, "off")
    assert log_answers(SERVED, ["a"], [HITS]) == []
    assert not answers_file("retriever").exists()
    monkeypatch.setenv(answers.SETTING, "yes")
    with pytest.raises(ConfigError, match="'yes'\\. Expected off"):
        log_answers(SERVED, ["a"], [HITS])


def test_a_half_line_of_a_killed_writer_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(answers.SETTING, "full")
    (first,) = log_answers(SERVED, ["a"], [HITS])
    with answers_file("retriever").open("a") as log:
        log.write('{"id":"0000000000000000","schema_')
    (second,) = log_answers(SERVED, ["b"], [HITS])
    assert [find_answer(answer_id).query for answer_id in (first, second)] == ["a", "b"]
    assert logged_queries("retriever", 9) == ["b", "a"]


def test_wrong_ids_and_changed_lines_are_refused_in_words() -> None:
    (known,) = log_answers(SERVED, ["a"], [HITS])
    with pytest.raises(DataError, match="is not the id of an answer"):
        find_answer("../../etc/passwd")
    with pytest.raises(DataError, match="No answer 0123456789abcdef is logged"):
        find_answer("0123456789abcdef")
    with pytest.raises(DataError, match="No answer"):
        find_answer(known, "another")
    log = answers_file("retriever")
    line = json.loads(log.read_text())
    log.write_text(json.dumps({**line, "surprise": 1}, separators=(",", ":")))
    with pytest.raises(ArtifactError, match="not an answer"):
        find_answer(known)
    log.write_text(json.dumps({**line, "schema_version": 9}, separators=(",", ":")))
    with pytest.raises(ArtifactError, match="schema version 9"):
        find_answer(known)


def test_what_was_champion_is_told_where_a_forged_record_that_was_struck_out_bears_a_date_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer after the strike could be traced: the strike stood there without the record that it names."""
    promoted = {"sequence": 1, "digest": "a", "action": "promote", "to_version": 3, "recorded_at": "2020-01-01T00:00:00+00:00"}
    forged = {"sequence": 2, "digest": "b", "action": "promote", "to_version": 9, "recorded_at": "2999-01-01T00:00:00+00:00"}
    kept = {"sequence": 1, "digest": "a"}
    strike = {"sequence": 3, "digest": "c", "action": "strike", "to_version": 3, "struck": {"2": "b"}, "keeps": kept}
    records = [promoted, forged, {**strike, "recorded_at": "2020-02-01T00:00:00+00:00"}]
    monkeypatch.setattr(answers.record_store, "read_records", lambda _: records)
    answer = find_answer(log_answers(SERVED, ["heart"], [HITS])[0])
    assert answers._standing(answer) == "champion by promotion record 1"


class Clock:
    """The clock of the machine, as the log of answers reads it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at = datetime(2026, 1, 1, tzinfo=UTC)
        clock = self

        class Now(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:
                return clock.at.astimezone(tz)

        monkeypatch.setattr(answers, "datetime", Now)

    def prune_for(self, days: int, every: int = 7) -> list[int]:
        """How many answers a schedule removed at each of its runs of so many days; 0 too where it asked for a gap."""
        removed = []
        for _ in range(0, days, every):
            self.at += timedelta(days=every)
            with suppress(ConfigError):
                removed.append(answers.prune_answers("retriever").removed)
        return removed


def test_a_schedule_removes_answers_after_a_silence_that_it_has_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """After half a year without an answer it asked for `--gap` at every run, for ever."""
    clock = Clock(monkeypatch)
    log_answers(SERVED, ["a", "b"], [HITS, HITS])
    assert sum(clock.prune_for(182)) == 0
    assert clock.prune_for(14) == [2]
    log_answers(SERVED, ["c"], [HITS])
    assert sum(clock.prune_for(182)) == 0
    assert clock.prune_for(7) == [1], "it ran before that answer too"


def test_a_schedule_that_begins_after_the_silence_waits_until_its_own_days_show_the_age(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    log_answers(SERVED, ["a"], [HITS])
    clock.at += timedelta(days=300)
    with pytest.raises(ConfigError, match="A schedule needs none: it removes them once it has seen the clock go on for more than 183 days"):
        answers.prune_answers("retriever")
    assert sum(clock.prune_for(180)) == 0 and sum(clock.prune_for(14)) == 1


@pytest.mark.parametrize("put_right", [True, False])
def test_a_clock_that_jumped_ahead_removes_nothing_that_has_to_be_kept(put_right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    log_answers(SERVED, ["a"], [HITS])
    clock.prune_for(28)
    clock.at += timedelta(days=400)
    assert sum(clock.prune_for(28)) == 0
    log_answers(SERVED, ["of the wrong time"], [HITS])
    if put_right:
        clock.at -= timedelta(days=400)
    assert sum(clock.prune_for(120)) == 0, "the answer is 176 days old"
    assert sum(clock.prune_for(90)) == (1 if put_right else 2)


@pytest.mark.parametrize(("silence", "leap", "after"), [(0, 170, 21), (10, 110, 84), (110, 60, 28)])
def test_a_leap_that_is_shorter_than_the_retention_removes_nothing_that_has_to_be_kept(
    silence: int, leap: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer of four days went: the schedule had begun with the leap, and took the days before for seen."""
    clock = Clock(monkeypatch)
    log_answers(SERVED, ["a"], [HITS])
    clock.prune_for(silence, 5)
    clock.at += timedelta(days=leap)
    assert sum(clock.prune_for(after)) == 0
    assert silence + after < answers.RETENTION_DAYS < silence + leap + after
