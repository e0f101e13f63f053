"""What every page of HTML rests on: all that is put into a template is escaped, and nothing that it asks for may be missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jinja2 import FileSystemLoader, UndefinedError
from markupsafe import Markup

from components import templates
from components.errors import ArtifactError
from components.templates import environment, page, piece, plain, shortened


class Named:
    """An object whose words come from the data."""

    def __str__(self) -> str:
        return "<b>\x00"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with templates of the test's own."""
    environment.cache_clear()
    environment().loader = FileSystemLoader(tmp_path)
    yield tmp_path
    environment.cache_clear()


def test_text_is_escaped_whatever_object_it_comes_from_and_markup_stays(folder: Path) -> None:
    (folder / "p.j2").write_text('<a title="{{ a }}">{{ a }}{{ b }}{{ c }}{{ 5 }}</a>')
    text = page("p.j2", a="\"'<i>&amp;", b=Markup("<i>made</i>"), c=Named())
    quoted = "&#34;&#39;&lt;i&gt;&amp;amp;"
    assert text == f'<a title="{quoted}">{quoted}<i>made</i>&lt;b&gt;\ufffd5</a>'


def test_a_macro_is_a_piece_that_other_pieces_take_as_it_is(folder: Path) -> None:
    (folder / "p.j2").write_text("{% macro bold(text) %}\n<b>{{ text }}</b>\n{% endmacro %}")
    once = piece("p.j2", "bold", "<")
    assert once == "<b>&lt;</b>" and isinstance(once, Markup)
    assert piece("p.j2", "bold", once) == "<b><b>&lt;</b></b>"


@pytest.mark.parametrize("asked", ["{{ absent }}", "{% if absent %}{% endif %}", "{% for x in absent %}{% endfor %}", "{{ given.absent }}"])
def test_what_a_template_asks_for_and_nobody_gave_is_an_error_and_not_an_empty_place(folder: Path, asked: str) -> None:
    (folder / "p.j2").write_text(f"{asked}{{% macro m(given) %}}{asked}{{% endmacro %}}")
    with pytest.raises(UndefinedError):
        page("p.j2", given={})
    (folder / "m.j2").write_text(f"{{% macro m(given) %}}{asked}{{% endmacro %}}")
    with pytest.raises(UndefinedError):
        piece("m.j2", "m", {})


def test_a_template_that_is_gone_or_that_another_one_needs_is_named(folder: Path) -> None:
    (folder / "p.j2").write_text('{% include "gone.j2" %}')
    for name in ("gone.j2", "p.j2"):
        with pytest.raises(ArtifactError, match=r"no template components/gone\.j2"):
            page(name)


def test_characters_that_no_page_may_hold_are_marked() -> None:
    assert plain("a\x00\x1b\ud800\n\t\u202e") == "a\ufffd\ufffd\ufffd  \u202e"
    assert shortened("abcdef", 4) == "abc…" and shortened("abcd", 4) == "abcd"


def test_every_template_of_the_project_can_be_read() -> None:
    root = Path(templates.__file__).parent
    found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.j2"))
    assert len(found) > 5
    for name in found:
        environment().get_template(name)
