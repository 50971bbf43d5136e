"""The sticky comment and the job summary, read back by a Markdown parser."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from service.ci.formats.markdown_report import (
    COMMENT_BYTES,
    MARKER,
    SUMMARY_BYTES,
    code,
    render,
    render_summary,
    text,
)
from service.ci.report import Report, report

_LIST = ("bullet_list", "list_item", "paragraph")
_TABLE = ("table", "thead", "tbody", "tr", "th", "td")
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def tokens(markdown: str) -> list[Token]:
    """All tokens, those within lines included."""
    blocks = PARSER.parse(markdown)
    return [each for block in blocks for each in (block, *(block.children or []))]


def rows(markdown: str) -> list[list[str]]:
    """The cells of the table, as a reader sees them."""
    found: list[list[str]] = []
    for each in PARSER.parse(markdown):
        if each.type == "tr_open":
            found.append([])
        if each.type == "inline" and found and each.level == 4:
            found[-1].append("".join(part.content for part in each.children or [] if part.type == "text"))
    return found


def test_comment_begins_with_the_marker_and_has_a_table(reports: Any) -> None:
    body = render(reports.usual())
    assert body.splitlines()[0] == MARKER
    assert body.count(MARKER) == 1
    assert "### Gradient clipping: 3 clip values checked: 1 failed" in body
    assert rows(body) == [
        ["", "config", "key", "value", "recommended", "verdict"],
        ["failed", "conf/bad.yaml:12", "max_grad_norm", "1.0", "0.35 (0.28 to 0.45)", "regression"],
        ["error", "conf/auto.json:7", "-", "-", "-", "auto_value"],
        ["look", "conf/other.yaml:12", "trainer.gradient_clip_val", "0.5", "-", "no_recommendation"],
        ["ok", "conf/good.yaml:12", "max_grad_norm", "0.35", "0.35 (0.28 to 0.45)", "inside"],
    ]


def test_sentences_are_listed_with_a_link_to_the_study(reports: Any) -> None:
    found = tokens(render(reports.usual()))
    assert sum(each.type == "list_item_open" for each in found) == 3
    links = [each.attrGet("href") for each in found if each.type == "link_open"]
    assert links == ["https://cliptune.example/studies/0f5a1b2c"] * 2


def test_summary_has_no_marker(reports: Any) -> None:
    assert MARKER not in render_summary(reports.usual())
    assert rows(render_summary(reports.usual())) == rows(render(reports.usual()))


def test_outage_is_quoted(reports: Any) -> None:
    body = render(reports.usual(outage=reports.outage))
    assert sum(each.type == "blockquote_open" for each in tokens(body)) == 1
    assert rows(body) == rows(render(reports.usual()))


def test_report_of_nothing_is_a_heading() -> None:
    assert render(Report()) == f"{MARKER}\n### Gradient clipping&#58; No clip value was checked.\n".replace(
        "&#58;", ":"
    )


def test_no_hostile_text_becomes_markup(reports: Any) -> None:
    for hostile in reports.hostile:
        body = render(reports.poisoned(hostile))
        found = tokens(body)
        assert [each.content for each in found if each.type == "html_block"] == [f"{MARKER}\n"], hostile[:40]
        assert {each.content for each in found if each.type == "html_inline"} <= {"<code>", "</code>"}
        assert not {"image", "em_open", "s_open", "code_inline", "fence", "hr"} & {
            each.type for each in found
        }
        links = [str(each.attrGet("href")) for each in found if each.type == "link_open"]
        assert all(each.startswith("https://cliptune.example/") for each in links if "evil" not in each), (
            links
        )
        assert body.count(MARKER) == 1
        assert len(rows(body)) == 5
        assert {len(row) for row in rows(body)} == {6}


@pytest.mark.parametrize(
    "hostile", ["@everyone", "#12", "https://evil.example", "www.evil.example", ":tada:", "$x$"]
)
def test_github_finds_nothing_to_link_or_to_draw(hostile: str) -> None:
    written = text(hostile)
    assert hostile not in written
    shown = "".join(each.content for each in tokens(written) if each.type == "text")
    assert shown.replace("\u200b", "") == hostile
    # A mention or a reference is looked for in what is shown, and is broken there.
    assert ("\u200b" in shown) is (hostile[0] in "@#")


@settings(max_examples=200)
@given(raw=st.text("`*_[](){}<>|\\!#@:&;~-=+\"'^$%/. \nabw1", max_size=30))
def test_any_punctuation_is_text(raw: str) -> None:
    for written in (f"- {code('a')}: {text(raw)}", f"| {text(raw)} |\n| --- |\n| {code(raw)} |"):
        found = tokens(written)
        assert {each.content for each in found if each.type == "html_inline"} <= {"<code>", "</code>"}
        kinds = {each.type.removesuffix("_open").removesuffix("_close") for each in found}
        assert kinds <= {"inline", "text", "html_inline", *_LIST, *_TABLE}


def test_code_of_nothing_is_a_dash() -> None:
    assert code("") == "-"


@pytest.mark.parametrize(("write", "limit"), [(render, COMMENT_BYTES), (render_summary, SUMMARY_BYTES)])
def test_large_report_is_cut_with_a_sentence(reports: Any, write: Any, limit: int) -> None:
    body = write(reports.large(3000))
    assert limit * 0.9 < len(body.encode()) <= limit
    kept = len(rows(body)) - 1
    assert f"{3000 - kept} more findings did not fit here, {3000 - kept} of which fail the check" in body
    assert 0 < kept < 3000


def test_large_report_keeps_the_worst(reports: Any) -> None:
    many = reports.large(1000, "global_norm:0.35")
    mixed = report([*many.judgements, *reports.usual().judgements], refusals=reports.usual().refusals)
    body = render(mixed)
    assert [row[0] for row in rows(body)[:5]] == ["", "failed", "error", "look", "ok"]
    assert "0 of which fail the check" in body


def test_wide_characters_count_by_their_bytes(reports: Any) -> None:
    assert len(render(reports.poisoned("\u6f22" * 50_000)).encode()) <= COMMENT_BYTES
