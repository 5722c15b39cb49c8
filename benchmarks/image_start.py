"""The stationary start on real images with pixels erased: its mean and draws against biharmonic interpolation, its intervals.

    python -m benchmarks.image_start --images=clean.npz --rate=0.75 --count=2000

Images are the first array of an .npz, uint8 [N, H, W, C]. PSNR is of the mean squared error over the first 128, for values in
[-2, 2]; CRPS and intervals are of Gaussians with the mean and variance given y, of hidden entries. Seconds are of the processor, with
compilation.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

from diffem_jax.corruptions import PixelMask
from diffem_jax.gaussians.gaussians import posterior_moments, sample_posterior
from diffem_jax.gaussians.starts import stationary_start
from diffem_jax.metrics import psnr
from diffem_jax.types import Observation

ITERATIONS, SHOWN = 6, 128


def main() -> None:
    """Fits, draws and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind, value in (("images", str, None), ("rate", float, 0.75), ("count", int, 2000)):
        parser.add_argument(f"--{name}", type=kind, default=value, required=value is None)
    given = parser.parse_args()
    with np.load(given.images) as arrays:
        x = np.asarray(arrays[arrays.files[0]][: given.count], np.float32) / 255 * 4 - 2
    corruption = PixelMask(shape=x.shape[1:], rate=given.rate, noise_std=1e-3, fill_iterations=80, fill_order=2)
    keys = jax.random.split(jax.random.key(0), len(x))
    made = jax.jit(lambda k, x: jax.lax.map(lambda a: corruption.sample(*a), (k, x), batch_size=256))(keys, x)
    observations = Observation(*jax.tree.map(np.asarray, tuple(made)))
    began = time.process_time()
    key = jax.random.key(1)
    start = jax.block_until_ready(stationary_start(key, corruption, observations, iterations=ITERATIONS))
    seconds = time.process_time() - began
    few = jax.tree.map(lambda a: jnp.asarray(a[:SHOWN]), observations)

    def restore(key: jax.Array, observation: Observation) -> tuple:
        draw, plain = sample_posterior(key, corruption, start, observation), start._replace(steady=1e4)
        spread = posterior_moments(corruption, plain, observation)[1]
        return *posterior_moments(corruption, start, observation), spread, draw, corruption.fill(observation)

    restored = jax.jit(lambda *a: jax.lax.map(lambda one: restore(*one), a, batch_size=64))
    mean, variance, plain, draw, fill = map(np.asarray, restored(jax.random.split(jax.random.key(2), len(few.y)), few))
    truth, hidden = x[: len(mean)], np.asarray(few.operator)[..., 0] == 0
    values = {"mean": mean, "one draw": draw, "biharmonic": fill}
    print(f"{len(x)} images of {x.shape[1:]}, {given.rate:.0%} erased: fit {seconds:.1f} s")
    print(", ".join(f"{name} {psnr(value, truth).value:.2f} dB" for name, value in values.items()))
    for name, v in {"local amplitudes": variance, "one variance for all": plain}.items():
        ratio, std = np.mean((mean - truth)[hidden] ** 2) / np.mean(v[hidden]), np.sqrt(v[hidden])
        z = np.abs(mean - truth)[hidden] / std
        crps = np.mean(std * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - np.pi**-0.5))
        held = ", ".join(f"{np.mean(z < norm.ppf(0.5 + p / 200)):.3f} ({p}%)" for p in (50, 80, 90, 95))
        print(f"{name}: squared error over predicted variance {ratio:.2f}, CRPS {crps:.4f}, intervals hold {held}")


if __name__ == "__main__":
    main()
