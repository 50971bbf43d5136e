"""What holds for every format: it is listed, it can be written to a file, and no text breaks its lines."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.ci.formats.registry import FORMATS, UnknownFormatError, default_format, render
from service.ci.formats.texts import LONGEST, place, visible
from service.ci.report import Report

#: What no report may hold: control characters but for line ends, and characters without a shape.
UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def assert_harmless(text: str, format_name: str) -> None:
    text.encode()
    assert text.endswith("\n"), format_name
    found = {each for each in text if each != "\n" and unicodedata.category(each) in UNPRINTABLE}
    assert not found, (format_name, found)


@pytest.mark.parametrize("format_name", FORMATS)
def test_format_writes_every_kind_of_report(reports: Any, format_name: str) -> None:
    for each in (
        Report(),
        reports.good(),
        reports.usual(),
        reports.usual(outage=reports.outage),
        reports.large(300),
    ):
        assert_harmless(render(each, format_name), format_name)


@pytest.mark.parametrize("format_name", FORMATS)
def test_hostile_text_stays_within_its_line(reports: Any, format_name: str) -> None:
    plain = render(reports.poisoned("train"), format_name)
    for text in reports.hostile:
        written = render(reports.poisoned(text), format_name)
        assert_harmless(written, format_name)
        # As many lines as for a harmless name: nothing began a line of its own. A table breaks long sentences, and
        # links and metrics of one address or value fall away.
        if format_name not in ("table", "gitlab-annotations"):
            assert written.count("\n") == plain.count("\n"), text[:50]


@pytest.mark.parametrize("format_name", [each for each in FORMATS if each != "json"])
def test_long_text_is_cut(reports: Any, format_name: str) -> None:
    assert len(render(reports.poisoned("x" * 100_000), format_name)) < 120_000


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec=None), max_size=40))
def test_any_text_is_harmless_in_every_format(reports: Any, text: str) -> None:
    found = reports.poisoned(text)
    for format_name in FORMATS:
        assert_harmless(render(found, format_name), format_name)


def test_unknown_format_lists_the_known_ones() -> None:
    with pytest.raises(
        UnknownFormatError, match="there is no format 'sarif': use one of table, plain, json"
    ) as raised:
        render(Report(), "sarif")
    assert (raised.value.code, raised.value.exit_code) == ("unknown_format", 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("conf/train.yaml", "conf/train.yaml"),
        ("a\r\nb\tc", "a\\r\\nb\\tc"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\u202eb", "a\\u202eb"),
        ("a\U000e0001b", "a\\U000e0001b"),
        ("a\udcffb", "a\\xffb"),
        ("a\ud800b", "a\\ud800b"),
        ("\u6f22\u5b57", "\u6f22\u5b57"),
        ("x##[error]y", "x## [error]y"),
        ("x" * LONGEST, "x" * LONGEST),
    ],
)
def test_visible_text_shows_what_it_can_not_print(text: str, expected: str) -> None:
    assert visible(text) == expected


def test_visible_text_keeps_both_ends() -> None:
    shown = visible("begin" + "x" * LONGEST + "end")
    assert len(shown) <= LONGEST
    assert shown.startswith("begin")
    assert shown.endswith("end")


def test_place_of_an_absent_key_has_no_line() -> None:
    assert place("a.yaml", 3) == "a.yaml:3"
    assert place("a.yaml", 1, is_implicit=True) == "a.yaml"


@pytest.mark.parametrize(
    ("is_terminal", "is_github", "expected"),
    [(True, False, "table"), (False, False, "plain"), (False, True, "github"), (True, True, "github")],
)
def test_default_format_follows_the_reader(is_terminal: bool, is_github: bool, expected: str) -> None:
    assert default_format(is_terminal=is_terminal, is_github=is_github) == expected
    assert expected in FORMATS


def test_judging_and_printing_load_nothing_heavy() -> None:
    modules = ("verdict", "lock", "outage", "recommended", "formats.registry")
    imports = "; ".join(f"import service.ci.{each}" for each in modules)
    writes = "from service.ci.report import Report; [service.ci.formats.registry.render(Report(), each) for each in "
    program = f"{imports}; {writes} service.ci.formats.registry.FORMATS]; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {each.partition(".")[0] for each in done.stdout.split()}
    heavy = {
        "torch",
        "optuna",
        "numpy",
        "scipy",
        "pydantic",
        "sqlalchemy",
        "fastapi",
        "httpx2",
        "rich",
        "typer",
        "plotly",
    }
    assert loaded & heavy == set()
