"""Key paths through aliases, merge keys, lists and wildcards, held against what PyYAML makes of the same text."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from service.ci.readers.errors import FormatError
from service.ci.readers.json_reader import read_json
from service.ci.readers.python_reader import read_python
from service.ci.readers.script_reader import read_script
from service.ci.readers.toml_reader import place_toml, read_toml
from service.ci.readers.yaml_reader import read_yaml
from service.ci.tree import (
    ANY,
    Document,
    Found,
    MappingNode,
    ScalarNode,
    find,
    has,
    parse_key,
    scalars,
    spell_key,
)


def only(document: Document, path: tuple[str, ...]) -> Found:
    (found,) = find(document, path)
    return found


def text_of(document: Document, path: tuple[str, ...]) -> str:
    node = only(document, path).node
    assert isinstance(node, ScalarNode)
    return node.text


@st.composite
def merged_yaml(draw: st.DrawFn) -> str:
    """Mappings of which later ones merge earlier ones, one or several."""
    lines = []
    for index in range(draw(st.integers(1, 5))):
        lines.append(f"m{index}: &a{index}")
        bases = draw(st.lists(st.integers(0, index - 1), max_size=3, unique=True)) if index else []
        merge = f"  <<: {f'*a{bases[0]}' if len(bases) == 1 else [f'*a{each}' for each in bases]}".replace(
            "'", ""
        )
        own = [f"  k{key}: {index}{key}" for key in draw(st.sets(st.integers(0, 4)))]
        own.insert(draw(st.integers(0, len(own))), merge if bases else "  own: 1")
        lines += own
    return "\n".join(lines)


@settings(deadline=None)
@given(merged_yaml())
def test_merge_keys_are_followed_as_pyyaml_merges_them(text: str) -> None:
    (document,) = read_yaml(text)
    loaded: dict[str, dict[str, Any]] = yaml.safe_load(text)
    for name, mapping in loaded.items():
        for key in ("k0", "k1", "k2", "k3", "k4"):
            assert has(document, (name, key)) is (key in mapping)
            if key in mapping:
                assert int(text_of(document, (name, key))) == mapping[key]
        every = {found.path[-1]: found for found in find(document, (name, ANY))}
        assert set(every) == set(mapping)
    for key in ("k0", "k1"):
        held = {found.path[0] for found in find(document, (ANY, key))}
        assert held == {name for name, mapping in loaded.items() if key in mapping}


def test_way_to_an_inherited_value_is_told() -> None:
    (document,) = read_yaml("base: &b\n  clip: &c 1.0\nrun:\n  <<: *b\nother: *c\n")
    inherited = only(document, ("run", "clip"))
    assert [alias.name for alias in inherited.indirect] == ["b"]
    own = only(document, ("base", "clip"))
    assert own.indirect == ()
    assert [alias.name for alias in own.shared] == ["b", "c"], (
        "whoever merges the mapping has the value as well"
    )


def test_alias_leads_to_the_latest_anchor_of_its_name() -> None:
    (document,) = read_yaml("a: &x 1\nb: *x\nc: &x 2\nd: *x\n")
    assert [text_of(document, (key,)) for key in "abcd"] == ["1", "1", "2", "2"]


def test_anchor_that_encloses_its_alias_leads_nowhere() -> None:
    (document,) = read_yaml("a: &x\n  b: *x\n  c: 1\n")
    assert find(document, ("a", "b")) == []
    assert text_of(document, ("a", "c")) == "1"


def test_alias_of_a_whole_mapping_and_of_the_root() -> None:
    (document,) = read_yaml("x: &t {clip: 1}\ntrainer: *t\n")
    assert [alias.name for alias in only(document, ("trainer", "clip")).indirect] == ["t"]


def test_anchors_end_with_their_document() -> None:
    """PyYAML's parser gives the alias; its composer would refuse it."""
    first, second = read_yaml("a: &x 1\n---\nb: *x\n")
    assert text_of(first, ("a",)) == "1"
    assert find(second, ("b",)) == []


@pytest.mark.parametrize(
    ("text", "path", "spelled"),
    [
        ("a: [1, {b: 2}]", ("a", "1", "b"), "2"),
        ("a: [1, 2]", ("a", "1"), "2"),
        ("1: {2: x}", ("1", "2"), "x"),
        ("'a.b': {c: x}", ("a.b", "c"), "x"),
        ("? a\n: x", ("a",), "x"),
        ("- a: x", ("0", "a"), "x"),
    ],
)
def test_yaml_paths(text: str, path: tuple[str, ...], spelled: str) -> None:
    (document,) = read_yaml(text)
    assert text_of(document, path) == spelled


def test_path_beyond_a_list_or_a_scalar_leads_nowhere() -> None:
    (document,) = read_yaml("a: [1]\nb: 2\n? [x, y]\n: 3\n")
    for path in (("a", "1"), ("a", "x"), ("a", "-1"), ("b", "c"), ("c",)):
        assert find(document, path) == []
    assert len(scalars(document)) == 5, "a list as a key is kept for comparing"


def test_duplicates_are_both_found() -> None:
    for document in (*read_json('{"a": 1, "a": 2}'), *read_yaml("a: 1\na: 2")):
        assert [
            found.node.text for found in find(document, ("a",)) if isinstance(found.node, ScalarNode)
        ] == [
            "1",
            "2",
        ]


def test_dots_in_keys_are_escaped() -> None:
    for path in (("a", "b"), ("a.b", "c.d.e"), ("", ".")):
        assert parse_key(spell_key(path)) == path


@pytest.mark.parametrize(
    ("read", "text", "line"),
    [
        (read_yaml, "a: 1\n b: 2", 2),
        (read_yaml, "b: 1\na: \x00", 2),
        (read_json, '{\n"a": }', 2),
        (read_json, "[" * 100_000, None),
        (read_toml, "a = 1\nb = \nc = 1", 2),
        (read_python, "a = 1\nb = (", 2),
        (read_toml, "a = " + "[" * 100_000, None),
        (read_python, "a = 1\x00", None),
        (read_python, "a = " + "-" * 100_000 + "1", None),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_invalid_text_is_told_with_its_line(read: Any, text: str, line: int | None) -> None:
    with pytest.raises(FormatError) as caught:
        read(text)
    assert line is None or caught.value.line == line


def test_deep_yaml_is_read_without_recursion() -> None:
    (document,) = read_yaml("[" * 5000 + "1" + "]" * 5000)
    ((path, node),) = scalars(document)
    assert len(path) == 5000
    assert isinstance(node, ScalarNode)


def test_python_positions_count_characters_not_bytes() -> None:
    text = 'é = "ü"; grad_clip = 0.5\r\nx = 1\rgrad = -2\n'
    (document,) = read_python(text)
    for path, token in ((("grad_clip",), "0.5"), (("grad",), "-2"), (("x",), "1")):
        node = only(document, path).node
        assert isinstance(node, ScalarNode)
        assert text[node.start : node.end] == node.text == token


def test_python_arguments_after_a_spread_have_no_position() -> None:
    (document,) = read_python("clip_grad_norm_(*parameters, 1.0)\nf(**options, max_norm=2.0)")
    assert find(document, ("clip_grad_norm_()", "1")) == []
    assert text_of(document, ("f()", "max_norm")) == "2.0"


def test_python_doubtful_escapes_of_the_file_are_not_warned_of() -> None:
    (document,) = read_python('pattern = "\\d"\nclip: float = 1.0\n')
    assert text_of(document, ("clip",)) == "1.0"


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("run --clip-grad 1.0", "--clip-grad", "1.0"),
        ("run --clip-grad=1.0", "--clip-grad", "1.0"),
        ("run --clip-grad='1.0' -x", "--clip-grad", "1.0"),
        ('run "--clip-grad" "1.0"', "--clip-grad", "1.0"),
        ("run --clip-grad \\\n  1.0", "--clip-grad", "1.0"),
        ("run --clip-grad \\\r\n  1.0", "--clip-grad", "1.0"),
        ("run --clip-grad -1", "--clip-grad", "-1"),
        ("run --clip-grad --fp16", "--clip-grad", ""),
        ("run --clip-grad", "--clip-grad", ""),
        ("run --clip-grad= --fp16", "--clip-grad", ""),
        ("run --clip-grad ${CLIP:-1.0}", "--clip-grad", "${CLIP:-1.0}"),
        ("run --clip-grad $(cat clip.txt)", "--clip-grad", "$(cat clip.txt)"),
        ("A=(--clip-grad 1.0)", "--clip-grad", "1.0"),
        ("run it#not-a-comment --clip-grad 1.0;next", "--clip-grad", "1.0"),
        ('x="# no comment --clip-grad 1.0"', "--clip-grad", "1.0"),
        ("CLIP=1.0 run", "CLIP", "1.0"),
        ("run ++trainer.clip=1.0 x=1", "trainer.clip", "1.0"),
        ('run "trainer.clip=1.0"', "trainer.clip", "1.0"),
        ("# don't\nrun --clip-grad 1.0 # it's", "--clip-grad", "1.0"),
    ],
)
def test_script_words(text: str, key: str, value: str) -> None:
    (document,) = read_script(text)
    node = only(document, (key,)).node
    assert isinstance(node, ScalarNode)
    assert node.text == text[node.start : node.end] == value


def test_script_comments_hold_no_flags() -> None:
    (document,) = read_script("#!/bin/sh\n# --clip-grad 1.0\nrun # --clip-grad 2.0\n")
    assert isinstance(document.root, MappingNode)
    assert not document.root.entries


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("clip = 0.5", ("clip",)),
        ("a.b.clip = 0.5", ("a", "b", "clip")),
        ('["a.b"]\nclip = 0.5', ("a.b", "clip")),
        ("[[a]]\n[[a]]\nclip = 0.5", ("a", "1", "clip")),
        ("x = [[1, 0.5], [0.5]]", ("x", "1", "0")),
        ('text = """\nclip = 0.5\n"""\nclip = 0.5', ("clip",)),
        ("# clip = 0.5\nclip = 0.5 # 0.5", ("clip",)),
    ],
)
def test_toml_token_is_the_one_under_the_key(text: str, path: tuple[str, ...]) -> None:
    node = place_toml(text, path)
    assert node is not None
    changed = text[: node.start] + "9.25" + text[node.end :]
    assert text_of(read_toml(changed)[0], path) == "9.25"
    assert [each.text for _, each in scalars(read_toml(changed)[0]) if isinstance(each, ScalarNode)].count(
        "9.25"
    ) == 1


def test_empty_files_have_no_documents_or_keys() -> None:
    assert read_yaml("") == read_yaml("# nothing\n") == ()
    assert find(read_yaml("---\n")[0], ("a",)) == []
    assert find(read_script("")[0], ("a",)) == []
    assert find(read_toml("")[0], ("a",)) == []
