"""Write a clip setting into a config: one token is replaced, every other byte stays, and the result is read again.

No document is ever dumped: comments, quotes, line ends, indentation and the byte order mark survive because nobody
touches them. The outcome is compared value by value with what was there; an edit that would change anything else, or
more than one line, is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from service.ci.errors import (
    ConfigChangedError,
    ConfigSyntaxError,
    FlagOnlyError,
    KeyPathError,
    KindMismatchError,
    RewriteRefusedError,
)
from service.ci.framework import METHODS, Kind
from service.ci.insertion import Edit, insertion
from service.ci.located import Located, Token
from service.ci.off import off_edit
from service.ci.source import Source, read_source
from service.ci.spelling import rounded, spell_number
from service.ci.tree import NOWHERE, AliasNode, scalars
from tuner.methods import get_method
from tuner.spec import ClipSetting

_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_QUOTES = ("'", '"')
#: What a kind limits, in words.
_LIMITS: dict[Kind, str] = {
    "norm": "the L2 norm of the whole gradient",
    "inf_norm": "the largest element of the gradient, by scaling the whole",
    "value": "each element of the gradient",
    "agc": "the ratio of gradient norm to weight norm of each unit",
    "per_tensor": "the L2 norm of each tensor on its own",
}


@dataclass(frozen=True)
class Rewrite:
    """A config before and after.

    Attributes:
        path: of the file.
        before: its bytes as they were looked at.
        after: its bytes with the setting; the same if it was there already.
        line: of the change, from 1.
        written: the token that was written; empty if nothing was, or a flag was left out.
    """

    path: Path
    before: bytes
    after: bytes
    line: int
    written: str

    @property
    def is_changed(self) -> bool:
        """Whether there is anything to write."""
        return self.before != self.after

    @property
    def diff(self) -> str:
        """The change as a unified diff with line ends as they are; empty without one."""
        import difflib

        before, after = (_LINE.findall(content.decode("utf-8-sig")) for content in (self.before, self.after))
        name = self.path.as_posix().lstrip("/")
        lines = difflib.unified_diff(before, after, f"a/{name}", f"b/{name}")
        return "".join(
            line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
        )


def rewrite(content: bytes, located: Located, setting: ClipSetting, *, add: bool = False) -> Rewrite:
    r"""Put a setting in the place of a located value.

    Args:
        content: the file's bytes, as they were located in.
        located: what `locate` found there.
        setting: what to write; its threshold with three digits.
        add: whether to insert a key that is absent.

    Returns:
        Both versions; the same bytes if the setting is in force already.

    Raises:
        ConfigError: if the key can't hold the setting, or the edit would not be one exact line.
        ConfigChangedError: if the bytes are others.

    Example:
        >>> from service.ci.locate import locate
        >>> content = b"trainer: {gradient_clip_val: 1}  # by hand\n"
        >>> found = locate(Path("fit.yaml"), content)
        >>> rewrite(content, found, ClipSetting(method="global_norm", threshold=0.4237)).after
        b'trainer: {gradient_clip_val: 0.424}  # by hand\n'
    """
    if content[located.token.start : located.token.end] != located.token.text.encode():
        raise ConfigChangedError(located.path, "is not what the value was located in: locate it again")
    source = read_source(located.path, content)
    edit = decide(source, located, setting, add=add)
    if edit is None:
        return Rewrite(located.path, content, content, located.line, "")
    start, end = source.offset_of(edit.start), source.offset_of(edit.end)
    after = content[:start] + edit.text.encode() + content[end:]
    _require_exact(source, after, edit)
    return Rewrite(located.path, content, after, source.line_of(edit.start), edit.text.strip())


def decide(source: Source, located: Located, setting: ClipSetting, *, add: bool = False) -> Edit | None:
    """What to change, without changing it.

    Args:
        source: the file.
        located: its clip value.
        setting: what to write.
        add: whether to insert a key that is absent.

    Returns:
        The edit; None if the setting is in force already.

    Raises:
        RewriteRefusedError: if one number is not all that the setting is, or clipping is switched off beside it.
        FlagOnlyError: if the value is given on the command line only.
        KeyPathError: if the key is absent and may not be added.
    """
    _require_same_kind(located, setting)
    if located.is_off and setting.is_off:
        return None
    if located.place is not None and located.place.flag:
        value = "inf" if setting.threshold is None else spell_number(setting.threshold)
        raise FlagOnlyError(
            located.path,
            f"is Python, not rewritten here: pass {located.place.flag} {value}",
            line=located.line,
        )
    if setting.threshold is None:
        return off_edit(source, located, add=add)
    if located.is_switched_off:
        raise RewriteRefusedError(
            located.path,
            f"clipping is switched off: set {located.place.switch_key if located.place else 'it'} to true first",
            line=located.line,
        )
    threshold = rounded(setting.threshold)
    if located.value == threshold and not located.is_read_as_text:
        return None
    if located.is_implicit:
        if not add:
            raise KeyPathError(
                located.path,
                f"{located.key} is not set, so that {located.spelled} holds: use --add to set {threshold:g}",
            )
        return insertion(source, located, spell_number(threshold))
    return _replacement(source, located.token, spell_number(threshold))


def _replacement(source: Source, token: Token, number: str) -> Edit:
    """The number in the token's place, in its quotes."""
    quote = token.text[:1] if token.text.startswith(_QUOTES) else ""
    start = source.position_of(token.start)
    # `key:` without a value: the colon needs a blank after it.
    blank = " " if not token.text and source.text[start - 1 : start] not in (" ", "\t") else ""
    return Edit(start, start + len(token.text), f"{blank}{quote}{number}{quote}")


def _require_same_kind(located: Located, setting: ClipSetting) -> None:
    """Refuse a setting that the key can't hold.

    Raises:
        RewriteRefusedError: if it goes with another learning rate.
        KindMismatchError: if it limits something else.
    """
    if setting.learning_rate_scale != 1:
        raise RewriteRefusedError(
            located.path,
            f"{setting} goes with the learning rate times {setting.learning_rate_scale:g}: set both by hand",
            line=located.line,
        )
    if setting.is_off or located.kind is None or METHODS[located.kind] == setting.method:
        return
    raise KindMismatchError(
        located.path,
        f"{located.key} limits {_LIMITS[located.kind]}, but {setting} is another kind"
        f" ({get_method(setting.method).summary.rstrip('.')}): no number is both, change the kind by hand first",
        line=located.line,
    )


def _require_exact(source: Source, after: bytes, edit: Edit) -> None:
    """Read the result and compare it with what was there.

    Raises:
        RewriteRefusedError: if more than the one value or line differs.
    """
    try:
        result = read_source(source.path, after)
    except ConfigSyntaxError as error:
        raise RewriteRefusedError(source.path, f"the edit would break the file: {error.reason}") from None
    same_documents = len(result.documents) == len(source.documents)
    if not same_documents or not _is_one_value(_said(source), _said(result)):
        raise RewriteRefusedError(
            source.path,
            f"putting {edit.text.strip()} here would change other values as well: edit by hand",
            line=source.line_of(edit.start),
        )
    old, new = source.text.split("\n"), result.text.split("\n")
    added = len(new) - len(old)
    if added not in (0, 1) or (not added and sum(a != b for a, b in zip(old, new, strict=True)) != 1):
        raise RewriteRefusedError(source.path, "the edit would touch more than one line: edit by hand")


def _said(source: Source) -> list[tuple[object, ...]]:
    """Every value of a file with its path and its spelling; last, where it stands."""
    return [
        (index, path, node.name, "", "", "", node.start)
        if isinstance(node, AliasNode)
        else (index, path, node.text, node.style, node.tag, node.anchor, node.start)
        for index, document in enumerate(source.documents)
        for path, node in scalars(document)
    ]


def _is_one_value(old: list[tuple[object, ...]], new: list[tuple[object, ...]]) -> bool:
    """Whether two readings differ in one value, one that was added or one that was left out."""
    if len(old) == len(new):
        differing = [(a, b) for a, b in zip(old, new, strict=True) if a[:-1] != b[:-1]]
        if any(a[:2] != b[:2] for a, b in differing):
            return False
        # In Python one token may answer to several paths.
        return bool(differing) and len({(a[-1], a[1] if a[-1] == NOWHERE else ()) for a, _ in differing}) == 1
    shorter, longer = sorted(([each[:-1] for each in old], [each[:-1] for each in new]), key=len)
    first = next((i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b), len(shorter))
    return len(longer) - len(shorter) == 1 and shorter[first:] == longer[first + 1 :]
