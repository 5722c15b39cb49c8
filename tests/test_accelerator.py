"""``python -m benchmarks.accelerator`` in small: what fits into ten seconds, the rest named as not run."""

import json

import jax
import jax.numpy as jnp

from benchmarks import accelerator, common
from benchmarks import accelerator_figures as figures
from benchmarks.flops import flops


def test_the_checks_of_an_accelerator_hold_on_a_cpu(tmp_path):
    output, page = tmp_path / "accelerator.json", tmp_path / "page.md"
    # The normalisations of flax promote bfloat16 by themselves.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        result = accelerator.run(0.15, output)
    assert not result["failed"], result["failed"]
    assert {*result["items"], *result["not run"]} == {name for name, _ in accelerator.items()}
    assert "randomness" in result["items"] and json.loads(output.read_text()) == result
    page.write_text(f"# Page\n{common.BEGIN}\nstale\n{common.END}\nrest\n")
    accelerator.write_page(output, page)
    assert result["machine"]["device"] in page.read_text() and "stale" not in page.read_text()


def test_what_fails_is_recorded_and_the_rest_goes_on(tmp_path, monkeypatch):
    def broken(small):
        raise ValueError("broken")

    monkeypatch.setattr(accelerator, "items", lambda: [("one", broken), ("two", lambda small: {"value": 1.0})])
    result = accelerator.run(1, tmp_path / "out.json")
    assert result["failed"] == {"one": "ValueError: broken"} and result["items"]["two"]["value"] == 1.0
    assert accelerator.run(0, tmp_path / "out.json")["not run"] == ["one", "two"]


def test_operations_are_counted_as_often_as_a_loop_runs():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")).sum()

    def loop(x, a):
        return jax.lax.scan(lambda h, _: (h @ a, None), x, None, length=5)[0]

    x, a = jnp.ones((2, 3)), jnp.ones((3, 3))
    assert flops(jax.jit(loop), x, a) == 5 * 2 * 2 * 3 * 3
    x, kernel = jnp.ones((2, 8, 9, 3)), jnp.ones((3, 3, 3, 4))
    for function in (convolve, jax.value_and_grad(convolve), jax.value_and_grad(convolve, argnums=1)):
        counted = jax.jit(function).lower(x, kernel).cost_analysis()["flops"]
        assert abs(flops(function, x, kernel) / counted - 1) < 0.1


def test_draws_are_timed():
    with jax.numpy_dtype_promotion("standard"):
        found = figures.e_step(True, "bfloat16", 512)
    assert found["ms a step"] > 0 and found["TFLOP/s"] > 0
