"""Work beside the main loop: rows read ahead, checkpoints written behind.

    main thread      update k        update k + 1      update k + 2
    reader           rows of k + 1   rows of k + 2     ...
    writer           ------- checkpoint of update k - 1 --------

One thread does one job at a time. What a job raises is raised in the main loop; a thread that hangs keeps no process alive.
"""

import threading
from collections.abc import Callable, Generator
from concurrent import futures
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")
GRACE_SECONDS = 10.0  # how long a loop that ends by an error waits for a job that is under way


class Background(Generic[T]):
    """Runs one job at a time on a thread; as a context it waits for the last one, ``GRACE_SECONDS`` where the body failed."""

    def __init__(self) -> None:
        self._job: futures.Future[T] | None = None

    def start(self, job: Callable[[], T]) -> None:
        """Starts a job once the one before it has ended, whose error is raised."""
        self.wait()
        future = self._job = futures.Future()

        def work() -> None:
            try:
                future.set_result(job())
            except BaseException as error:  # whatever it is, it belongs to the main loop
                future.set_exception(error)

        threading.Thread(target=work, daemon=True).start()

    def check(self) -> None:
        """Raises the error of a job that has failed; does not wait."""
        if self._job is not None and self._job.done() and self._job.exception() is not None:
            self.wait()

    def wait(self) -> Any:
        """Waits for the job, if there is one; returns its result or raises its error, once."""
        if self._job is None:
            return None
        futures.wait([self._job])
        job, self._job = self._job, None
        return job.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.wait()
        elif self._job is not None:
            futures.wait([self._job], GRACE_SECONDS)


def read_ahead(read: Callable[[], T], count: int) -> Generator[T, None, None]:
    """``count`` results of ``read``, in order; while one is used, the next is read on another thread, and no further.

    Close the iterator (with ``contextlib.closing``) where it is not used to its end.
    """
    with Background[T]() as reader:
        if count:
            reader.start(read)
        for left in range(count, 0, -1):
            result = reader.wait()
            if left > 1:
                reader.start(read)
            yield result
            del result
