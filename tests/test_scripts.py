"""What experiments and benchmarks bring of their own: a source of images, and checks of an accelerator."""

import json
import types

import jax
import numpy as np
import pytest

from benchmarks import accelerator, common
from diffem_jax.errors import UserError
from experiments.cifar10 import files


def test_the_checks_of_an_accelerator_hold_on_a_cpu(tmp_path):
    output, page = tmp_path / "accelerator.json", tmp_path / "page.md"
    # The normalisations of flax promote bfloat16 by themselves.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        result = accelerator.run(0.05, output)
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


def request(path, count=None):
    return types.SimpleNamespace(path=str(path), num_examples=count)


def test_files_are_read_in_order_as_far_as_needed(tmp_path):
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 256, (3, 32, 32, 3), np.uint8) for _ in range(2)]
    for number, x in enumerate(parts):
        np.savez(tmp_path / f"train-{number}.npz", x=x, labels=np.full(3, number))
    found = files.images(request(tmp_path))
    assert found.x.shape == (6, 32, 32, 3) and found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(found.x[3:], parts[1] * (4 / 255) - 2, atol=1e-6)
    assert len(files.images(request(tmp_path, 2)).x) == 3
    with pytest.raises(UserError, match=r"train-0\.npz"):
        files.images(request(tmp_path / ".."))
