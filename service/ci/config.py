"""A config file, opened: its value, what goes with it in another file, and the way to put a setting there.

config = open_config(Path("train.yaml"))
rewrite = propose(config, setting)     # nothing is written yet: rewrite.diff shows what would be
write(rewrite)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from service.ci.locate import locate
from service.ci.located import Located
from service.ci.partner import find_partner, require_agreement
from service.ci.rewrite import Rewrite, rewrite
from service.ci.source import read_content
from tuner.spec import ClipSetting


@dataclass(frozen=True)
class Config:
    """What was found in a config file.

    Attributes:
        content: the file's bytes.
        located: its clip value.
        partner: the value of the DeepSpeed config that it names, if that holds one of its own.
    """

    content: bytes
    located: Located
    partner: Located | None


def open_config(
    path: Path, *, framework: str | None = None, key: str | None = None, follow: bool = False
) -> Config:
    """Read a config file and find its clip value.

    Args:
        path: of the file.
        framework: as for `service.ci.locate.locate`.
        key: likewise.
        follow: likewise.

    Returns:
        The value, which no other file contradicts.

    Raises:
        ConfigError: if it can't be told, or another file holds another value.
    """
    content = read_content(path)
    located = locate(path, content, framework=framework, key=key, follow=follow)
    partner = find_partner(located, content)
    require_agreement(located, partner)
    return Config(content, located, partner)


def propose(config: Config, setting: ClipSetting, *, add: bool = False) -> Rewrite:
    """Put a setting into an opened config, in memory.

    Args:
        config: as opened.
        setting: what to write.
        add: whether to insert a key that is absent.

    Returns:
        Both versions of the file.

    Raises:
        ConfigError: if the file can't hold the setting, or another file would contradict it then.
    """
    proposed = rewrite(config.content, config.located, setting, add=add)
    if proposed.is_changed:
        require_agreement(config.located, config.partner, setting)
    return proposed
