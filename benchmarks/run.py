"""The benchmarks of ``make bench``, one after the other, each in a process of its own (at most 30 minutes on two cores)."""

from __future__ import annotations

import subprocess
import sys

NAMES = ("overhead", "convolutions", "start", "devices", "e_step_cost", "time_to_quality", "memory")


def main() -> None:
    failed = [name for name in NAMES if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode]
    subprocess.run([sys.executable, "-m", "benchmarks.table"], check=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
