"""What a run says at its end and after each round."""

import pytest

from diffem_jax.report import console
from diffem_jax.storage.workdir import Workdir

ROUNDS = [
    {"kind": "round", "round": 0, "step": 0, "e_step_seconds": 2.0, "compile_seconds": 9.0, "psnr": 14.0},
    {"kind": "round", "round": 1, "step": 10, "loss": 0.5, "m_step_seconds": 60.0, "e_step_seconds": 3.0, "redrawn": 0}
    | {"psnr": 17.4413, "psnr_se": 0.06, "psnr_samples": 1797},
]


def test_the_last_line_has_each_measure_and_the_starts():
    assert console.reached([]) == "done: no round was asked for"
    assert console.reached(ROUNDS[:1]) == "done: 0 rounds in 2 s of computing; PSNR, dB 14.00"
    line = console.reached(ROUNDS)
    assert line == "done: 1 round in 1 min 5 s of computing; PSNR, dB 17.441 ± 0.060 (start 14.00)"


def test_a_rounds_line_is_its_measures_and_times():
    line = console.round_line(1, ROUNDS[1])
    assert line == "round 1: loss 0.5, m_step_seconds 60, e_step_seconds 3, psnr 17.44"
    assert console.round_line(1, ROUNDS[1] | {"redrawn": 2, "coverage_50": 0.5, "coverage_90": 0.9}).endswith(
        "psnr 17.44, coverage_90 0.9, redrawn 2"
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.88, []),
        (0.95, []),
        (0.8, ["warning", "too narrow", "e_step.steps"]),
        (0.97, ["warning", "too wide", "m_step"]),
    ],
)
def test_the_end_says_how_wide_the_draws_are(tmp_path, value, words):
    workdir = Workdir(tmp_path)
    for record in ROUNDS:
        workdir.log(record)
    assert len(console.ending(workdir, prior=False)) == 3
    workdir.log({**ROUNDS[1], "held_out_coverage_90": value})
    said = console.ending(workdir, prior=True)[1]
    assert f"90% intervals hold {100 * value:.0f}% of held-back measurements" in said
    assert all(word in said for word in words) and ("warning" in said) == bool(words)
