"""Contract checks that anyone can call on objects of their own, one for each kind that can be plugged in.

Each raises an ``AssertionError`` that names what does not hold, and returns nothing otherwise. The package's own tests
call them on every registry entry.
"""

from diffem_jax.testing.corruption import check_corruption
from diffem_jax.testing.parts import check_network, check_posterior, check_sampler, check_schedule

__all__ = ["check_corruption", "check_network", "check_posterior", "check_sampler", "check_schedule"]
