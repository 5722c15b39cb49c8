"""Patches: all methods at four rates of erased pixels, on 16x16x3 crops of photographs with a small U-Net.

    python -m experiments.patches.run [--seeds=3] [--quick] [--processes=2]

1,024 crops and short M-steps, so that all seeds fit about an hour on two cores; 'quick' takes 512 crops.
"""

from __future__ import annotations

from experiments import rates
from experiments.common import fields

BASE = (
    "--config=patches:mask50",
    *fields(
        rounds=2,
        data__num_examples=1024,
        start__num_examples=1024,
        start__rank=32,
        m_step__steps=100,
        m_step__batch_size=32,
        m_step__augment="()",
        e_step__steps=8,
        e_step__batch_size=256,
        network__channels="(16,32)",
        eval__metrics="('psnr','observation_score')",
        eval__num_examples=512,
        eval__posterior_examples=64,
    ),
)
QUICK = fields(rounds=1, data__num_examples=512, m_step__steps=50)

if __name__ == "__main__":
    rates.main("patches", __doc__ or "", BASE, QUICK)
