"""The benchmarks of ``make bench``, each in a process of its own (at most 30 minutes on two cores).

Those of one core go in two lanes, one lane a core; those that need two cores come after them. With one core all go one
after the other.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading

LANES = (
    ("time_to_quality",),
    ("overhead", "convolutions", "start", "little_seen", "memory", "e_step_cost"),
)
BOTH_CORES = ("devices",)
NAMES = (*(name for lane in LANES for name in lane), *BOTH_CORES)


def run(name: str) -> bool:
    """Whether a benchmark ended well."""
    return subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode == 0


def main() -> None:
    cores = sorted(os.sched_getaffinity(0))
    failed: list[str] = []

    def go(lane: tuple[str, ...], core: int) -> None:
        # Of this thread alone, and of the processes that it starts.
        os.sched_setaffinity(0, {core})
        failed.extend(name for name in lane if not run(name))

    threads = [threading.Thread(target=go, args=(lane, cores[i % len(cores)])) for i, lane in enumerate(LANES)]
    for thread in threads:
        thread.start()
        if len(cores) == 1:
            thread.join()
    for thread in threads:
        thread.join()
    failed += [name for name in BOTH_CORES if not run(name)]
    subprocess.run([sys.executable, "-m", "benchmarks.table"], check=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
