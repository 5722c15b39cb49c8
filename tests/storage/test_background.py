"""Work beside the main loop: in order, one job at a time, errors at the next look, nothing that hangs."""

import contextlib
import itertools
import subprocess
import sys
import threading
import time

import pytest

from diffem_jax.storage import background
from diffem_jax.storage.background import Background, read_ahead


def test_rows_come_in_order_and_no_more_are_read_than_asked_for():
    asked = itertools.count()
    assert list(read_ahead(lambda: next(asked), 5)) == [0, 1, 2, 3, 4] and next(asked) == 5
    assert list(read_ahead(lambda: 1, 0)) == []


def test_the_next_is_read_while_one_is_used_and_no_further():
    begun, asked = [threading.Event() for _ in range(4)], itertools.count()

    def read():
        number = next(asked)
        begun[number].set()
        return number

    with contextlib.closing(read_ahead(read, 4)) as rows:
        assert next(rows) == 0
        assert begun[1].wait(5)
        time.sleep(0.05)
        assert not begun[2].is_set()


@pytest.mark.parametrize("at", [0, 2])
def test_what_a_reader_raises_comes_at_its_place(at):
    asked = itertools.count()

    def read():
        if (number := next(asked)) == at:
            raise OSError("disk gone")
        return number

    seen = []
    with pytest.raises(OSError, match="disk gone"):
        for row in read_ahead(read, 5):
            seen.append(row)
    assert seen == list(range(at))


def test_a_failed_job_is_reported_at_the_next_look_and_once():
    failed = threading.Event()

    def job():
        failed.set()
        raise ValueError("broken")

    with Background() as worker:
        worker.start(lambda: 3)
        assert worker.wait() == 3
        worker.start(job)
        failed.wait(5)
        with pytest.raises(ValueError, match="broken"):
            for _ in range(500):
                worker.check()
                time.sleep(0.01)
        worker.check()
        worker.start(lambda: 4)


def test_leaving_waits_for_the_job_and_raises_its_error():
    done = []
    with Background() as worker:
        worker.start(lambda: (time.sleep(0.05), done.append(1)))
    assert done
    with pytest.raises(ValueError, match="late"), Background() as worker:
        worker.start(lambda: (time.sleep(0.05), int("late")))


def test_an_error_in_the_loop_is_not_hidden_by_a_job_that_hangs(monkeypatch):
    monkeypatch.setattr(background, "GRACE_SECONDS", 0.05)
    hang = threading.Event()
    with pytest.raises(KeyError, match="loop"), Background() as worker:
        worker.start(lambda: hang.wait(20))
        raise KeyError("loop")
    with pytest.raises(KeyError, match="loop"), contextlib.closing(read_ahead(lambda: hang.wait(20), 2)) as rows:
        raise KeyError("loop", rows)
    hang.set()


def test_a_process_ends_although_its_reader_hangs():
    code = (
        "import time; from diffem_jax.storage.background import Background\n"
        "worker = Background(); worker.start(lambda: time.sleep(60)); print('leaving')"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0 and "leaving" in done.stdout, done.stderr
    assert time.monotonic() - began < 40
