"""The digits config whose data keep the rate 0.5 whatever rate the method is told (config.corruption.rate)."""

from ml_collections import ConfigDict

from configs import digits


def get_config() -> ConfigDict:
    """The digits config with the data's own corruption."""
    c = digits.get_config("mask50")
    with c.unlocked():
        c.data_corruption = ConfigDict(digits.CORRUPTIONS["mask50"])
    return c
