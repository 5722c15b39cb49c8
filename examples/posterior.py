"""A posterior transform: an unconditional denoiser meets y by a linear solve, without a gradient of the network.

    diffem --config=digits --config.method=examples.posterior:gradient_free --workdir=runs/gradient_free

It is ``diffem_jax.denoisers.guidance.pigdm`` with the Jacobian of x-hat replaced by that of N(0, I).
Source of the idea: Wang et al. 2023, arXiv 2212.00490 (null-space models).
"""


def gradient_free(denoise, schedule, corruption, observation):
    """x-hat + v A^T (v A A^T + noise_std^2 I)^-1 (y - A x-hat), v = 1 / (1 + alpha^2 / sigma^2); exact for x ~ N(0, I)."""

    def guided(x_t, t):
        alpha, sigma = schedule(t)
        v = sigma**2 / (sigma**2 + alpha**2)
        x_hat = denoise(x_t, t)
        residual = observation.y - corruption.forward(x_hat, observation.operator)
        solved = corruption.solve_gram(residual, observation.operator, v)
        return x_hat + v * corruption.adjoint(solved, observation.operator)

    return guided
