"""Read Python into nodes without running it: assignments of the module, and the arguments of every call.

A call is an entry of its own: ``Trainer(gradient_clip_val=0.5)`` answers to ``("Trainer()", "gradient_clip_val")``, the
second positional argument of ``utils.clip_grad_norm_(...)`` to ``("clip_grad_norm_()", "1")``. What is no literal stays
a scalar of style ``expression``.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator

from service.ci.readers.errors import FormatError
from service.ci.tree import Document, Entry, MappingNode, Node, ScalarNode, SequenceNode, Style

_LINE_END = re.compile(r"\r\n|\r|\n")
#: How much of an expression is kept to show, in characters.
_SHOWN = 60


def read_python(text: str) -> tuple[Document, ...]:
    """Read a Python file.

    Args:
        text: without a byte order mark.

    Returns:
        Its one document.

    Raises:
        FormatError: if the text is not Python.

    Example:
        >>> (document,) = read_python("grad_clip = 1.0")
        >>> document.root.entries[0].value
        ScalarNode(start=12, end=15, text='1.0', style='plain', tag='', anchor='')
    """
    try:
        with warnings.catch_warnings():
            # The file's own doubtful escapes are not ours to tell.
            warnings.simplefilter("ignore")
            module = ast.parse(text)
    except SyntaxError as error:
        raise FormatError(error.msg, error.lineno) from None
    except (RecursionError, MemoryError, ValueError) as error:
        raise FormatError(str(error) or "nested too deeply", None) from None
    source = _Source(text)
    entries = [*_assignments(module, source), *_calls(module, source)]
    return (Document(MappingNode(0, tuple(entries))),)


class _Source:
    """The text by lines: `ast` counts lines, and bytes within them."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._starts = [0, *(match.end() for match in _LINE_END.finditer(text))]

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        """First character of a node, and the one after its last."""
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self._at(node.lineno, node.col_offset), self._at(node.end_lineno, node.end_col_offset)

    def _at(self, line: int, column: int) -> int:
        start = self._starts[line - 1]
        # At most `column` characters make up that many bytes.
        return start + len(self.text[start : start + column].encode()[:column].decode(errors="ignore"))


def _assignments(module: ast.Module, source: _Source) -> Iterator[Entry]:
    for statement in module.body:
        if isinstance(statement, ast.Assign):
            names, value = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            names, value = [statement.target], statement.value
        else:
            continue
        for name in names:
            if isinstance(name, ast.Name):
                yield Entry(name.id, source.span(statement)[0], _node(value, source))


def _calls(module: ast.Module, source: _Source) -> Iterator[Entry]:
    for call in ast.walk(module):
        if isinstance(call, ast.Call) and (name := _name(call.func)):
            start, node = source.span(call)[0], _call(call, name, source)
            yield Entry(f"{name}()", start, node)
            if isinstance(call.func, ast.Attribute) and (owner := _name(call.func.value)):
                yield Entry(f"{owner}.{name}()", start, node)


def _name(node: ast.expr) -> str:
    """The last part of a dotted name; empty for anything else."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _call(call: ast.Call, name: str, source: _Source) -> MappingNode:
    start = source.span(call)[0]
    given = [(str(index), value) for index, value in enumerate(call.args)]
    # `f(*args, 1.0)`: what stands after it has no position that can be told.
    spread = next(
        (index for index, (_, value) in enumerate(given) if isinstance(value, ast.Starred)), len(given)
    )
    named = [(each.arg, each.value) for each in call.keywords if each.arg is not None]
    entries = [
        Entry(key, source.span(value)[0], _node(value, source)) for key, value in given[:spread] + named
    ]
    return MappingNode(start, tuple(entries), is_flow=True, tag=name)


def _node(value: ast.expr, source: _Source) -> Node:
    start, end = source.span(value)
    if isinstance(value, ast.Dict):
        entries = [
            Entry(key.value, source.span(key)[0], _node(inner, source))
            for key, inner in zip(value.keys, value.values, strict=True)
            if isinstance(key, ast.Constant) and isinstance(key.value, str)
        ]
        return MappingNode(start, tuple(entries), is_flow=True)
    if isinstance(value, ast.Call) and (name := _name(value.func)) and name != "float":
        return _call(value, name, source)
    if isinstance(value, ast.List | ast.Tuple):
        return SequenceNode(start, tuple(_node(inner, source) for inner in value.elts))
    return _scalar(value, start, end, source.text[start:end])


def _scalar(value: ast.expr, start: int, end: int, token: str) -> ScalarNode:
    inner = value.operand if isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.USub) else value
    if isinstance(inner, ast.Constant):
        if isinstance(inner.value, str) and inner is value:
            is_simple = token[0] in "\"'" and token == f"{token[0]}{inner.value}{token[0]}"
            return ScalarNode(start, end, inner.value, _quoted(token) if is_simple else "expression")
        if inner.value is None or isinstance(inner.value, int | float):
            return ScalarNode(start, end, token)
    return ScalarNode(start, end, token[:_SHOWN], "expression")


def _quoted(token: str) -> Style:
    return "double" if token[0] == '"' else "single"
