"""Stopping on SIGTERM at the next safe point, and the types of what a run says and asks."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self

from diffem_jax.errors import Preempted
from diffem_jax.parallel import most

Say = Callable[[str], None]  # takes lines for the person watching
Check = Callable[[], None]  # called between batches or iterations; it may raise


class StopRequest:
    """Listens for SIGTERM while it is entered. Only a main thread may set handlers; in others SIGTERM keeps its usual effect.

    Outside ``deferred`` there is nothing to save, so the signal ends the process at once; inside, a loop asks ``check``
    or ``requested`` where it can stop. All processes of a run ask together; the signal of any counts for all.
    """

    def __init__(self) -> None:
        self._signal, self._deferred = 0, False
        self._before: Any = None

    def __enter__(self) -> Self:
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
        """Whether the run was asked to end."""
        return bool(most(self._signal))

    def check(self) -> None:
        """Raises ``Preempted`` if the run was asked to end."""
        if number := most(self._signal):
            raise Preempted(signal.Signals(number).name)

    def _hear(self, number: int, _: FrameType | None) -> None:
        self._signal = number
        if not self._deferred:
            raise Preempted(signal.Signals(number).name)
