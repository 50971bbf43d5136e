"""How *off* is written, in each framework's own spelling and each format's own null. Pure."""

from __future__ import annotations

from service.ci.errors import KeyPathError, OffSpellingError
from service.ci.framework import Format, Off
from service.ci.insertion import Edit, insertion
from service.ci.located import Located, Token
from service.ci.source import Source
from service.ci.spelling import spell_number

_ZERO = spell_number(0.0)
#: What has no spelling in a format is missing; a flag is left out instead of given null.
_SPELLINGS: dict[Off, dict[Format, str]] = {
    "zero": dict.fromkeys(("yaml", "json", "toml", "python", "script"), _ZERO),
    "null": {"yaml": "null", "json": "null", "python": "None", "script": "null"},
    "inf": {"yaml": ".inf", "toml": "inf", "python": 'float("inf")', "script": "inf"},
}
_FALSE = {"True": "False", "TRUE": "FALSE"}


def off_edit(source: Source, located: Located, *, add: bool) -> Edit:
    """The edit that turns clipping off.

    Args:
        source: the file.
        located: its clip value, which is on.
        add: whether to insert a key that is absent.

    Returns:
        The edit.

    Raises:
        OffSpellingError: if one token in this place can't say it.
        KeyPathError: if the key is absent and may not be added.
    """
    framework = located.framework
    if framework is None:
        raise OffSpellingError(
            located.path,
            f"how {located.key} is turned off depends on the framework: name it with --framework",
            line=located.line,
        )
    if framework.off == "switch" and located.switch is not None:
        return _replaced(source, located.switch, _FALSE.get(located.switch.text, "false"))
    spelled = _SPELLINGS.get(framework.off, {}).get(source.file_format)
    is_flag = source.file_format == "script" and located.key.startswith("-")
    if framework.off == "null" and is_flag:
        # A flag is left out; an override is given null, as without it the config's own value would hold.
        if located.removal is not None:
            return _replaced(source, located.removal, "")
        spelled = None
    if spelled is None or (located.is_tagged and framework.off == "null"):
        raise OffSpellingError(
            located.path,
            f"{framework.title} has no value of {located.key} for off in {source.file_format}: "
            f"remove {located.key} by hand, or set a threshold that is never reached",
            line=located.line,
        )
    if located.is_implicit:
        if not add:
            raise KeyPathError(
                located.path,
                f"{located.key} is not set, so that {located.spelled} holds: use --add to set {spelled}",
            )
        return insertion(source, located, spelled)
    quote = located.token.text[:1] if located.token.text[:1] in ("'", '"') and spelled == _ZERO else ""
    return _replaced(source, located.token, f"{quote}{spelled}{quote}")


def _replaced(source: Source, token: Token, text: str) -> Edit:
    start = source.position_of(token.start)
    return Edit(start, start + len(token.text), text)
