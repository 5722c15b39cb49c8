"""What stops a run: a mistake of its user, numbers that are not finite, a signal."""

from __future__ import annotations

from typing import Any


class Preempted(Exception):
    """The process was asked to end; its rolling checkpoint is written."""


class NonFinite(Exception):
    """A loss, a gradient, a parameter or a draw of a round is NaN or infinite.

    Args:
        message: what and where.
        number: the round.
        folder: of the rolling checkpoints of the training that broke; None where draws did.
    """

    def __init__(self, message: str, number: int, folder: Any = None):
        super().__init__(message)
        self.number, self.folder = number, folder


class UserError(Exception):
    """A mistake that the person at the keyboard can fix.

    The message names the field or file, the value, what was expected and what to do. The command line prints it
    without a traceback and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name where it has none; for the messages of ``UserError``."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
