"""The badge: what it says, that it can be read by everyone, and that nothing in it is markup of somebody else's."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from service.recommendations.badge import LABEL, Badge, badge
from tuner.evidence import Verdict
from tuner.spec import ClipSetting

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '<script>alert("1")</script> & \x1b[31m\n\u202e\udcff ]]> {{x}}'


def parsed(text: str) -> ElementTree.Element:
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg"
    return root


@pytest.mark.parametrize(
    ("verdict", "setting", "message"),
    [
        (Verdict.CLIP, "global_norm:0.42371", "max_norm 0.424"),
        (Verdict.CLIP, "value:0.01", "clip_value 0.01"),
        (Verdict.CLIP, "global_norm:0.35@0.5", "max_norm 0.35, rate x 0.5"),
        (Verdict.CLIP, "none", "on"),
        (Verdict.DO_NOT_CLIP, "none", "off"),
        (Verdict.NO_DIFFERENCE, "none", "no difference"),
        (Verdict.INCONCLUSIVE, "global_norm:0.42", "not settled"),
        (None, None, "unknown"),
    ],
)
def test_badge_says_what_is_recommended(verdict: Verdict | None, setting: str | None, message: str) -> None:
    found = badge(verdict, None if setting is None else ClipSetting.parse(setting))
    assert (found.label, found.message) == (LABEL, message)


def test_endpoint_has_the_fields_of_shields() -> None:
    found = badge(Verdict.CLIP, ClipSetting(method="global_norm", threshold=0.42)).endpoint()
    assert found == {
        "schemaVersion": 1,
        "label": "gradient clipping",
        "message": "max_norm 0.42",
        "color": "#1a7f37",
        "labelColor": "#424a53",
        "cacheSeconds": 300,
    }
    assert json.loads(json.dumps(found)) == found


def luminance(color: str) -> float:
    """Relative luminance by WCAG 2.2."""
    shares = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("verdict", [*Verdict, None])
def test_white_is_readable_on_every_colour(verdict: Verdict | None) -> None:
    found = badge(verdict).endpoint()
    for name in ("color", "labelColor"):
        assert 1.05 / (luminance(found[name]) + 0.05) >= 4.5


def test_svg_reads_as_one_phrase() -> None:
    text = badge(Verdict.CLIP, ClipSetting(method="global_norm", threshold=0.42)).svg()
    root = parsed(text)
    assert root.get("role") == "img"
    assert root.get("aria-label") == "gradient clipping: max_norm 0.42"
    assert root[0].tag == f"{SVG}title"
    assert root[0].text == "gradient clipping: max_norm 0.42"
    assert [each.text for each in root.iter(f"{SVG}text")] == ["gradient clipping", "max_norm 0.42"]
    assert text.isascii()
    # Nothing is loaded from anywhere.
    assert "href" not in text
    assert text.count("url(") == text.count(f"url(#{root[1].get('id')})") == 1


def test_both_sides_have_room_for_their_text() -> None:
    root = parsed(badge(Verdict.NO_DIFFERENCE).svg())
    left, right = root.findall(f"{SVG}g/{SVG}rect")
    assert float(left.get("width", 0)) + float(right.get("width", 0)) == float(root.get("width", 0))
    assert float(right.get("x", 0)) == float(left.get("width", 0))
    for side, text in zip((left, right), root.iter(f"{SVG}text"), strict=True):
        assert float(text.get("textLength", 0)) == float(side.get("width", 0)) - 14


def test_longer_text_is_wider() -> None:
    widths = [
        float(parsed(badge(None, label=label).svg()).get("width", 0))
        for label in ("il", "mm", "mmmm", "\u6f22" * 4)
    ]
    assert widths == sorted(set(widths))


def test_hostile_label_stays_text() -> None:
    text = badge(None, label=HOSTILE).svg()
    root = parsed(text)
    assert {each.tag for each in root.iter()} == {
        f"{SVG}{tag}" for tag in ("svg", "title", "clipPath", "rect", "g", "text")
    }
    assert str(root.get("aria-label")).startswith('<script>alert("1")</script> &')
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.isascii()
    json.dumps(badge(None, label=HOSTILE).endpoint()).encode()


def test_long_label_is_cut_and_an_empty_one_left_out() -> None:
    assert badge(None, label="x" * 1000).label == "x" * 57 + "..."
    root = parsed(badge(None, label="\x00").svg())
    assert root.get("aria-label") == "unknown"
    assert [each.text for each in root.iter(f"{SVG}text")] == ["unknown"]


def test_badge_of_any_texts_is_valid_xml() -> None:
    assert parsed(Badge("a & b", '"<c>"', "#000000").svg()).get("aria-label") == 'a & b: "<c>"'
