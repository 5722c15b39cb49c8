"""What training asks of the noise: solves need some, and draws must not carry more of it than the measurements."""

import dataclasses
import importlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from diffem_jax.build.parts import check_noise, make_corruption
from diffem_jax.config import default
from diffem_jax.corruptions import CORRUPTIONS
from diffem_jax.errors import UserError
from diffem_jax.run.start import solve_warnings, standard_normal


def config(**fields):
    c = default()
    with c.unlocked():
        for name, value in fields.items():
            section, field = name.split("__")
            c[section][field] = value
    return c


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "varying_noise"])
def test_noise_of_zero_is_refused_or_solved(name):
    corruption = CORRUPTIONS[name](shape=(4, 4, 3), noise_std=0.0)
    c = config(corruption__name=name, corruption__noise_std=0.0)
    if corruption.is_linear and corruption.needs_noise:
        with pytest.raises(UserError, match=r"corruption\.noise_std: 0; expected more than 0.*noise_std=0\.001"):
            check_noise(c, corruption)
        return
    check_noise(c, corruption)
    if corruption.is_linear:

        @jax.jit
        def solved():
            y, operator = corruption.sample(jax.random.key(0), jnp.ones(corruption.shape))
            back = corruption.adjoint(corruption.solve_gram(y, operator, jnp.ones(())), operator)
            return back, jnp.abs(corruption.forward(back, operator) - y).max()

        back, misfit = solved()
        assert jnp.isfinite(back).all() and misfit < 1e-5


def test_draws_that_keep_noise_need_a_small_sigma_min():
    corruption = CORRUPTIONS["pixel_mask"](shape=(4, 4, 3), noise_std=0.01)
    with pytest.raises(UserError, match=r"sigma_min: 0\.01; expected at most a third.*sigma_min=0\.003"):
        check_noise(config(schedule__sigma_min=0.01, e_step__sampler="ddpm"), corruption)
    check_noise(config(schedule__sigma_min=0.003, e_step__sampler="ddpm"), corruption)
    check_noise(config(schedule__sigma_min=0.01, e_step__sampler="analytic_2m"), corruption)


@pytest.mark.parametrize(
    ("name", "variants"),
    [("cifar10", ("mask75", "mask90", "blur", "jpeg20", "noisy")), ("celeba", ("mask50", "mask75")),
     ("digits", ("mask50", "mask90", "mask90_paper", "projection_paper")), ("manifold", ("", "paper"))],
)  # fmt: skip
def test_shipped_configs_keep_the_rules(name, variants):
    make = importlib.import_module(f"configs.{name}").get_config
    for variant in variants:
        c = make(variant) if variant else make()
        shape = (5,) if name == "manifold" else (8, 8, 1) if name == "digits" else (32, 32, 3)
        check_noise(c, make_corruption("corruption", c.corruption, shape))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unsolved(CORRUPTIONS["compressed_sensing"]):
    """Its solves end where they begin."""

    def solve_gram(self, r, operator, v):
        del operator, v
        return jnp.zeros_like(r)


@pytest.mark.parametrize(("kind", "said"), [(CORRUPTIONS["compressed_sensing"], False), (Unsolved, True)])
def test_solves_that_do_not_converge_are_said_at_the_start_of_a_run(kind, said):
    corruption = kind(shape=(4, 4, 1), noise_std=0.1)
    observations = jax.jit(jax.vmap(corruption.sample))(jax.random.split(jax.random.key(0), 3), jnp.ones((3, 4, 4, 1)))
    setup = SimpleNamespace(config=config(corruption__name="compressed_sensing"), corruption=corruption)
    lines = solve_warnings(setup, observations, standard_normal((4, 4, 1)))
    assert [("have not converged" in line) for line in lines] == [True] * said
