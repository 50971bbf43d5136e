"""What a caller may be allowed to do, and whose objects a caller sees if nobody says otherwise.

``read`` sees studies and recommendations, ``write`` may also submit and cancel them, ``worker`` may ask for lanes of
external studies and tell of them, ``admin`` may do everything, keys included.
"""

from __future__ import annotations

from typing import Literal

Scope = Literal["read", "write", "worker", "admin"]

ALL_SCOPES: tuple[Scope, ...] = ("read", "write", "worker", "admin")

#: The tenant that a first key belongs to.
DEFAULT_TENANT = "default"
