"""One and two devices, pmap and jit, on fake CPU devices: seconds a dispatch of the M-step and of the E-step.

    python -m benchmarks.devices

On two cores two fake devices share what one device had: the figures show the overhead of the map, not a speed-up.
"""

from __future__ import annotations

import jax

jax.config.update("jax_num_cpu_devices", 2)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.common import interleave, write  # noqa: E402
from configs import digits  # noqa: E402
from diffem_jax import em  # noqa: E402
from diffem_jax.engine import make_engine  # noqa: E402
from diffem_jax.parallel import make_parallel  # noqa: E402
from diffem_jax.problem import load_problem, rows  # noqa: E402
from diffem_jax.round_zero import standard_normal  # noqa: E402
from diffem_jax.types import stream_key  # noqa: E402


def main() -> None:
    config = digits.get_config()
    problem = load_problem(config)
    batch, dispatch = config.m_step.batch_size, 10
    x = np.zeros((dispatch, batch, *problem.setup.shape), np.float32)
    slots = np.tile(np.arange(batch, dtype=np.int32), (dispatch, 1))
    sides, result = {}, {}
    base = standard_normal(problem.setup.shape)
    for name in ("pmap", "jit"):
        for count in (1, 2):
            parallel = make_parallel(name, jax.devices()[:count])
            engine = make_engine(problem.setup, parallel, base)
            key = parallel.replicate(stream_key(0, "m_step"))
            data, places = parallel.shard(x, 1), parallel.shard(slots, 1)
            state = parallel.replicate(em.make_state(engine.model.denoiser.init(key), problem.setup.optimizer))
            holder = {"state": state}

            def m_step(engine=engine, key=key, data=data, places=places, holder=holder):
                holder["state"], info = engine.m_step(key, holder["state"], data, places)
                return info["loss"]

            rows_ = np.arange(config.e_step.batch_size)
            observed = parallel.shard(rows(problem.observations, rows_))
            indices = parallel.shard(rows_.astype(np.int32))
            params = parallel.replicate(jax.tree.map(jnp.array, state.params))

            def e_step(engine=engine, key=key, params=params, observed=observed, indices=indices):
                return engine.e_step(key, params, observed, indices)

            sides[f"m_step {name} {count}"] = m_step
            sides[f"e_step {name} {count}"] = e_step
    result = interleave(sides)
    write("devices", {"seconds": result})


if __name__ == "__main__":
    main()
