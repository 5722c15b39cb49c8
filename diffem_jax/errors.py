"""What stops a run: a mistake of its user, numbers that are not finite, a signal."""

import difflib
import importlib
from collections.abc import Iterable
from typing import Any


class Preempted(Exception):
    """The process was asked to end; its rolling checkpoint is written."""


class NonFinite(Exception):
    """A loss, a gradient, a parameter or a draw of the round ``number`` is NaN or infinite.

    ``folder`` is that of the rolling checkpoints of the training that broke, None where draws did.
    """

    def __init__(self, message: str, number: int, folder: Any = None):
        super().__init__(message)
        self.number, self.folder = number, folder


class UserError(Exception):
    """A mistake that the person at the keyboard can fix; the message says where, the value, what was expected and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name where it has none; for the messages of ``UserError``."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(name: str, names: Iterable[Any]) -> str:
    """'did you mean X?' for a misspelled name, or the list of names."""
    known = sorted(map(str, names))
    close = difflib.get_close_matches(str(name), known, 1, 0.5)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(known)}"


def lookup(field: str, name: str, registry: dict[str, Any]) -> Any:
    """A registry's entry, or the object that 'module:name' names; UserError with the nearest name, or why the import failed."""
    if name in registry:
        return registry[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise UserError(f"config.{field}: {name!r} is not known; {nearest(name, registry)} (or give 'module:name')")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:
        expected = "expected 'module:name' of a module in the current folder or on PYTHONPATH; correct it"
        raise UserError(f"config.{field}: {name!r} cannot be imported ({error}); {expected}") from error
