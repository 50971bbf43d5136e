"""Read a shell script into nodes: the flags of its commands and its assignments, by the shell's own word rules.

No shell runs. A word ends at a blank, a quote or an operator; a backslash before a line's end is a blank; comments are
left out. Flags within a quoted text count as well: ``ARGS="--clip-grad 1.0 ..."`` is how launch scripts keep them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import zip_longest

from service.ci.tree import Document, Entry, MappingNode, ScalarNode, Style

_TOKEN = re.compile(
    r"""(?P<blank>\\\r?\n|[\s;|&()<>]+)
      | (?P<comment>\#[^\r\n]*)
      | (?P<quote>["'])
      | (?P<word>(?:\$\{[^}]*\}|\$\([^)]*\)|`[^`]*`|\\[^\r\n]|[^\s"';|&()<>\\`])+)
      | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_FLAG = re.compile(r"--?[A-Za-z][\w.-]*")
#: A variable, or an override as Hydra takes it.
_ASSIGNMENT = re.compile(r"\+{0,2}([A-Za-z_][\w.]*)(?==)")


@dataclass(frozen=True)
class _Word:
    """A run of characters that is one word, or part of one next to a quote."""

    start: int
    end: int
    text: str
    quote: str


def read_script(text: str) -> tuple[Document, ...]:
    r"""Read a shell script.

    Args:
        text: without a byte order mark.

    Returns:
        Its one document: each flag and each assigned variable with its value; a flag without one is empty.

    Example:
        >>> (document,) = read_script("torchrun train.py \\\n  --clip-grad 1.0  # --clip-grad 2.0")
        >>> [(entry.key, entry.value.text) for entry in document.root.entries]
        [('--clip-grad', '1.0')]
    """
    words = _words(text)
    entries = []
    for word, after in zip_longest(words, words[1:]):
        flag, assignment = _FLAG.match(word.text), _ASSIGNMENT.match(word.text)
        if flag:
            entries.append(Entry(flag[0], word.start, _value(word, flag.end(), after, is_flag=True)))
        elif assignment:
            value = _value(word, assignment.end(), after, is_flag=False)
            entries.append(Entry(assignment[1], word.start, value))
    return (Document(MappingNode(0, tuple(entries))),)


def _value(word: _Word, key_length: int, after: _Word | None, *, is_flag: bool) -> ScalarNode:
    """What follows a key: after ``=``, or for a flag in the next word."""
    rest = word.text[key_length:]
    if rest.startswith("=") and len(rest) > 1:
        return _scalar(_Word(word.start + key_length + 1, word.end, rest[1:], word.quote))
    if after is not None:
        is_glued = rest == "=" and after.start == word.end + 1 and bool(after.quote)
        is_next = not rest and is_flag and not _FLAG.fullmatch(after.text.partition("=")[0])
        if is_glued or is_next:
            return _scalar(after)
    return ScalarNode(word.end, word.end, "")


def _scalar(word: _Word) -> ScalarNode:
    style: Style = "expression" if re.search(r"[$`\\]", word.text) else "plain"
    return ScalarNode(word.start, word.end, word.text, style)


def _words(text: str) -> list[_Word]:
    words: list[_Word] = []
    quote, is_at_start, position = "", True, 0
    while match := _TOKEN.match(text, position):
        position = match.end()
        kind = match.lastgroup
        if kind == "comment" and (quote or not is_at_start):
            # Within quotes or a word, # is a character like any other: read on after it.
            position = match.start() + 1
        elif kind == "quote":
            quote = "" if quote == match[0] else quote or match[0]
        elif kind == "word":
            words.append(_Word(match.start(), match.end(), match[0], quote))
        is_at_start = kind == "blank" or (kind == "comment" and is_at_start)
    return words
