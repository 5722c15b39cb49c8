"""The corruptions keep their contract, and each family's own promises."""

import dataclasses
import io
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from PIL import Image
from scipy import ndimage

from diffem_jax.corruptions import CORRUPTIONS, Composition, Linear, PixelMask, base
from diffem_jax.data import load_observations, save_observations
from diffem_jax.errors import UserError
from diffem_jax.testing import check_corruption
from diffem_jax.types import Observation

SHAPE = (4, 6, 3)


def photo(size):
    return np.asarray(skimage.data.astronaut()[60 : 60 + size, 180 : 180 + size], np.uint8)


def to_x(levels):
    return jnp.asarray(levels, jnp.float32) * (4 / 255) - 2


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_contract(name):
    check_corruption(CORRUPTIONS[name](shape=SHAPE), samples=128)


VARIANTS = [
    ("gaussian_blur", (6, 7, 2), {"border": "reflect", "std": 3.0}),
    ("kernel_blur", (5, 4, 1), {"weights": ((0.1, 0.5, -0.2), (0.0, 0.3, 0.4))}),
    ("box_mask", (3, 4, 4, 1), {"random": True, "box": (2, 3, 1)}),
    ("bicubic_downsampling", (9, 6, 1), {"factor": 3}),
    ("fourier_mask", (7, 2), {"complex_image": True, "acceleration": 2.0}),
    ("multicoil_fourier", (4, 6, 2), {"complex_image": True, "coils": 3, "acceleration": 2.0}),
    ("composition", (4, 4, 1), {"stages": ("pixel_mask", "gaussian_blur")}),
    ("varying_noise", (6,), {"of": ("projection", (("measurements", 3),)), "noise_std": 0.02}),
    ("group_mask", (7,), {"groups": (1, 3, 1, 2)}),
    ("poisson", (4, 4, 1), {"peak": 8.0, "of": ("gaussian_blur", (("std", 1.0),))}),
    ("jpeg", (11, 18, 3), {"chroma_subsampling": True, "noise_std": 0.1}),
]
MORE_VARIANTS = [
    ("gaussian_blur", (4, 4, 4, 1), {"std": 0.7}),
    ("pixel_mask", (6, 5, 3), {"per_channel": True, "rate": 0.8}),
    ("varying_noise", (4, 4, 1), {"of": ("gaussian_blur", (("std", 0.7),)), "noise_std": 0.1}),
    ("phase", (4, 6, 1), {"oversampling": 3, "offset": 2.0}),
    ("poisson", (4, 6, 2), {"noise_std": 0.1, "of": "pixel_mask"}),
]
VECTORS = ("varying_noise", "block_mask", "box_downsampling", "compressed_sensing", "phase")
MORE_VARIANTS += [(name, (12,), {}) for name in VECTORS]


@pytest.mark.parametrize(
    ("name", "shape", "fields"), [*VARIANTS, *(pytest.param(*more, marks=pytest.mark.slow) for more in MORE_VARIANTS)]
)
def test_contract_of_variants(name, shape, fields):
    check_corruption(CORRUPTIONS[name](shape=shape, **fields), samples=256)


class SharedNoise(Linear):
    def observe(self, key, x, operator):
        return x + self.noise_std * jnp.broadcast_to(jax.random.normal(key, (*x.shape[:-1], 1)), x.shape)


class Leaking(CORRUPTIONS["pixel_mask"]):
    def forward(self, x, operator):
        return x * operator


class WrongAdjoint(CORRUPTIONS["kernel_blur"]):
    def adjoint(self, y, operator):
        return self.forward(y, operator)


class WrongSolve(CORRUPTIONS["grayscale"]):
    def gram_diagonal(self, operator, v):
        return super().gram_diagonal(operator, v) * 1.1


class OneOperator(CORRUPTIONS["pixel_mask"]):
    def draw_operator(self, key):
        return super().draw_operator(jax.random.key(0))


class LouderNoise(CORRUPTIONS["clipping"]):
    def noise_level(self, operator):
        return 1.2 * self.noise_std

    def noise_variance(self, x, operator):
        return self.noise_std**2


WRONG = {"correlated": SharedNoise, "leak": Leaking, "solve_gram": WrongSolve, "same operator": OneOperator}
WRONG |= {"A\\^T y": partial(WrongAdjoint, weights=((0.0, 0.0, 1.0),)), "variance": LouderNoise}


@pytest.mark.parametrize("message", WRONG)
def test_contract_catches(message):
    with pytest.raises(AssertionError, match=message):
        check_corruption(WRONG[message](shape=(4, 4, 3)), samples=128)


@pytest.mark.parametrize("name", ["gaussian_blur", "kernel_blur", "compressed_sensing", "bicubic_downsampling"])
@pytest.mark.parametrize("varying", [False, True])
def test_solve_gram_with_little_noise(name, varying):
    """The published noise level, 1e-3, where plain conjugate gradients would need thousands of iterations."""
    corruption = CORRUPTIONS[name](shape=(16, 16, 3), noise_std=1e-3)
    x, u = np.random.default_rng(1).random((2, *corruption.shape), np.float32)
    operator = jax.jit(corruption.draw_operator)(jax.random.key(1))
    r = np.asarray(jax.jit(corruption.forward)(4 * x - 2, operator))
    v = 0.5 + u if varying else np.float32(0.7)
    solution = jax.jit(corruption.solve_gram)(r, operator, v)
    assert np.linalg.norm(jax.jit(corruption.gram)(solution, operator, v) - r) < 3e-3 * np.linalg.norm(r)


STAGES = {"stages": (("gaussian_blur", (("std", 1.0),)), "pixel_mask")}
BY_ITERATION = {"composition": STAGES, "multicoil_fourier": {"coils": 4}, "fourier_mask": {}, "compressed_sensing": {}}


@pytest.mark.parametrize("name", BY_ITERATION)
def test_solves_reach_the_noise(name):
    """The residual is a small part of the noise at every level, so that draws fit y as well as exact ones would."""
    for noise in (1e-1, 1e-3):
        corruption = CORRUPTIONS[name](shape=(16, 16, 1), noise_std=noise, **BY_ITERATION[name])
        x, log_v = np.random.default_rng(1).standard_normal((2, *corruption.shape), np.float32)
        y, operator = jax.jit(corruption.sample)(jax.random.key(1), x)
        for v in (np.float32(1.0), np.exp(0.3 * log_v)):
            assert jax.jit(corruption.solve_residual)(y, operator, v) < 0.3, (noise, v.shape)


def test_estimated_log_determinants_differ_as_exact_ones(monkeypatch):
    corruption = CORRUPTIONS["multicoil_fourier"](shape=(6, 6, 1), noise_std=0.1, coils=2)
    operator, results = jax.jit(corruption.draw_operator)(jax.random.key(0)), []
    for dense in (base.DENSE, 16):
        monkeypatch.setattr(base, "DENSE", dense)
        run = jax.jit(jax.vmap(lambda v: corruption.log_det_gram(operator, v)))
        results.append(np.diff(run(np.float32([0.3, 1.0, 3.0]))))
    assert (results[0] != results[1]).any()
    np.testing.assert_allclose(results[1], results[0], rtol=0.1)


def test_composition_of_matrices_is_in_closed_form():
    corruption = Composition(shape=(16, 16, 1), noise_std=1e-3)
    y, operator = jax.jit(corruption.sample)(jax.random.key(0), jnp.ones(corruption.shape))
    assert "while" not in str(jax.make_jaxpr(corruption.solve_gram)(y, operator, jnp.ones(())))
    assert jax.jit(corruption.solve_residual)(y, operator, jnp.ones(())) < 0.01


def test_blurs_match_scipy():
    x = np.asarray(jax.random.normal(jax.random.key(0), (12, 9, 2)))
    for border, mode in (("circular", "wrap"), ("reflect", "reflect")):
        y = CORRUPTIONS["gaussian_blur"](shape=x.shape, std=1.7, border=border).forward(jnp.asarray(x), ())
        truth = ndimage.gaussian_filter(x, (1.7, 1.7, 0), mode=mode, truncate=5)
        np.testing.assert_allclose(y, truth, atol=1e-4)
    kernel = np.array([[0.0, 0.2, 0.5], [0.1, 0.4, -0.3], [0.0, 0.0, 0.7]])
    x = np.asarray(jax.random.normal(jax.random.key(0), (8, 7, 1)))
    corruption = CORRUPTIONS["kernel_blur"](shape=x.shape, weights=tuple(map(tuple, kernel.tolist())))
    truth = ndimage.convolve(x[..., 0], kernel, mode="wrap")
    np.testing.assert_allclose(corruption.forward(jnp.asarray(x), ())[..., 0], truth, atol=1e-5)


def test_motion_blur_draws_directions():
    corruption = CORRUPTIONS["motion_blur"](shape=(16, 16, 1))
    kernels = np.asarray(jax.jit(jax.vmap(corruption.draw_operator))(jax.random.split(jax.random.key(0), 16)))
    np.testing.assert_allclose(kernels.sum((1, 2)), 1, atol=1e-5)
    assert np.unique(kernels.round(4), axis=0).shape[0] == 16
    x = jnp.zeros((16, 16, 1)).at[8, 8, 0].set(1.0)
    np.testing.assert_allclose(jax.jit(corruption.forward)(x, kernels[0])[3:14, 3:14, 0], kernels[0], atol=1e-6)


@pytest.mark.parametrize("quality", [10, 50, 95])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_is_pillows(quality, mode):
    image, file = Image.fromarray(photo(64)).convert(mode), io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling=0)
    truth = np.asarray(Image.open(file), float).reshape(64, 64, -1)
    x = to_x(np.asarray(image).reshape(64, 64, -1))
    levels = (jax.jit(CORRUPTIONS["jpeg"](shape=x.shape, quality=quality).forward)(x, ()) + 2) * (255 / 4)
    apart = np.abs(np.asarray(levels) - truth)
    # The two round coefficients that lie on a half differently now and then; everything else is within a level or two.
    assert np.mean(apart < 2.5) > 0.99
    assert apart.mean() < 0.3 < 0.5 < np.abs(np.asarray(image, float).reshape(truth.shape) - truth).mean()


def test_jpeg_chroma_subsampling_is_nearly_pillows_and_has_a_derivative():
    image, file = photo(62), io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=60, subsampling=2)
    truth = np.asarray(Image.open(file), float)
    corruption = CORRUPTIONS["jpeg"](shape=image.shape, quality=60, chroma_subsampling=True)
    whole = dataclasses.replace(corruption, chroma_subsampling=False)
    ours, full = ((jax.jit(c.forward)(to_x(image), ()) + 2) * (255 / 4) for c in (corruption, whole))
    assert np.abs(ours - truth).mean() < 0.5 * np.abs(full - truth).mean()
    slope = jax.jit(jax.grad(lambda x: jnp.sum(corruption.forward(x, ()) ** 2)))(to_x(image))
    assert jnp.linalg.norm(slope - 2 * to_x(image)) < 0.5 * jnp.linalg.norm(2 * to_x(image))


def test_phase_keeps_energy_and_forgets_position():
    x = jax.random.normal(jax.random.key(0), (6, 6, 2))
    corruption = CORRUPTIONS["phase"](shape=x.shape, oversampling=1)
    y = corruption.forward(x, ())
    np.testing.assert_allclose(jnp.sum(y**2), jnp.sum(x**2), rtol=1e-5)
    np.testing.assert_allclose(corruption.forward(jnp.roll(x, (1, 2), (0, 1)), ()), y, atol=1e-5)


def test_quantisation_and_clipping():
    x = jnp.linspace(-2.5, 2.5, 101)
    y = CORRUPTIONS["quantisation"](shape=x.shape, levels=5).forward(x, ())
    np.testing.assert_allclose(np.unique(y), [-2, -1, 0, 1, 2], atol=1e-6)
    assert jnp.abs(y - jnp.clip(x, -2, 2)).max() <= 0.5 + 1e-6
    y = CORRUPTIONS["clipping"](shape=x.shape, low=-0.5, high=1.5).forward(x, ())
    assert (y.min(), y.max()) == (-0.5, 1.5)


def test_fourier_mask_keeps_the_centre_and_the_number_of_lines():
    corruption = CORRUPTIONS["fourier_mask"](shape=(8, 32, 1), acceleration=4.0, center_fraction=0.125)
    masks = np.asarray(jax.jit(jax.vmap(corruption.draw_operator))(jax.random.split(jax.random.key(0), 64)))
    assert (masks[:, 0].sum((1, 2)) == 8).all()
    assert (masks[:, :, 14:18] == 1).all() and (masks == masks[:, :1]).all()
    np.testing.assert_allclose(masks[:, 0, :, 0].mean(0)[:14], 4 / 28, atol=0.2)
    # The zero frequency is at the centre: a constant image shows there alone.
    y = np.asarray(jax.jit(corruption.forward)(jnp.ones((8, 32, 1)), masks[0]))
    assert np.abs(y).sum() == pytest.approx(np.abs(y[4, 16, 0]), rel=1e-4)


def test_lines_held_out_are_not_told_by_their_opposites():
    """Of a real image a line and its mirror image hold the same numbers; the centre is always there."""
    corruption = CORRUPTIONS["fourier_mask"](shape=(8, 32, 1), acceleration=2.0, center_fraction=0.125)

    @jax.jit
    @jax.vmap
    def held_back(key):
        left, held = corruption.hold_out(key, observation, 0.3)
        return left.operator, held, held & corruption._mirror(corruption.observed(left.operator))

    observation = jax.jit(corruption.sample)(jax.random.key(0), jnp.ones((8, 32, 1)))
    operators, held, told = held_back(jax.random.split(jax.random.key(1), 20))
    assert not told.any() and (operators[:, :, 14:18] == 1).all() and held.any()


def test_multicoil_maps_have_unit_energy():
    corruption = CORRUPTIONS["multicoil_fourier"](shape=(8, 8, 2), complex_image=True)
    x = np.random.default_rng(1).standard_normal(corruption.shape, np.float32)
    full = (np.ones((8, 8, 1), np.float32), jax.jit(corruption.draw_operator)(jax.random.key(0))[1])
    back = jax.jit(lambda x: corruption.adjoint(corruption.forward(x, full), full))(x)
    np.testing.assert_allclose(back, x, atol=1e-5)


@pytest.mark.parametrize("name", ["box_downsampling", "bicubic_downsampling"])
def test_downsampling_keeps_constants(name):
    y = CORRUPTIONS[name](shape=(8, 12, 3), factor=4).forward(jnp.full((8, 12, 3), 1.5), ())
    np.testing.assert_allclose(y, np.full((2, 3, 3), 1.5), atol=1e-5)


def test_masks_hide_what_they_say():
    inside = CORRUPTIONS["outpainting"](shape=(8, 8, 3), box=(2, 5)).draw_operator(jax.random.key(0))
    outside = CORRUPTIONS["box_mask"](shape=(8, 8, 3), box=(2, 5)).draw_operator(jax.random.key(0))
    assert inside.sum() == 10 and (inside + outside == 1).all()
    block = CORRUPTIONS["block_mask"](shape=(9, 8, 3), block=3)
    masks = np.asarray(jax.jit(jax.vmap(block.draw_operator))(jax.random.split(jax.random.key(0), 400)))
    assert ((1 - masks).sum((1, 2, 3)) == 9).all()
    hidden = ((1 - masks)[..., 0].sum((1, 2)) > 0).all() and (1 - masks)[..., 0].max(0)
    assert (hidden == 1).all(), "every pixel must be hidden now and then"


def test_fixed_mask_from_file_and_its_errors(tmp_path):
    make = CORRUPTIONS["fixed_mask"]
    mask = np.zeros((4, 6), np.uint8)
    mask[1] = 1
    np.save(tmp_path / "mask.npy", mask)
    drawn = make(shape=(4, 6, 3), mask=str(tmp_path / "mask.npy")).draw_operator(jax.random.key(0))
    np.testing.assert_array_equal(drawn[..., 0], mask)
    np.save(tmp_path / "half.npy", mask / 2)
    np.save(tmp_path / "objects.npy", np.array([None]), allow_pickle=True)
    for bad in ("half.npy", "objects.npy", "absent.npy"):
        with pytest.raises(UserError, match=r"corruption\.mask"):
            make(shape=(4, 6, 3), mask=str(tmp_path / bad)).draw_operator(jax.random.key(0))
    with pytest.raises(UserError, match="shape"):
        make(shape=(4, 6, 3), mask=((1, 0), (0, 1))).draw_operator(jax.random.key(0))


def test_varying_noise_stays_within_its_bounds():
    corruption = CORRUPTIONS["varying_noise"](shape=(4,), noise_std=0.1, noise_std_max=1.0)
    _, stds = jax.jit(jax.vmap(corruption.draw_operator))(jax.random.split(jax.random.key(0), 1000))
    assert 0.1 <= stds.min() < 0.11 and 0.95 < stds.max() <= 1.0001 and 0.4 < (stds < 0.1**0.5).mean() < 0.6


def test_groups_are_hidden_together():
    corruption = CORRUPTIONS["group_mask"](shape=(6,), groups=(1, 3, 2), rate=0.3)
    masks = np.asarray(jax.jit(jax.vmap(corruption.draw_operator))(jax.random.split(jax.random.key(0), 400)))
    for group in np.split(masks, (1, 4), axis=1):
        assert (group == group[:, :1]).all() and 0.6 < group.mean() < 0.8
    assert (masks[:, 0] != masks[:, 1]).any() and (masks[:, 1] != masks[:, 4]).any()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_observations_come_back_from_a_file(name, tmp_path):
    """What was simulated is what is loaded, whatever the file holds where nothing was measured."""
    corruption, indices = CORRUPTIONS[name](shape=SHAPE), np.array([2, 0])
    y = jax.eval_shape(corruption.sample, jax.random.key(1), jnp.ones(SHAPE)).y

    def draw(key):
        operator = corruption.draw_operator(key)
        return operator, jnp.broadcast_to(jnp.asarray(corruption.observed(operator)), y.shape)

    operator, seen = jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 3)))
    observation = Observation(seen * np.random.default_rng(0).standard_normal(seen.shape, y.dtype), operator)
    spoilt = observation._replace(y=np.where(seen, observation.y, np.nan))
    save_observations(tmp_path / "o.npz", spoilt, corruption)
    loaded = load_observations(tmp_path / "o.npz", corruption=corruption)
    assert jax.tree.structure(loaded.operator) == jax.tree.structure(observation.operator)
    for there, back in zip(jax.tree.leaves(observation), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(there, back)
        np.testing.assert_array_equal(there[indices], back[indices])
        assert there.dtype == back.dtype


def test_composition_by_instances_equals_by_names():
    blur, shape = CORRUPTIONS["gaussian_blur"](shape=(8, 8, 1), std=1.0), (8, 8, 1)
    small = CORRUPTIONS["box_downsampling"](shape=shape)
    named = Composition(shape=shape, stages=(("gaussian_blur", (("std", 1.0),)), "box_downsampling"))
    assert named == Composition(shape=shape, stages=(blur, small))
    stage = ("diffem_jax.corruptions.masks:PixelMask", (("rate", 0.2),))
    assert Composition(shape=SHAPE, stages=(stage,)).stages == (PixelMask(shape=SHAPE, rate=0.2),)
    x = jax.random.normal(jax.random.key(0), shape)
    np.testing.assert_array_equal(named.forward(x, ((), ())), small.forward(blur.forward(x, ()), ()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Composition(shape=SHAPE, stages=("pixelmask",)), r"stages\[0\].*did you mean 'pixel_mask'"),
        (lambda: Composition(shape=SHAPE, stages=("no.such.module:Thing",)), "no.such.module"),
        (lambda: Composition(shape=SHAPE, stages=("jpeg",)), "linear"),
        (lambda: Composition(shape=SHAPE, stages=(PixelMask(shape=(4, 4, 3)),)), r"expected \(4, 6, 3\)"),
        (lambda: CORRUPTIONS["box_downsampling"](shape=(9, 8, 1)), "factor"),
        (lambda: CORRUPTIONS["gaussian_blur"](shape=SHAPE, border="zero"), "border"),
        (lambda: CORRUPTIONS["jpeg"](shape=SHAPE, quality=0), "quality"),
        (lambda: CORRUPTIONS["fourier_mask"](shape=SHAPE, complex_image=True), "shape"),
        (lambda: CORRUPTIONS["kernel_blur"](shape=(8, 1)), "weights"),
        (lambda: CORRUPTIONS["box_mask"](shape=SHAPE, box=(9, 1)), "box"),
        (lambda: CORRUPTIONS["group_mask"](shape=SHAPE, groups=(2, 2)), "groups"),
        (lambda: CORRUPTIONS["varying_noise"](shape=SHAPE, of="jpeg"), "linear"),
        (lambda: CORRUPTIONS["jpeg"](shape=SHAPE).hold_out(None, None, 0.1), "cannot hold measurements back"),
        (lambda: PixelMask(shape=(5,), fill_iterations=3), "fill_iterations"),
        (lambda: PixelMask(shape=(5, 5, 1), fill_iterations=3, fill_order=3), "fill_order"),
    ],
)
def test_mistakes_are_explained(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(("order", "iterations"), [(1, 60), (2, 200)])
def test_fill_is_the_smoothest_interpolation(order, iterations):
    """It keeps what is seen, never reads what is hidden, and any other filling bends more."""
    shape = (8, 6, 2)
    corruption = PixelMask(shape=shape, rate=0.5, noise_std=0.0, fill_iterations=iterations, fill_order=order)
    x = jax.random.normal(jax.random.key(0), shape)
    observation = corruption.sample(jax.random.key(1), x)
    filled = np.asarray(jax.jit(corruption.fill)(observation))
    seen = np.broadcast_to(np.asarray(observation.operator) > 0, shape)
    np.testing.assert_allclose(filled[seen], np.asarray(x)[seen], atol=1e-6)
    spoiled = observation._replace(y=jnp.where(seen, observation.y, jnp.nan))
    np.testing.assert_array_equal(jax.jit(corruption.fill)(spoiled), filled)

    def energy(u):
        steps = [np.diff(u, axis=0), np.diff(u, axis=1)]
        if order == 1:
            return sum(np.sum(step**2) for step in steps)
        laplace = np.diff(np.pad(steps[0], ((1, 1), (0, 0), (0, 0))), axis=0)
        laplace = laplace + np.diff(np.pad(steps[1], ((0, 0), (1, 1), (0, 0))), axis=1)
        return np.sum(laplace**2)

    rng = np.random.default_rng(0)
    for size in (0.03, 0.3):
        other = filled + size * rng.normal(size=shape) * ~seen
        assert energy(other.astype(np.float64)) > energy(filled.astype(np.float64))
    shown = corruption.condition(observation)
    np.testing.assert_allclose(shown[..., -2:], filled, atol=1e-5)
