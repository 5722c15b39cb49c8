"""What the main README says was measured is what the results hold, to the digits that it prints."""

import json
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RATES = ("rate 0.25", "rate 0.5", "rate 0.75", "rate 0.9")


def results(path):
    return json.loads((ROOT / path).read_text())


def mean(rows, method, metric, group=None):
    """Over seeds, of the evaluation."""
    return statistics.fmean(
        r["evaluation"][metric] for r in rows if r["method"] == method and group in (None, r["group"])
    )


def rates(name, *wanted):
    rows = results(f"experiments/{name}/results.json")
    return [mean(rows, method, metric, rate) for method, metric in wanted for rate in RATES]


def digits():
    return rates("digits", *((m, k) for m in ("DiffEM", "EM-MMPS") for k in ("psnr", "crps")), ("oracle", "psnr"))


def patches():
    methods = ("DiffEM", "EM-MMPS", "DiffEM, published denoiser")
    return rates("patches", *((method, metric) for method in methods for metric in ("psnr", "crps")))


def extreme():
    rows = [r for r in results("experiments/extreme/results.json") if r["group"] == "digits"]
    crps = [mean(rows, method, "crps") for method in ("DiffEM, best", "EM-MMPS", "DiffEM, published")]
    return crps + [mean(rows, method, "psnr") for method in ("DiffEM, best", "EM-MMPS", "DiffEM, published")]


def manifold():
    rows, out = results("experiments/manifold/results.json"), []
    for method in ("DiffEM, published", "EM-MMPS", "DiffEM, best"):
        rounds = zip(*(r["rounds"] for r in rows if r["method"] == method), strict=True)
        course = [[statistics.fmean(r[key] for r in each) for key in ("sinkhorn", "seconds")] for each in rounds]
        # The best settings are alike in all rounds.
        out += [course[-1][0]] if method == "DiffEM, best" else [divergence for divergence, _ in course[1:]]
        out.append(course[-1][1])
    return out


def stopping():
    from experiments.stopping import run

    rows = results("experiments/stopping/results.json")
    return [sum(run.verdict(row, "held_out")["worse"] <= 5 for row in rows), len(rows)]


def classical():
    found, out = results("experiments/patches/classical.json"), []
    shown = ("start, one draw", "DiffEM, one draw", "DiffEM, posterior mean")
    for variant, rivals in {"mask50": ("biharmonic",), "blur": ("Richardson", "Wiener")}.items():
        answers = found[variant]["answers"]
        names = [*shown, *(next(n for n in answers if n.startswith(rival)) for rival in rivals)]
        out += [found[variant]["seconds"] / 60, *(answers[name]["psnr"] for name in names)]
        if variant == "mask50":
            out += [answers[name]["psnr_per_image"] for name in names[-2:]]
    return out


def start():
    r = results("benchmarks/results/start.json")
    few, whole = r["closed_form"]["fitted to 4096"], r["closed_form"]["fitted to all"]
    passes = r["patches_32"]["table"][-1]["seconds"]
    return [few["speedup"], whole["speedup"], few["log_likelihood"], r["published_log_likelihood"], passes]


def little_seen():
    r = results("benchmarks/results/little_seen.json")["digits"]
    return [r[side][key] for side in ("as shipped", "plain") for key in ("log_likelihood", "sliced_wasserstein")]


def e_step_cost():
    r = results("benchmarks/results/e_step_cost.json")
    of = {(x["method"], x["sampler"], x["evaluations"]): x for x in r["digits"]}
    mmps, ours = of["em_mmps", "ddpm", 32], of["diffem", "ddpm", 32]
    few, many = of["diffem", "dpmpp_2m_sde", 16], of["diffem", "ddpm", 256]
    out = [r["unet"]["seconds_ratio"], r["unet"]["flops_ratio"]]
    out += [side[key] for key in ("psnr", "crps") for side in (mmps, ours)]
    return out + [side[key] for key in ("crps", "coverage_90", "psnr") for side in (few, many)]


def time_to_quality():
    r = results("benchmarks/results/time_to_quality.json")
    best, published = r["manifold"]["best"], r["manifold"]["published"]
    half, quarter = r["digits"]["mask50"], r["digits"]["mask75"]
    out = [best["0.01"], published["0.41"], published["rounds"][-1]["sinkhorn"], half["published_seconds"]]
    out += [side["best_seconds_to_published"] for side in (half, quarter)]
    return out + [side["gain_at_equal_time_db"] for side in (half, quarter)]


def convolutions():
    return [results("benchmarks/results/convolutions.json")["native_over_own_in_loop"]]


def overhead():
    r = results("benchmarks/results/overhead.json")
    kinds = ("m_step_overhead", "e_step_overhead")
    return [100 * r[data][kind] for kind in kinds for data in ("digits", "manifold") if kind in r.get(data, {})]


ROWS = {
    "experiments.manifold.run": manifold,
    "experiments.digits.run": digits,
    "experiments.patches.run": patches,
    "experiments.extreme.run": extreme,
    "experiments.stopping.run": stopping,
    "experiments.patches.classical": classical,
    "benchmarks.little_seen": little_seen,
    "benchmarks.time_to_quality": time_to_quality,
    "benchmarks.start": start,
    "benchmarks.e_step_cost": e_step_cost,
    "benchmarks.convolutions": convolutions,
    "benchmarks.overhead": overhead,
}
"""Module of a row's command -> what its results hold, in the order in which the row tells it."""


def missing(values, text):
    """The first value that the text does not tell, in this order, rounded to the digits that it prints; None if all are."""
    told = re.findall(r"(?<![\w.])([-+]?\d[\d,]*(?:\.\d+)?)(%?)", text)
    place = 0
    for value in values:
        while place < len(told):
            number, percent = told[place][0].rstrip(",").replace(",", ""), told[place][1]
            place += 1
            digits = len(number.partition(".")[2])
            # A whole number tells nothing of a fraction of 1, but for percentages.
            tells = digits or percent or abs(value) >= 1
            if tells and abs(float(number) - value) <= 0.5001 * 10**-digits:
                break
        else:
            return value
    return None


@pytest.mark.parametrize("module", ROWS)
def test_a_row_of_the_readme_tells_its_results(module):
    page = (ROOT / "README.md").read_text().partition("## What was measured")[2].partition("\n## ")[0]
    rows = [line.split(" | ", 1)[1] for line in page.splitlines() if line.startswith(f"| `python -m {module}`")]
    assert len(rows) == 1, f"README.md, 'What was measured': {len(rows)} rows of `python -m {module}`; expected one"
    values = ROWS[module]()
    assert values, f"no results of {module}"
    gone = missing(values, rows[0])
    assert gone is None, (
        f"README.md, 'What was measured', row of `python -m {module}`: its results hold {gone:.4g}, which the row does not "
        f"tell in its place; expected, in this order, {', '.join(f'{v:.4g}' for v in values)}; correct the row: {rows[0]}"
    )


def test_a_row_that_is_not_of_the_results_is_seen():
    row = "PSNR 16.5 against 17.2 dB at 4,096 points, -2% (digits), CRPS 0.07"
    assert missing([16.458, 17.2135, 4096, -1.7, 0.0704], row) is None
    assert missing([17.2135, 16.458], row) == 16.458  # in this order
    assert missing([16.458, 17.31], row) == 17.31
    assert missing([-1.4], row) == -1.4
    assert missing([0.0751], row) == 0.0751
    assert missing([2.0], row) == 2.0  # of another sign
    assert missing([0.3], "0 and 1") == 0.3 and missing([0.3], "+0%") is None
