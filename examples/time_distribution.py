"""A distribution of t in the training loss: late times, where most of x is hidden by noise, are trained more often.

diffem --config=digits --config.m_step.time_law=examples.time_distribution:Late --workdir=runs/late
"""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Late:
    """t ~ Beta(4, 2)."""

    def sample(self, key):
        """One t in [0, 1]."""
        return jax.random.beta(key, 4.0, 2.0)
