"""The benchmarks of ``make bench``, each in a process of its own on one core (at most 30 minutes on two cores).

Each core takes the next of the list as soon as it is free, the long ones first; those that need two cores come after them.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading

ONE_CORE = ("time_to_quality", "e_step_cost", "memory", "start", "overhead", "updates", "loop", "width")
BOTH_CORES = ("devices",)
NAMES = (*ONE_CORE, *BOTH_CORES)


def run(name: str) -> bool:
    """Whether a benchmark ended well."""
    return subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode == 0


def main() -> None:
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in ONE_CORE:
        waiting.put(name)
    failed: list[str] = []

    def work(core: int) -> None:
        # Of this thread alone, and of the processes that it starts.
        os.sched_setaffinity(0, {core})
        while True:
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                return
            ended = False
            try:
                ended = run(name)
            finally:
                if not ended:
                    failed.append(name)

    threads = [threading.Thread(target=work, args=(core,)) for core in sorted(os.sched_getaffinity(0))[:2]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed += [name for name in BOTH_CORES if not run(name)]
    subprocess.run([sys.executable, "-m", "benchmarks.table"], check=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
