"""Corruptions by name, for configs and for corruptions that are made of others."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from diffem_jax.errors import UserError

CORRUPTIONS: dict[str, Any] = {}
"""The classes by name; ``diffem_jax.corruptions`` fills it with the built-in ones."""


def resolve(name: str) -> Any:
    """The class of a corruption from its name in ``CORRUPTIONS`` or from ``'package.module:ClassName'``.

    Raises:
        UserError: no such name, module or class.
    """
    if name in CORRUPTIONS:
        return CORRUPTIONS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        near = difflib.get_close_matches(name, CORRUPTIONS, 1, 0.4)
        hint = f"did you mean {near[0]!r}?" if near else "choose one of them"
        known = ", ".join(CORRUPTIONS)
        raise UserError(f"corruption.name: {name!r}; expected one of {known}, or 'package.module:ClassName'; {hint}")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"corruption.name: {name!r}; expected 'package.module:ClassName' of a class that imports ({error}); "
            "put its folder on PYTHONPATH and check the spelling"
        ) from error
