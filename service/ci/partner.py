"""Two files, one value: a training config that names a DeepSpeed file, which holds a threshold of its own.

Under DeepSpeed its ``gradient_clipping`` is what clips; the training arguments' ``max_grad_norm`` only fills in an
``auto``. Two different numbers are an error of Transformers at start-up, and of `cliptune check` before.
"""

from __future__ import annotations

from pathlib import Path

from service.ci.errors import AutoValueError, ConflictingValuesError
from service.ci.locate import locate, locate_file
from service.ci.located import Located
from service.ci.source import read_source
from service.ci.spelling import rounded
from service.ci.tree import MappingNode, ScalarNode, find
from tuner.spec import ClipSetting

#: Rows whose files may name a DeepSpeed file under `_KEY`.
_NAMES_PARTNER = ("transformers", "axolotl", "llama-factory")
_KEY = "deepspeed"
#: How far above a config its repository's root is looked for, in folders.
_MAX_LEVELS = 8


def find_partner(located: Located, content: bytes) -> Located | None:
    """The threshold of the DeepSpeed config that a training config goes with.

    Args:
        located: the training config's value.
        content: the training config's bytes.

    Returns:
        The other value; None if no DeepSpeed config is named or found, or it leaves the number to this one.

    Raises:
        ConfigError: if the DeepSpeed config is found and can't be understood.
    """
    is_kind_of = located.framework is not None and located.framework.name in _NAMES_PARTNER
    # Most configs name none, and are not read a second time for that.
    if not is_kind_of or _KEY.encode() not in content:
        return None
    try:
        partner = _partner(located, content)
    except AutoValueError:
        return None
    return None if partner is None or partner.is_implicit else partner


def require_agreement(located: Located, partner: Located | None, setting: ClipSetting | None = None) -> None:
    """Refuse two files of which one would be ignored.

    Args:
        located: the training config's value.
        partner: what `find_partner` found.
        setting: what is about to be written into the training config; None to compare what is there.

    Raises:
        ConflictingValuesError: if the two differ, with both lines.
    """
    if partner is None:
        return
    if setting is None:
        is_same = partner.value == located.value or (partner.is_off and located.is_off)
        mine = f"{located.key} is {located.spelled}"
    else:
        is_same = (
            partner.is_off
            if setting.threshold is None
            else not partner.is_off and partner.value == rounded(setting.threshold)
        )
        mine = f"{located.key} would be {setting}"
    if not is_same:
        raise ConflictingValuesError(
            located.path,
            f'{mine}, but {partner.path}:{partner.line} {partner.key} is {partner.spelled}: set the latter to "auto"',
            line=located.line,
        )


def _partner(located: Located, content: bytes) -> Located | None:
    source = read_source(located.path, content)
    for found in find(source.documents[located.document], (_KEY,)):
        if isinstance(found.node, MappingNode):
            inline = f"{_KEY}.gradient_clipping"
            if not find(source.documents[located.document], (_KEY, "gradient_clipping")):
                return None
            return locate(located.path, content, framework="deepspeed", key=inline)
        if isinstance(found.node, ScalarNode) and found.node.text.endswith(".json"):
            path = _find_file(located.path, found.node.text)
            return locate_file(path, framework="deepspeed") if path else None
    return None


def _find_file(config: Path, name: str) -> Path | None:
    """A file named in a config: beside it, or in a folder above it up to its repository's root."""
    for folder in list(config.absolute().parents)[:_MAX_LEVELS]:
        if (folder / name).is_file():
            return folder / name
        if (folder / ".git").exists():
            break
    return None
