"""Data: sources of clean examples, and a user's own observations."""

from diffem_jax.data.observations import array_shapes, check_units, load_observations, save_observations
from diffem_jax.data.series import Series, load_series
from diffem_jax.data.sources import SOURCES, Dataset, load
from diffem_jax.data.tables import Column, Table, encode_table, is_spreadsheet, load_spreadsheet
from diffem_jax.storage.rows import Rows, first
