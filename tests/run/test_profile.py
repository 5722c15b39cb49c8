"""Traces of a run: of what comes after compilation, as often as asked for."""

import gzip
import json

import jax
import jax.numpy as jnp

from diffem_jax.run.context import Profile


def traces(folder):
    return sorted(path.relative_to(folder).parts[0] for path in folder.rglob("*.xplane.pb"))


def test_some_updates_and_one_batch_are_traced(tmp_path):
    said = []
    profile, step = Profile(tmp_path, 5, said.append), jax.jit(lambda x: jnp.sin(x).sum())
    for number in range(4):
        with jax.profiler.StepTraceAnnotation("update", step_num=7 + number):
            step(jnp.ones(100)).block_until_ready()
        profile.note("updates", 3)
        assert len(said) == (number == 3) or number < 3
    draw = profile.watch(step)
    for _ in range(3):
        draw(jnp.ones(100))
    assert traces(tmp_path) == ["e_step", "updates"] and len(said) == 2 and str(tmp_path / "updates") in said[0]
    with gzip.open(next((tmp_path / "updates").rglob("perfetto_trace.json.gz"))) as file:
        events = json.load(file)["traceEvents"]
    assert {"8", "9"} <= {str(e["args"].get("step_num")) for e in events if e.get("name") == "update" and "args" in e}


def test_an_m_step_of_fewer_updates_ends_its_trace_before_the_e_step(tmp_path):
    profile = Profile(tmp_path, 1000)
    profile.note("updates", 3)
    profile.note("updates", 3)
    draw = profile.watch(lambda x: x)
    draw(jnp.ones(1))
    draw(jnp.ones(1))
    profile.note("updates", 3)
    assert traces(tmp_path) == ["e_step", "updates"]


def test_without_the_flag_nothing_is_traced(tmp_path):
    profile, step = Profile(tmp_path / "profile"), jnp.sin
    profile.note("updates", 3)
    assert profile.watch(step) is step and not (tmp_path / "profile").exists()
