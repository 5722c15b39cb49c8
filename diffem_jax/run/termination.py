"""SIGTERM: noted when it comes, answered at the next safe point."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

from diffem_jax.errors import Preempted
from diffem_jax.parallel import most


class StopRequest:
    """Listens for SIGTERM while it is entered. Only a main thread may set handlers; elsewhere nothing is heard.

    Outside ``deferred`` there is nothing to save, so the signal ends the process at once; inside, a loop asks ``check``
    or ``requested`` where it can stop.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._deferred = False
        self._before: Any = None

    def __enter__(self) -> StopRequest:
        with contextlib.suppress(ValueError):
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """While this lasts, the signal waits for a safe point."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def requested(self) -> bool:
        """Whether any process of the run was asked to end; all processes ask together."""
        return bool(most(self._signal))

    def check(self) -> None:
        """Ends the run if any process was asked to; all processes ask together.

        Raises:
            Preempted: the signal came.
        """
        if number := most(self._signal):
            raise Preempted(signal.Signals(number).name)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._signal = number
        if not self._deferred:
            raise Preempted(signal.Signals(number).name)
