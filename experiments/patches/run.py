"""Patches: all methods at four rates of erased pixels, on 16x16x3 crops of photographs with a small U-Net.

    python -m experiments.patches.run [--seeds=3] [--quick] [--processes=2]

1,024 crops and short M-steps, so that all seeds fit about an hour on two cores.
"""

from experiments import common, rates
from experiments.rates import draw, tables

BASE = (
    "--config=patches:mask50",
    *common.fields(rounds=2, data__num_examples=1024, start__num_examples=1024, start__rank=32, m_step__steps=100),
    *common.fields(m_step__batch_size=32, m_step__augment="()", e_step__steps=8, e_step__batch_size=256),
    *common.fields(network__channels="(16,32)", eval__metrics="('psnr','observation_score')", eval__num_examples=512),
    *common.fields(eval__posterior_examples=64),
)

if __name__ == "__main__":
    common.main("patches", __doc__ or "", rates.jobs(BASE), tables, draw)
