"""Random documents with a planted value: a rewrite changes that value, for every reader of the format, and no other."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from service.ci.errors import ConfigError
from service.ci.locate import locate
from service.ci.rewrite import rewrite
from service.ci.spelling import is_yaml_number, parse_number, rounded, spell_number
from service.ci.tree import spell_key
from tuner.spec import ClipSetting

#: What stands for the planted value until it is spelled.
PLANTED = 12345.678
BOM = b"\xef\xbb\xbf"

thresholds = st.floats(-12, 12).map(lambda exponent: 10**exponent)
# A backslash in a key is what keeps a dot, and = alone is a type of its own in YAML 1.1.
keys = st.text(st.characters(categories=("L", "N", "P", "S", "Zs"), exclude_characters="\\="), max_size=8)
texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=20)
scalars = st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats() | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def planted(draw: st.DrawFn, others: st.SearchStrategy[Any] = values) -> tuple[Any, tuple[str, ...]]:
    """A mapping with the planted value somewhere in it, and the path that leads there."""
    tree: Any = PLANTED
    path: list[str] = []
    for depth in range(draw(st.integers(1, 4))):
        if depth and draw(st.booleans()):
            before, after = draw(st.lists(others, max_size=2)), draw(st.lists(others, max_size=2))
            tree, step = [*before, tree, *after], str(len(before))
        else:
            step = draw(keys)
            siblings = [
                pair for pair in draw(st.dictionaries(keys, others, max_size=3)).items() if pair[0] != step
            ]
            place = draw(st.integers(0, len(siblings)))
            tree = dict([*siblings[:place], (step, tree), *siblings[place:]])
        path.insert(0, step)
    if isinstance(tree, list):
        tree, path = {"root": tree}, ["root", *path]
    return tree, tuple(path)


def swapped(tree: Any, value: float) -> Any:
    """The tree with another value in the planted one's place."""
    if isinstance(tree, dict):
        return {key: swapped(inner, value) for key, inner in tree.items()}
    if isinstance(tree, list):
        return [swapped(inner, value) for inner in tree]
    return value if isinstance(tree, float) and tree == PLANTED else tree


def assert_only_this_changes(
    name: str,
    text: str,
    tree: Any,
    path: tuple[str, ...],
    threshold: float,
    load: Callable[[str], Any],
    bom: bool,
) -> None:
    content = (BOM if bom else b"") + text.encode()
    located = locate(Path(name), content, key=spell_key(path))
    setting = ClipSetting(method="global_norm", threshold=threshold)
    result = rewrite(content, located, setting)
    if not result.is_changed:
        # 1 is 1.0 to every framework.
        assert located.value == rounded(threshold)
        return
    after = result.after.removeprefix(BOM).decode()
    # repr, so that NaN equals NaN and 1.0 does not equal 1.
    assert repr(load(after)) == repr(swapped(tree, rounded(threshold)))
    assert result.after.startswith(BOM) is bom
    assert result.after.count(b"\r\n") == content.count(b"\r\n")
    again = locate(Path(name), result.after, key=spell_key(path))
    assert again.value == rounded(threshold)
    assert not rewrite(result.after, again, setting).is_changed


@settings(deadline=None)
@given(
    planted(),
    thresholds,
    st.fixed_dictionaries(
        {
            "default_flow_style": st.sampled_from([None, False, True]),
            "indent": st.integers(2, 6),
            "width": st.sampled_from([20, 80, 1000]),
            "line_break": st.sampled_from(["\n", "\r\n"]),
            "allow_unicode": st.booleans(),
            "explicit_start": st.booleans(),
            "sort_keys": st.booleans(),
        }
    ),
    st.sampled_from(
        ["1.0", "1", "1e-3", "1e-05", ".5", "7.", "+3.0", "1_000.5", "null", "~", ".inf", "1.0e-05"]
    ),
    st.booleans(),
)
def test_yaml(
    tree_and_path: tuple[Any, tuple[str, ...]],
    threshold: float,
    options: dict[str, Any],
    spelled: str,
    bom: bool,
) -> None:
    tree, path = tree_and_path
    text = yaml.safe_dump(tree, **options).replace(str(PLANTED), spelled, 1)
    expected = yaml.safe_load(yaml.safe_dump(tree, **options))
    assert_only_this_changes("config.yaml", text, expected, path, threshold, yaml.safe_load, bom)


@settings(deadline=None)
@given(
    planted(),
    thresholds,
    st.fixed_dictionaries(
        {
            "indent": st.sampled_from([None, 0, 2, 4, "\t"]),
            "ensure_ascii": st.booleans(),
            "separators": st.sampled_from([None, (",", ":"), (" ,", " : ")]),
        }
    ),
    st.sampled_from(["1.0", "1", "1e-3", "1E+2", "-0.0", "null", "1e-05"]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_json(
    tree_and_path: tuple[Any, tuple[str, ...]],
    threshold: float,
    options: dict[str, Any],
    spelled: str,
    line_end: str,
    bom: bool,
) -> None:
    tree, path = tree_and_path
    text = json.dumps(tree, **options).replace("\n", line_end).replace(str(PLANTED), spelled, 1)
    assert_only_this_changes("config.json", text, tree, path, threshold, json.loads, bom)


plain_texts = st.text("ab .=#[]{}'é", max_size=8)
toml_values = st.recursive(
    st.booleans() | st.integers(-99, 99) | st.floats() | plain_texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain_texts, inner, max_size=3),
    max_leaves=6,
)


def inline_toml(value: Any) -> str:
    if isinstance(value, dict):
        pairs = (
            f"{json.dumps(key, ensure_ascii=False)} = {inline_toml(inner)}" for key, inner in value.items()
        )
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(inline_toml(inner) for inner in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def toml_of(tree: dict[str, Any], prefix: str = "") -> str:
    """Tables with headers as deep as there are mappings, the rest inline."""
    tables = {key: value for key, value in tree.items() if isinstance(value, dict)}
    lines = [
        f"{json.dumps(key, ensure_ascii=False)} = {inline_toml(value)}  # {key}"
        for key, value in tree.items()
        if key not in tables
    ]
    for key, value in tables.items():
        name = f"{prefix}{json.dumps(key, ensure_ascii=False)}"
        lines += [f"[{name}]", toml_of(value, f"{name}.")]
    return "\n".join(lines)


@settings(deadline=None)
@given(
    planted(toml_values),
    thresholds,
    st.sampled_from(["1.0", "1", "1e-3", "+2.0", "1_0.5", "inf"]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_toml(
    tree_and_path: tuple[Any, tuple[str, ...]], threshold: float, spelled: str, line_end: str
) -> None:
    tree, path = tree_and_path
    text = toml_of(tree)
    expected = tomllib.loads(text)
    text = text.replace(f"{PLANTED}", spelled, 1).replace("\n", line_end)
    assert_only_this_changes("config.toml", text, expected, path, threshold, tomllib.loads, bom=False)


@settings(deadline=None)
@given(st.floats(-300, 300).map(lambda exponent: 10**exponent))
def test_spelling_is_a_number_to_every_reader(value: float) -> None:
    text = spell_number(value)
    assert type(yaml.safe_load(text)) is float
    assert is_yaml_number(text)
    read = (
        yaml.safe_load(text),
        json.loads(text),
        tomllib.loads(f"x = {text}")["x"],
        float(text),
        parse_number(text),
    )
    assert set(read) == {rounded(value)}


@settings(deadline=None)
@given(st.text(st.sampled_from("0123456789.eE+-_infa"), min_size=1, max_size=9))
def test_what_yaml_takes_for_a_number_is_known(text: str) -> None:
    """Our rule against PyYAML's own answer, for every token that `parse_number` lets through."""
    if parse_number(text) is not None:
        assert is_yaml_number(text) is isinstance(yaml.safe_load(text), float | int)


@pytest.mark.parametrize("name", ["config.yaml", "config.json", "config.toml", "config.py", "config.sh"])
@settings(deadline=None)
@given(content=st.binary(max_size=60) | st.text("ab:{}[]&*!|>'\"\n\t #-=1.<", max_size=60).map(str.encode))
def test_any_bytes_are_a_value_or_a_refusal(name: str, content: bytes) -> None:
    for arguments in ({"key": "a"}, {"key": "a.0.b", "follow": True}, {"framework": "transformers"}, {}):
        if name == "config.py" and arguments.get("framework"):
            arguments = {"framework": "nanogpt"}
        try:
            located = locate(Path(name), content, **arguments)  # type: ignore[arg-type]
        except ConfigError as error:
            assert error.code != ConfigError.code
        else:
            assert (
                located.is_implicit
                or content[located.token.start : located.token.end].decode() == located.token.text
            )
