"""Every file of the corpus: located as expected, rewritten in exactly one place, refused without being touched.

``tests/data/configs/expected.json`` was written by hand: positions are where the author marked the value, not what the
code under test answered. Each file stands for what its ``why`` says.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from service.ci.config import open_config, propose
from service.ci.errors import ConfigError
from service.ci.frameworks import FRAMEWORKS
from service.ci.located import Located
from service.ci.rewrite import Rewrite
from service.ci.write import write
from tuner.spec import ClipSetting

CONFIGS = Path(__file__).parents[2] / "data" / "configs"
CASES: list[dict[str, Any]] = json.loads((CONFIGS / "expected.json").read_text())
REFUSED = [case for case in CASES if "refused" in case]
EXPLICIT = [case for case in CASES if "token" in case]
IMPLICIT = [case for case in CASES if case.get("is_implicit")]
OFF = ClipSetting(method="none")
#: One setting of each kind that a config can hold.
KINDS = {
    "norm": "global_norm:0.42",
    "inf_norm": "global_norm_inf:0.42",
    "value": "value:0.42",
    "agc": "agc:0.42",
    "per_tensor": "per_tensor_norm:0.42",
}


def named(cases: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(case, id=case["file"]) for case in cases]


@pytest.fixture
def copied(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the case's file in an empty folder."""
    source = CONFIGS / request.node.callspec.params["case"]["file"]
    return Path(shutil.copy(source, tmp_path / source.name))


def put(path: Path, setting: ClipSetting, case: dict[str, Any], *, add: bool = False) -> Rewrite:
    """Apply a setting, and give what was done."""
    rewrite = propose(open_config(path, **case.get("args", {})), setting, add=add)
    write(rewrite)
    return rewrite


def line_start(content: bytes, line: int) -> int:
    """Offset of a line's first byte, from 1."""
    return sum(len(each) + 1 for each in content.split(b"\n")[: line - 1])


def offset(content: bytes, case: dict[str, Any]) -> int:
    """Where the expected token begins, by its line and column."""
    start = line_start(content, case["line"])
    mark = content.startswith(b"\xef\xbb\xbf") and case["line"] == 1
    text = content[start:].decode("utf-8-sig" if mark else "utf-8")
    return start + 3 * mark + len(text[: case["column"] - 1].encode())


def replaced(content: bytes, case: dict[str, Any], written: str) -> bytes:
    start = offset(content, case)
    token = case["token"].encode()
    assert content[start : start + len(token)] == token, "the expectation is about this file"
    return content[:start] + written.encode() + content[start + len(token) :]


def differing_lines(before: bytes, after: bytes) -> int:
    old, new = before.split(b"\n"), after.split(b"\n")
    assert len(old) == len(new)
    return sum(a != b for a, b in zip(old, new, strict=True))


def assert_located(located: Located, case: dict[str, Any]) -> None:
    assert (located.framework.name if located.framework else None) == case["framework"]
    assert (located.key, located.kind) == (case["key"], case["kind"])
    assert (located.line, located.column) == (case["line"], case["column"])
    assert located.token.text == case["token"]
    assert located.value == (None if case["value"] == "off" else case["value"])
    assert located.is_off is (case["value"] == "off" or case.get("is_off", False))
    assert located.is_read_as_text is case.get("is_read_as_text", False)
    assert not located.is_implicit


def test_corpus_is_all_of_it() -> None:
    files = {
        path.relative_to(CONFIGS).as_posix()
        for path in CONFIGS.rglob("*")
        if path.is_file() and path.parent != CONFIGS and not path.name.startswith(".")
    }
    assert files == {case["file"] for case in CASES}
    assert len(CASES) >= 60
    seen = {case.get("framework") for case in CASES} | {case["file"].partition("/")[0] for case in REFUSED}
    assert set(FRAMEWORKS) <= seen, "every framework of the table has a file"


@pytest.mark.parametrize("case", named(EXPLICIT))
def test_value_is_located_where_its_author_marked_it(case: dict[str, Any]) -> None:
    path = CONFIGS / case["file"]
    config = open_config(path, **case.get("args", {}))
    assert_located(config.located, case)
    token = config.located.token
    assert config.content[token.start : token.end].decode() == case["token"]


@pytest.mark.parametrize("case", named(EXPLICIT))
def test_threshold_is_written_in_one_place(case: dict[str, Any], copied: Path) -> None:
    before, setting = copied.read_bytes(), ClipSetting.parse(case["setting"])
    written = case["written"]
    if not written[-1].isdigit() and written[-1] not in "'\"":
        with pytest.raises(ConfigError) as caught:
            put(copied, setting, case)
        assert caught.value.code == written
        assert copied.read_bytes() == before
        return
    rewrite = put(copied, setting, case)
    after = copied.read_bytes()
    assert after == rewrite.after == replaced(before, case, written)
    assert differing_lines(before, after) == 1
    assert rewrite.diff.count("\n+") - rewrite.diff.count("\n+++") == 1
    found = open_config(copied, **case.get("args", {})).located
    assert found.value == 0.42
    assert found.setting in (setting, None)
    assert not put(copied, setting, case).is_changed, "already applied"


@pytest.mark.parametrize("case", named(EXPLICIT))
def test_off_is_written_as_the_framework_spells_it(case: dict[str, Any], copied: Path) -> None:
    before, off = copied.read_bytes(), case["off"]
    if isinstance(off, str) and off in ("off_spelling", "flag_only", "rewrite_refused"):
        with pytest.raises(ConfigError) as caught:
            put(copied, OFF, case)
        assert caught.value.code == off
        assert copied.read_bytes() == before
        return
    put(copied, OFF, case)
    after = copied.read_bytes()
    if isinstance(off, dict) and "removed" in off:
        assert before.count(off["removed"].encode()) == 1
        assert after == before.replace(off["removed"].encode(), b"")
    elif isinstance(off, dict):
        old, new = before.decode().split("\n"), after.decode().split("\n")
        assert new == [*old[: off["line"] - 1], off["text"], *old[off["line"] :]]
    else:
        assert after == (before if off == "unchanged" else replaced(before, case, off))
    assert open_config(copied, **case.get("args", {})).located.is_off
    assert not put(copied, OFF, case).is_changed, "already applied"


@pytest.mark.parametrize("case", named([case for case in EXPLICIT if case["kind"]]))
def test_kinds_are_never_crossed(case: dict[str, Any], copied: Path) -> None:
    before = copied.read_bytes()
    for setting in [text for kind, text in KINDS.items() if kind != case["kind"]]:
        with pytest.raises(ConfigError) as caught:
            put(copied, ClipSetting.parse(setting), case)
        assert caught.value.code == "kind_mismatch"
        assert copied.read_bytes() == before


@pytest.mark.parametrize("case", named(IMPLICIT))
def test_absent_key_is_the_default(case: dict[str, Any], copied: Path) -> None:
    located = open_config(copied, **case.get("args", {})).located
    assert located.is_implicit
    assert located.framework is not None
    assert (located.framework.name, located.key, located.kind) == (
        case["framework"],
        case["key"],
        case["kind"],
    )
    assert located.value == (None if case["value"] == "off" else case["value"])
    assert located.is_off is (case["value"] == "off")


@pytest.mark.parametrize("is_off", [False, True], ids=["threshold", "off"])
@pytest.mark.parametrize("case", named(IMPLICIT))
def test_absent_key_is_added_as_one_line_and_only_if_asked(
    case: dict[str, Any], copied: Path, is_off: bool
) -> None:
    before = copied.read_bytes()
    setting, expected = (OFF, case["off"]) if is_off else (ClipSetting.parse(case["setting"]), case["added"])
    if expected == "unchanged":
        assert not put(copied, setting, case, add=True).is_changed
        return
    with pytest.raises(ConfigError) as caught:
        put(copied, setting, case)
    assert caught.value.code == ("off_spelling" if expected == "off_spelling" else "missing_key")
    if isinstance(expected, str):
        with pytest.raises(ConfigError) as caught:
            put(copied, setting, case, add=True)
        assert caught.value.code == expected
        assert copied.read_bytes() == before
        return
    line, text = expected
    put(copied, setting, case, add=True)
    end = "\r" if b"\r\n" in before else ""
    old, new = before.decode().split("\n"), copied.read_bytes().decode().split("\n")
    assert new == [*old[: line - 1], text + end, *old[line - 1 :]]
    found = open_config(copied, **case.get("args", {})).located
    assert (found.is_implicit, found.line, found.is_off) == (False, line, is_off)
    assert found.value == 0.42 or is_off


@pytest.mark.parametrize("case", named(REFUSED))
def test_refused_file_is_told_why_and_not_touched(case: dict[str, Any], copied: Path) -> None:
    before = copied.read_bytes()
    for setting in (ClipSetting.parse("global_norm:0.42"), OFF):
        with pytest.raises(ConfigError) as caught:
            put(copied, setting, case, add=True)
        assert caught.value.code == case["refused"], str(caught.value)
        assert caught.value.line == case.get("line")
        assert caught.value.exit_code == 2
        assert str(caught.value).startswith(str(copied))
    assert copied.read_bytes() == before


def test_infinity_is_off_where_it_is_written_as_off() -> None:
    located = open_config(CONFIGS / "torchtitan" / "llama3_8b.toml").located
    rewrite = propose(open_config(located.path), OFF)
    assert rewrite.written == "inf"
    assert math.isinf(float(rewrite.written))
