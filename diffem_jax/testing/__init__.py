"""Contract checks for anybody's objects: each raises an ``AssertionError`` that names what does not hold."""

from diffem_jax.testing.corruption import check_corruption
from diffem_jax.testing.parts import check_network, check_posterior, check_sampler, check_schedule
