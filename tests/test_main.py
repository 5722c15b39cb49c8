"""The whole loop through the command on a tiny configuration: train, sample, the prior, evaluate, own data."""

import itertools
import json
import re
import shutil
from unittest import mock

import jax
import numpy as np
import pytest
from faults.command import command, complete, refused
from faults.harness import arguments, leaves

from diffem_jax import em, usage
from diffem_jax.build.methods import make_model
from diffem_jax.build.problem import load_problem
from diffem_jax.report import page as report
from diffem_jax.run.m_step import round_batches
from diffem_jax.run.sample import stored_config
from diffem_jax.run.start import standard_normal
from diffem_jax.storage import checkpoints
from diffem_jax.storage.reconstructions import ReconstructionStore
from diffem_jax.storage.workdir import Workdir

TINY = arguments()


SEEN: dict = {"traces": [], "pages": []}
"""How often E-steps and M-steps of ``run`` were traced, what its page showed each time it was written, what it said."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir, write = tmp_path_factory.mktemp("main") / "a run", report.write  # with a space, as folders have

    def counted(name):
        make = getattr(em, name)

        def made(*args, **kwargs):
            function = make(*args, **kwargs)
            return lambda *inputs: SEEN["traces"].append(name) or function(*inputs)

        return made

    def noted(folder):
        write(folder)
        page = folder.report.read_text()
        shown = "".join(number for number in "012" if f'data-round="{number}"' in page)
        SEEN["pages"].append(shown + " and spread" * ("Several draws per observation" in page))

    with mock.patch.object(report, "write", noted), pytest.MonkeyPatch.context() as patch:
        for name in ("make_e_step", "make_m_step"):
            patch.setattr(em, name, counted(name))
        SEEN["said"] = complete(*TINY, f"--workdir={workdir}").out
    return workdir


def _parameters(workdir):
    return dict(leaves(checkpoints.load(Workdir(workdir).last_round())))


def test_each_step_is_traced_once_and_the_page_written_after_each_round_and_at_the_end(run):
    assert sorted(SEEN["traces"]) == ["make_e_step", "make_m_step"]
    assert SEEN["pages"] == ["0", "01 and spread", "012 and spread", "012 and spread"]  # the start has no network


def test_the_files_of_a_run(run):
    said = SEEN["said"]
    names = ["config.json", "metrics.jsonl", "report.html", "latest", "rounds/round_00001", "rounds/round_00002"]
    names += [f"samples/round_0000{number}.png" for number in range(3)]
    names += [f"reconstructions/round_00002/{name}" for name in ("manifest.json", "shard-00000-of-00004.npy")]
    assert not [name for name in names if not (run / name).exists()]
    assert not list((run / "latest").iterdir()) and not (run / "reconstructions" / "round_00001").exists()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    calibration = records.pop()
    assert calibration["kind"] == "calibration" and calibration["round"] == 2
    assert f"90% intervals hold {100 * calibration['held_out_coverage_90']:.0f}% of held-back measurements" in said
    assert [r["round"] for r in records] == [0, 1, 2] and [r["step"] for r in records] == [0, 40, 80]
    for record in records[1:]:
        assert {"loss", "e_step_seconds", "m_step_seconds", "psnr"} <= set(record)
    manifest = json.loads((run / "reconstructions/round_00002/manifest.json").read_text())
    assert manifest["num_examples"] == 200 and manifest["shape"] == [8, 8, 1]
    assert "round 2: " in said and "200 observations" in said and "--mode=sample" in said


def test_the_same_command_again_changes_nothing(run):
    changed = (".lock", "config.json", "report.html")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name not in changed}
    complete(*TINY, f"--workdir={run}")
    assert all(path.read_bytes() == data for path, data in before.items())


def test_what_a_killed_process_did_not_drop_is_dropped_by_the_next(run, tmp_path):
    """Draws of an earlier round and a rolling checkpoint of the last: the kill came between the record and their end."""
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    draws, rolling = workdir / "reconstructions" / "round_00001", workdir / "latest" / "round_00002_update_000000010"
    shutil.copytree(workdir / "reconstructions" / "round_00002", draws)
    manifest = json.loads((draws / "manifest.json").read_text())
    (draws / "manifest.json").write_text(json.dumps(manifest | {"round": 1}))
    shutil.copytree(workdir / "rounds" / "round_00002", rolling)
    sums = workdir / "rounds" / "round_00002.checksums.json"
    shutil.copy(sums, rolling.with_name(f"{rolling.name}.checksums.json"))
    assert ReconstructionStore(workdir / "reconstructions").rounds() == [1, 2]
    complete(*TINY, f"--workdir={workdir}")
    assert ReconstructionStore(workdir / "reconstructions").rounds() == [2] and not draws.exists()
    assert not list((workdir / "latest").iterdir())


@pytest.fixture(scope="module")
def own(run):
    observations = load_problem(stored_config(Workdir(run))).observations
    path = run.with_name("obs.npz")
    np.savez(path, y=np.asarray(observations.y), mask=np.asarray(observations.operator))
    return path


def test_posterior_draws_of_a_file(run, own, tmp_path):
    arrays = np.load(own)
    np.savez(tmp_path / "five.npz", **{name: arrays[name][:5] for name in arrays})
    sample = ["--mode=sample", f"--workdir={run}", f"--observations={tmp_path / 'five.npz'}"]
    ended = complete(*sample, "--num_samples=3", f"--output={tmp_path / 'three.npz'}")
    three = np.load(tmp_path / "three.npz")
    x = three["x"]
    assert x.shape == (3, 5, 8, 8, 1) and np.isfinite(x).all() and "(3, 5, 8, 8, 1)" in ended.out
    assert three["mean"].shape == three["std"].shape == (5, 8, 8, 1)
    hidden = arrays["mask"][:5] == 0
    seen = np.abs(x - arrays["y"][:5])[:, ~hidden]
    assert three["std"][hidden].mean() > 5 * three["std"][~hidden].mean() and seen.mean() < 0.1
    assert (np.abs(x[0] - x[1])[hidden] > 0).any() and (np.abs(x[1] - x[2])[hidden] > 0).any()
    assert (tmp_path / "three.png").exists()

    complete(*sample, "--num_samples=2", f"--output={tmp_path / 'two'}")
    np.testing.assert_allclose(np.load(tmp_path / "two.npz")["x"], x[:2], atol=1e-4)
    refused(command(*sample), "--output")


def test_the_prior_is_trained_by_the_same_command_and_drawn(run, tmp_path):
    draw = ["--mode=sample", f"--workdir={run}", "--num_samples=7", f"--output={tmp_path / 'prior.npz'}"]
    refused(command(*draw), "no prior", "prior.steps")
    before = _parameters(run)
    complete(*TINY, f"--workdir={run}", "--config.prior.steps=20", "--config.prior.sampler_steps=4")
    assert all(np.array_equal(before[name], leaf) for name, leaf in _parameters(run).items())
    complete(*draw)
    arrays = np.load(tmp_path / "prior.npz")
    assert arrays["x"].shape == (7, 8, 8, 1) and np.isfinite(arrays["x"]).all() and arrays["x"].std() > 0


def test_evaluate_measures_the_last_round(run, tmp_path):
    def evaluated(*flags):
        ended = complete("--mode=evaluate", f"--workdir={run}", *flags)
        assert "warning" not in ended.err
        return {name: float(value) for name, value in re.findall(r"^(\w+): ([\d.e+-]+)$", ended.out, re.M)}

    said = evaluated()
    records = Workdir(run).records()
    trained = next(r for r in records if r["kind"] == "round" and r["round"] == 2)
    assert said["psnr"] == pytest.approx(trained["psnr"], rel=1e-4)
    assert any(r["kind"] == "evaluation" and "accuracy" in r for r in records)
    x = np.asarray(ReconstructionStore(run / "reconstructions").round(2).open())
    np.savez(tmp_path / "clean.npz", x=x)
    # Every pixel is seen by half of the observations.
    seen = next(r for r in records if r["kind"] == "identifiability")
    assert seen["unseen"] == 0 and seen["dimensions"] == 64
    assert said["psnr_of_mean"] > said["psnr"] + 0.5 and said["crps_samples"] == 64
    measured = evaluated(f"--reference={tmp_path / 'clean.npz'}", "--config.eval.posterior_examples=20")
    assert measured["psnr"] > said["psnr"] + 20 and measured["crps_samples"] == 20
    np.savez(tmp_path / "wrong.npz", x=x[:3])
    refused(command("--mode=evaluate", f"--workdir={run}", f"--reference={tmp_path / 'wrong.npz'}"), "--reference")


def test_evaluate_warns_of_directions_that_no_observation_sees(run, tmp_path, monkeypatch):
    """The same run under a box that hides the same pixels always: told from the operators alone."""
    # What the other measures say is another test's.
    monkeypatch.setattr("diffem_jax.run.evaluate.posterior_measures", lambda *args: {})
    monkeypatch.setattr("diffem_jax.run.evaluate.make_measures", lambda *args: lambda number, draws: {})
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    config = json.loads((workdir / "config.json").read_text())
    config = {k: v for k, v in config.items() if not k.startswith("corruption.")}
    box = {"corruption.name": "box_mask", "corruption.noise_std": 0.01, "corruption.box": [4, 4]}
    (workdir / "config.json").write_text(json.dumps(config | box))
    ended = complete("--mode=evaluate", f"--workdir={workdir}")
    assert "warning, 16 of 64 directions of x are seen by none of 200" in ended.err, ended.err
    record = next(r for r in Workdir(workdir).records() if r["kind"] == "identifiability")
    assert record["unseen"] == 16 and record["method"] == "counts"
    arrays = np.load(workdir / "identifiability.npz")
    assert arrays["directions"].shape == (16, 8, 8, 1) and (arrays["seen"] == 0).sum() == 16
    assert not arrays["seen"][2:6, 2:6].any()


def test_training_never_reads_the_truth(run, own, tmp_path):
    flags = ["--config.data.name=observations", f"--config.data.path={own}", "--config.data.shape=(8,8,1)"]
    workdir = tmp_path / "own"
    complete(*arguments(eval__metrics="()"), *flags, f"--workdir={workdir}")
    expected, found = _parameters(run), _parameters(workdir)
    assert expected.keys() == found.keys() and all(np.array_equal(expected[n], found[n]) for n in expected)
    draws = [np.asarray(ReconstructionStore(w / "reconstructions").round(2).open()) for w in (run, workdir)]
    assert np.array_equal(*draws)


def test_loss_that_is_not_finite_stops_the_run(tmp_path):
    sgd = {"m_step__optimizer": "sgd", "m_step__clip_norm": 0.0, "m_step__learning_rate": 10.0}
    wild = arguments(eval__metrics="()", rounds=1, m_step__hidden_weight=1.0, **sgd)
    words = ("M-step 1", "at update", "of the run", "last good checkpoint", "round_00001_update_", "learning_rate")
    refused(command(*wild, f"--workdir={tmp_path / 'run'}"), *words)


def test_fresh_corruptions_take_the_operators_of_the_data(tmp_path):
    """With m_step.operators 'data' every operator of an update is one of the file's, and not that of the same x."""
    rng = np.random.default_rng(0)
    mask = (rng.random((200, 8, 8, 1)) < 0.5).astype(np.float32)
    np.savez(tmp_path / "own.npz", y=mask * rng.standard_normal(mask.shape, np.float32), mask=mask)
    fields = {"data.path": tmp_path / "own.npz", "network.features": "(8,)", "start.rank": 4, "m_step.steps": 4}
    fields |= {"m_step.batch_size": 50, "e_step.batch_size": 100, "m_step.updates_per_dispatch": 2}
    problem = load_problem(usage.load_config("own_data", [(name, str(value)) for name, value in fields.items()]))
    model, store = make_model(problem.setup, standard_normal((8, 8, 1))), ReconstructionStore(tmp_path / "draws")
    stored, x = store.create(0, 200, (8, 8, 1), 200), rng.standard_normal((200, 8, 8, 1), np.float32)
    stored.write_shard(0, x)
    batches, own = round_batches(problem, model, store, 1), slice(0, 50)
    first, second = itertools.islice(batches(0, 2, own), 2)
    # An interrupted M-step goes on with the operators that it would have met.
    jax.tree.map(np.testing.assert_array_equal, second, next(batches(2, 2, own)))
    drawn = [np.concatenate([np.reshape(batch[field], (-1, 64)) for batch in (first, second)]) for field in (0, 1)]
    places = [{row.tobytes(): i for i, row in enumerate(rows.reshape(200, 64))} for rows in (x, mask)]
    of_x, of_mask = ([place[row.tobytes()] for row in rows] for place, rows in zip(places, drawn, strict=True))
    assert sorted(of_mask) == list(range(200)) and np.mean(np.equal(of_x, of_mask)) < 0.1
