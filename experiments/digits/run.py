"""Digits: all methods at four rates of erased pixels, on 1,797 real 8x8 digits.

python -m experiments.digits.run [--seeds=3] [--quick] [--processes=2]
"""

from experiments import common, rates
from experiments.rates import draw, tables

BASE = (
    "--config=digits",
    *common.fields(rounds=3, m_step__steps=400, m_step__batch_size=256, e_step__steps=32),
    *common.fields(network__features="(256,256,256)", eval__metrics="('psnr','accuracy','observation_score')"),
    *common.fields(eval__posterior_examples=128),
)

if __name__ == "__main__":
    common.main("digits", __doc__ or "", rates.jobs(BASE), tables, draw)
