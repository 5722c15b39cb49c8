"""The stationary start on real images with pixels erased: PSNR of its mean and draws against biharmonic interpolation.

    python -m benchmarks.image_start --images=clean.npz --rate=0.75 --count=2000 --start=stationary

Images are the first array of an .npz, uint8 [N, H, W, C]. PSNR is of the mean squared error over the set, for values in
[-2, 2]; seconds are of the processor, with compilation.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from diffem_jax.corruptions import PixelMask
from diffem_jax.gaussians.gaussians import posterior_moments, sample_posterior
from diffem_jax.gaussians.starts import STARTS
from diffem_jax.metrics import psnr
from diffem_jax.types import Observation


def main() -> None:
    """Fits, draws and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--rate", type=float, default=0.75)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--start", choices=sorted(STARTS), default="stationary")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--shown", type=int, default=128, help="images that the PSNR is of")
    given = parser.parse_args()
    with np.load(given.images) as arrays:
        x = np.asarray(arrays[arrays.files[0]][: given.count], np.float32) / 255 * 4 - 2
    corruption = PixelMask(shape=x.shape[1:], rate=given.rate, noise_std=1e-3, fill_iterations=80, fill_order=2)
    keys = jax.random.split(jax.random.key(0), len(x))
    made = jax.jit(lambda k, x: jax.lax.map(lambda a: corruption.sample(*a), (k, x), batch_size=256))(keys, x)
    observations = Observation(*jax.tree.map(np.asarray, tuple(made)))
    began = time.process_time()
    options = {"rank": given.rank, "iterations": given.iterations}
    start = jax.block_until_ready(STARTS[given.start](jax.random.key(1), corruption, observations, **options))
    seconds = time.process_time() - began
    few = jax.tree.map(lambda a: jnp.asarray(a[: given.shown]), observations)
    used = jax.random.split(jax.random.key(2), len(few.y))

    def restore(key: jax.Array, observation: Observation) -> tuple:
        mean, variance = posterior_moments(corruption, start, observation)
        draw = sample_posterior(key, corruption, start, observation)
        return mean, draw, variance, corruption.fill(observation)

    found = jax.jit(lambda *a: jax.lax.map(lambda one: restore(*one), a, batch_size=64))(used, few)
    mean, draw, variance, fill = map(np.asarray, found)
    truth, hidden = x[: len(mean)], np.asarray(few.operator)[..., 0] == 0
    ratio = np.mean((mean - truth)[hidden] ** 2) / np.mean(variance[hidden])
    values = {"mean": mean, "one draw": draw, "biharmonic": fill}
    print(f"{given.start}, {len(x)} images of {x.shape[1:]}, {given.rate:.0%} erased: fit {seconds:.1f} s")
    print(", ".join(f"{name} {psnr(value, truth).value:.2f} dB" for name, value in values.items()))
    print(f"squared error of hidden entries over its predicted variance {ratio:.2f}")


if __name__ == "__main__":
    main()
