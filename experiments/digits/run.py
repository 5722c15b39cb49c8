"""Digits: all methods at four rates of erased pixels, on 1,797 real 8x8 digits.

python -m experiments.digits.run [--seeds=3] [--quick] [--processes=2]
"""

from __future__ import annotations

from experiments import rates
from experiments.common import fields

BASE = (
    "--config=digits",
    *fields(
        rounds=3,
        m_step__steps=400,
        m_step__batch_size=256,
        e_step__steps=32,
        network__features="(256,256,256)",
        eval__metrics="('psnr','accuracy','observation_score')",
        eval__posterior_examples=128,
    ),
)
QUICK = fields(rounds=2, m_step__steps=300)

if __name__ == "__main__":
    rates.main("digits", __doc__ or "", BASE, QUICK)
