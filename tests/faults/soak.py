"""Kills real training runs at seeded random moments until enough were killed; every run must end with the same bits.

python -m tests.faults.soak --kills 30
"""

from __future__ import annotations

import argparse
import collections
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.harness import PHASES, STARTED, Harness, after, appeared, arguments, assert_same, result

PATTERNS = (
    "start/fit*",
    "reconstructions/round_00000/shard-*.npy",
    "reconstructions/round_0000*/shard-00001-of-00004.npy",
    "reconstructions/round_0000*/.shard-*",
    "latest/round_0000*_update_*.checksums.json",
    "latest/*.orbax-checkpoint-tmp*",
    "rounds/*.orbax-checkpoint-tmp*",
    "rounds/round_0000*.checksums.json",
    "samples/round_0000*.png",
)
RUN = {"rounds": 2, "m_step__steps": 200, "checkpoint__every_steps": 20}
MUST, ENOUGH = ("E-step", "M-step", "checkpoint"), 20
"""Phases that so many kills must have hit."""


def main() -> int:
    """Exit code 0 where every killed run ended as the uninterrupted one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20.0)
    options = parser.parse_args()
    # The bound holds whatever is being waited for.
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_REAL, max(60 * options.minutes, 0.01))
    try:
        return soak(options)
    except OutOfTime:
        print(f"FAILED: out of time after {options.minutes:g} minutes", flush=True)
        return 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for process in STARTED:
            if process.poll() is None:
                process.kill()
                process.communicate()


class OutOfTime(BaseException):
    """The bound is reached."""


def _out_of_time(number: int, frame: object) -> None:
    raise OutOfTime


def soak(options: argparse.Namespace) -> int:
    """Kills, restarts and compares until enough were killed."""
    rng, began = random.Random(options.seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="diffem_soak_") as scratch:
        root, flags = Path(scratch), arguments(**RUN)
        plain = Harness(root, flags, cache=False)
        plain.finish(root / "whole")
        expected = result(root / "whole")
        harness = Harness(root, flags)
        first = time.monotonic()
        harness.finish(root / "cached")
        harness.finish(root / "again")
        length = (time.monotonic() - first) / 2
        assert_same(root / "cached", expected)
        assert_same(root / "again", expected)
        print(f"an uninterrupted run takes {length:.1f} s; the same bits with and without cached programs", flush=True)
        kills = runs = 0
        phases: collections.Counter[str] = collections.Counter()
        while kills < options.kills:
            workdir = root / f"run_{runs}"
            while True:
                if kills >= options.kills:
                    break
                by_time = rng.random() < 0.5
                pattern = rng.choice(PATTERNS)
                moment = after(rng.uniform(0.2, 0.9) * length) if by_time else appeared(workdir, pattern)
                ended = harness.kill(workdir, moment, delay=0.0 if by_time else rng.uniform(0, 0.02))
                if not ended.alive:
                    if "done:" not in ended.output:
                        print(f"FAILED: {ended.output}")
                        return 1
                    break
                kills += 1
                phases[ended.phase] += 1
                print(f"kill {kills}: run {runs}, {'by time' if by_time else pattern}; in: {ended.phase}", flush=True)
            harness.finish(workdir)
            assert_same(workdir, expected)
            print(f"run {runs}: the same bits", flush=True)
            runs += 1
        counts = ", ".join(f"{name} {phases[name]}" for name in PHASES)
        print(f"{kills} kills in {runs} runs, bit-equal every time, {time.monotonic() - began:.0f} s; in: {counts}")
    missed = [name for name in MUST if not phases[name]]
    if missed and options.kills >= ENOUGH:
        print(f"FAILED: no kill hit: {', '.join(missed)}; another --seed, or more --kills")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
