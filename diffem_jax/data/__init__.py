"""Data: sources of clean examples, a user's own observations, and the store of reconstructions."""

from diffem_jax.data.observations import array_shapes, check_units, load_observations, save_observations
from diffem_jax.data.sources import SOURCES, Dataset, load
from diffem_jax.data.tables import Column, Table, encode_table, is_spreadsheet, load_spreadsheet
from diffem_jax.storage.reconstructions import ReconstructionStore
from diffem_jax.storage.rows import Rows, first

__all__ = [
    "SOURCES", "Column", "Dataset", "ReconstructionStore", "Rows", "Table", "array_shapes", "check_units", "encode_table", "first",
    "is_spreadsheet", "load", "load_observations", "load_spreadsheet", "save_observations",
]  # fmt: skip
