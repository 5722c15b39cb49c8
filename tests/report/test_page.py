"""The page of a run: what it says, that it stands alone, that nothing read from a file can act in it, that it runs."""

import base64
import json
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from diffem_jax.config import default, flatten
from diffem_jax.errors import UserError
from diffem_jax.report import page as report
from diffem_jax.report import plots
from diffem_jax.report import template as report_template
from diffem_jax.report.template import Point
from diffem_jax.storage.files import TEMPORARY
from diffem_jax.storage.workdir import Workdir

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


def record(number, **more):
    times = {"m_step_seconds": 100.0} if number else {}
    return {"kind": "round", "round": number, "step": 10 * number, "e_step_seconds": 20.0, **times, **more}


def make_run(folder, records=None, pictures=3, **config):
    workdir = Workdir(folder)
    workdir.samples.mkdir(parents=True)
    if records is None:
        records = [record(k, psnr=14.0 + k, psnr_se=0.05, psnr_samples=1797) for k in range(3)]
        records[1]["loss"], records[2]["loss"] = 0.5, 0.25
    workdir.metrics.write_text("".join(json.dumps(r) + "\n" for r in records))
    fields = {**flatten(default()), "data.name": "digits", "corruption.name": "pixel_mask", "rounds": 2, **config}
    workdir.config.write_text(json.dumps(fields))
    x = np.random.default_rng(0).uniform(-2, 2, (3, 8, 8, 1)).astype(np.float32)
    for k in range(pictures):
        plots.image_grid(workdir.samples / f"round_{k:05d}.png", x, x, title=f"round {k}")
    return workdir


def written(workdir):
    report.write(workdir)
    return workdir.report.read_text()


def words(text):
    body = re.sub(r"<(style|script)>.*?</\1>", " ", text, flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())


def images(text):
    return [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', text)]


def test_the_page_says_what_was_reached_and_how(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/diffem", "--config=digits", "--workdir=my runs/a"])
    workdir = make_run(tmp_path / "run")
    text = written(workdir)
    seen = words(text)
    assert "diffem --config=digits '--workdir=my runs/a'" in seen and "/somewhere" not in seen
    assert "digits, pixel mask" in seen and "All 2 rounds are done. 4 min 20 s" in seen
    assert "16.000 ± 0.050 at round 2 from 14.000 at start; higher is better; 1,797 examples" in seen
    assert "0.2500 at round 2 from 0.5000 at round 1" in seen and "No stopping rule is set" in seen
    assert re.search(r"python \d+\.\d+", seen) and re.search(r"jax \d+\.\d+", seen)
    assert "2 \u00d7 cpu" in seen and "m_step" in seen and "learning_rate" in seen
    files = [p.read_bytes() for p in sorted(workdir.samples.glob("*.png"))]
    assert images(text) == files and len(re.findall(r'<img[^>]* alt="[^"]{20,}"', text)) == 3
    assert text.count("<svg") == 2 and text.count('class="band"') == 1


def test_a_rebuilt_page_keeps_the_command_and_the_devices_of_the_run(tmp_path, monkeypatch):
    workdir = make_run(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["diffem", "--config=digits", "--config.rounds=2"])
    report.write(workdir)
    monkeypatch.setattr(sys, "argv", ["diffem", "--mode=report", "--workdir=run"])
    report.rebuild(workdir)
    seen = words(workdir.report.read_text())
    assert "--config.rounds=2" in seen and "--mode=report" not in seen and "2 \u00d7 cpu" in seen
    (workdir.root / "environment.json").unlink()
    report.rebuild(workdir)
    seen = words(workdir.report.read_text())
    assert "was not noted" in seen and "The run noted none" in seen
    assert not (workdir.root / "environment.json").exists()


def test_the_rule_says_which_round_it_keeps_and_what_came_after(tmp_path):
    rounds = [record(k, observation_distance=[0.05, 0.3, 0.1, 0.2][k]) for k in range(4)]
    fields = {"stop.rule": "observation_distance", "stop.patience": 3, "rounds": 9}
    workdir = make_run(tmp_path / "run", rounds[:1], **fields)
    assert "Rule observation distance, patience 3 rounds: there is nothing to compare yet." in words(written(workdir))
    workdir.metrics.write_text("".join(json.dumps(r) + "\n" for r in rounds))
    seen = words(written(workdir))
    # The start is nearer, but has no network to keep.
    assert "so far round 2 is the best, 0.1000. It has not asked to stop." in seen
    workdir.log({"kind": "stop", "round": 3, "picked": 2, "reason": "all rounds are done; kept round 2"})
    seen = words(written(workdir))
    assert "round 2 is the best, 0.1000. It is the one that sampling uses." in seen and "asked to stop" not in seen
    workdir.log({"kind": "stop", "round": 3, "reason": "no longer falling"})
    workdir.log({"kind": "evaluation", "round": 3, "ssim": 0.75, "ssim_se": 0.01})
    assert "Several draws per observation" not in words(written(workdir))
    shutil.copy(workdir.samples / "round_00000.png", workdir.samples / "spread.png")
    text = written(workdir)
    seen = words(text)
    assert "Several draws per observation" in seen and len(images(text)) == 4
    assert "The run stopped after round 3 of 9" in seen and "Stop, round 3: no longer falling" in seen
    assert "Measured afterwards, round 3: ssim 0.750 ± 0.010" in seen


def test_it_stands_alone_and_the_old_page_until_the_new_one_is_whole(tmp_path, monkeypatch):
    workdir, seen, replace = make_run(tmp_path / "run"), [], Path.replace
    old = written(workdir)
    monkeypatch.setattr(Path, "replace", lambda a, b: (seen.append(workdir.report.read_text()), replace(a, b))[1])
    workdir.log(record(2, psnr=20.0))
    text = written(workdir)
    assert old != text and set(seen) == {old}
    assert not [p for p in workdir.root.iterdir() if p.name.endswith(TEMPORARY)]
    assert re.findall(r"https?:[^\s<\"]*", text) == ["https://arxiv.org/abs/2510.12691"]
    assert not re.search(r"<a\b|@import|url\(|\bfetch\(|XMLHttpRequest|<iframe|<object", text)
    assert all(target.startswith("data:") for target in re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', text))
    assert text.isascii()


def test_what_files_hold_is_text_only(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["diffem", f"--workdir={HOSTILE}"])
    records = [record(number, **{HOSTILE: 1.0 + number}) for number in range(2)]
    records.append({"kind": "stop", "round": 1, "reason": HOSTILE})
    fields = dict.fromkeys((HOSTILE, "data.name", "stop.rule"), HOSTILE)
    fields |= {f"a.{HOSTILE}": [HOSTILE], "method": "\ud800"}
    workdir = make_run(tmp_path / "run", records, **fields)
    text = written(workdir)
    assert text.lower().count("<script") == 1 and "<img src=x" not in text and 'onerror="' not in text
    assert words(text).count("document.title='taken'") >= 8


CALIBRATED = {f"held_out_coverage_{p}": p / 100 - 0.03 for p in (50, 80, 90, 95)}
CALIBRATED |= {f"held_out_tarp_{p}": p / 100 - 0.1 for p in (50, 80, 90, 95)}
CALIBRATED |= {"kind": "evaluation", "round": 2, "tarp_50": 0.52, "tarp_90": 0.91, "coverage_90_se": 0.01}


def test_calibration_is_drawn_from_the_last_record_that_has_it(tmp_path):
    workdir = make_run(tmp_path / "run")
    assert "Calibration" not in words(written(workdir)) and not (workdir.samples / "calibration.png").exists()
    workdir.log(record(1, held_out_coverage_50=0.1, held_out_coverage_90=0.2))
    seen = words(written(workdir))
    assert "held-back measurements, intervals 10.0% 20.0%" in seen and "of round 1 hold" in seen
    workdir.log(CALIBRATED)
    text = written(workdir)
    seen = words(text)
    assert "held-back measurements, intervals 47.0% 77.0% 87.0% 92.0%" in seen and "of round 2 hold" in seen
    assert "held-back measurements, jointly 40.0% 70.0% 80.0% 85.0%" in seen and "x, jointly 52.0% 91.0%" in seen
    assert "x, intervals" not in seen
    assert (workdir.samples / "calibration.png").read_bytes() in images(text) and len(images(text)) == 4
    assert "90% intervals, held-back measurements" in seen  # one level over the rounds; not a tile for each
    assert "held out coverage 50 " not in seen.partition("Measured afterwards")[0]


@pytest.mark.parametrize("damage", ["nothing", "garbled", "foreign", "folders"])
def test_damaged_files_still_give_a_page(tmp_path, damage):
    workdir = make_run(tmp_path / "run")
    if damage == "nothing":
        shutil.rmtree(workdir.root)
        workdir.root.mkdir()
    elif damage == "garbled":
        with workdir.metrics.open("ab") as file:
            file.write(b'\xff\xfe\n{"kind": "rou\n[[[[\n')
        workdir.config.write_bytes(b'{"rounds": \xff')
        (workdir.samples / "round_00001.png").write_bytes(b"not a picture")
    elif damage == "foreign":
        lines = """3\n[]\n"x"\nnull\n{"kind": "round"}\n{"kind": "round", "round": "one"}\n{"round": 1.5}
{"kind": "round", "round": 3, "psnr": NaN, "loss": "low", "x": [1], "y": {"z": 1}, "m_step_seconds": "a"}
{"kind": "round", "round": 4, "psnr": 18, "psnr_se": -Infinity, "psnr_samples": "many"}"""
        with workdir.metrics.open("a") as file:
            file.write(lines)
        workdir.config.write_text("[1, 2]")
    else:
        for path in (workdir.metrics, workdir.config):
            path.unlink()
            path.mkdir()
    text = written(workdir)
    assert text.rstrip().endswith("</html>") and "could not be made" not in text
    if damage == "garbled":
        assert len(images(text)) == 2 and "16.000" in words(text)
    if damage == "foreign":
        assert "18.00 at round 4 from 14.000 at start" in words(text)


def test_a_section_that_fails_costs_itself_only_and_an_unwritable_page_no_run(tmp_path, monkeypatch):
    workdir = make_run(tmp_path / "run")
    monkeypatch.setattr(report_template, "chart", mock.Mock(side_effect=ValueError("broken")))
    seen = words(written(workdir))
    assert "could not be made (ValueError)" in seen and "All 2 rounds are done" in seen and "learning_rate" in seen
    workdir.report.unlink()
    workdir.report.mkdir()
    with pytest.warns(UserWarning, match="cannot be written"):
        report.write(workdir)
    with pytest.raises(UserError, match="cannot be written"):
        report.rebuild(workdir)


def test_many_rounds_are_thinned_to_a_small_page(tmp_path, monkeypatch):
    records = [record(k, psnr=14.0 + k / 100, psnr_se=0.05) for k in range(130)]
    workdir = make_run(tmp_path / "run", records, pictures=1)
    picture = (workdir.samples / "round_00000.png").read_bytes()
    for k in range(1, 130):
        (workdir.samples / f"round_{k:05d}.png").write_bytes(picture)
    text = written(workdir)
    kept = [int(k) for k in re.findall(r'<figure data-round="(\d+)"', text)]
    assert len(kept) == 40 and kept[0] == 0 and kept[-1] == 129 and max(np.diff(kept)) <= 4
    assert "40 of 130 pictures" in words(text)
    monkeypatch.setattr(report_template, "MOST_BYTES", 5 * len(picture))
    assert len(images(written(workdir))) == 5


def coordinates(svg, attribute):
    return [float(v) for v in re.findall(rf'<circle[^>]* {attribute}="([^"]+)"', svg)]


def test_charts_keep_order_and_proportion():
    points = [Point(0, 1.0, 0.1), Point(1, 3.0, 0.1), Point(4, 2.0, 0.1)]
    rounds = report_template.chart(points, "PSNR")
    x, y = coordinates(rounds, "cx"), coordinates(rounds, "cy")
    assert (x[2] - x[0]) / (x[1] - x[0]) == pytest.approx(4, rel=0.01)
    assert y[0] - y[1] == pytest.approx(2 * (y[2] - y[1]), rel=0.01)
    band = re.search(r'class="band" points="([^"]+)"', rounds)[1]
    heights = [float(pair.split(",")[1]) for pair in band.split()]
    assert heights[0] < y[0] < heights[-1] and heights[-1] - heights[0] == pytest.approx((y[0] - y[1]) / 10, abs=0.2)


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-12, 1e100])
def test_charts_of_a_constant_or_a_single_point(value):
    for points in ([Point(0, value, 0.0)], [Point(k, value, 0.0) for k in (2, 3)]):
        svg = report_template.chart(points, "m")
        assert "nan" not in svg and "inf" not in svg
        assert all(0 <= v <= 340 for a in ("cx", "cy") for v in coordinates(svg, a))


# In a browser --------------------------------------------------------------------------------------------------------


def browse(tmp_path, page, fragment=""):
    """The document after its scripts ran, with the attributes of its root element."""
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-dev-shm-usage --virtual-time-budget=3000"
    address = page.resolve().as_uri() + fragment
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    root = re.search(r"<html[^>]*>", done.stdout)
    assert root, done.stderr[-2000:]
    return done.stdout, dict(re.findall(r'data-([a-z-]+)="([^"]*)"', root[0]))


# The page's own policy refuses foreign scripts; a copy of the page without it is driven by this one.
DRIVER = """<script>addEventListener("load", () => {
  const at = () => [...document.querySelectorAll("figure[data-round]")].filter(f => f.getClientRects().length)
    .map(f => f.dataset.round).join();
  const slider = document.getElementById("round"), log = [at()];
  slider.value = "1"; slider.dispatchEvent(new Event("input")); log.push(at(), slider.getAttribute("aria-valuetext"));
  log.push([...document.querySelectorAll(".readout")].map(r => r.textContent).join(), location.hash);
  location.hash = "#round=0";
  setTimeout(() => { log.push(at()); document.documentElement.dataset.driven = log.join("|"); }, 200);
});</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian package: chromium)")
def test_in_a_browser(tmp_path):
    workdir = make_run(tmp_path / "run")
    text = written(workdir)
    dom, root = browse(tmp_path, workdir.report, "#round=1")
    assert root == {"errors": "0", "ready": "1", "round": "1"}
    hidden = re.findall(r'<figure data-round="(\d+)"[^>]*hidden', dom)
    assert hidden == ["0", "2"] and ">round 1</output>" in dom and "15.000 ± 0.050 at round 1</span>" in dom

    driven = workdir.root / "driven.html"
    unguarded = re.sub(r"<meta http-equiv[^>]*>", "", text)
    driven.write_text(unguarded.replace("</body>", DRIVER + "</body>"))
    _, root = browse(tmp_path, driven)
    assert root["errors"] == "0"
    start, moved, spoken, readouts, address, back = unescape(root["driven"]).split("|")
    assert (start, moved, spoken, address, back) == ("2", "1", "round 1", "#round=1", "0")
    assert readouts == "15.000 ± 0.050 at round 1,0.5000 at round 1"
