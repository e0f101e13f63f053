from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import tqdm.std

from components.progress import counting, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that tqdm reads, and the hand that moves it."""
    now = [1000.0]
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])

    def wait(passed: float) -> None:
        now[0] += passed

    return wait


def shown_while_working(seconds: Callable[[float], None], stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    """What stands on stderr after forty units of a second each."""
    monkeypatch.setattr("sys.stderr", stderr)
    with progress_bar(40, "work", "unit", miniters=1) as bar:
        for _ in range(40):
            seconds(1.001)
            bar.update()
    return stderr.getvalue()


def test_without_a_terminal_there_is_a_line_every_ten_seconds(seconds: Callable[[float], None], monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown_while_working(seconds, io.StringIO(), monkeypatch)
    assert "\r" not in text
    lines = text.splitlines()
    assert [line.split("|")[-1].split("[")[0].strip() for line in lines] == ["10/40", "20/40", "30/40", "40/40"]


def test_in_a_terminal_the_bar_moves_every_second(seconds: Callable[[float], None], monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown_while_working(seconds, Terminal(), monkeypatch)
    assert text.count("\r") >= 40
    assert all(f"{done}/40" in text for done in range(41))


def test_short_work_says_one_line_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    with counting("queries", 3, "query") as done:
        for _ in range(3):
            done(1)
    assert stderr.getvalue().startswith("queries: 100%") and stderr.getvalue().count("\n") == 1


def test_work_that_fails_shows_how_far_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    with pytest.raises(KeyboardInterrupt), counting("queries", 4, "query") as done:
        done(1)
        raise KeyboardInterrupt
    assert "1/4" in stderr.getvalue()


def test_nobody_or_the_caller_can_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr, told = io.StringIO(), list[int]()
    monkeypatch.setattr("sys.stderr", stderr)
    for follower in (None, told.append):
        with counting(follower, 3, "text") as done:
            done(2)
            done(1)
    assert told == [2, 1] and stderr.getvalue() == ""
