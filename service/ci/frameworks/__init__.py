"""The frameworks whose clip value is known: where it stands, what it limits, what holds without it, how off is spelled.

A row that is more special stands before the one it is a case of: LLaMA-Factory and axolotl before Transformers.
Lightning 2.6, Transformers 5.23 and Accelerate 1.15 as installed; the others as their sources were in 2025 and 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from service.ci.framework import Framework
from service.ci.frameworks.code import CODE
from service.ci.frameworks.domains import DOMAINS
from service.ci.frameworks.language import LANGUAGE
from service.ci.frameworks.trainers import TRAINERS

FRAMEWORKS: Mapping[str, Framework] = MappingProxyType(
    {row.name: row for row in (*TRAINERS, *LANGUAGE, *DOMAINS, *CODE)}
)
