"""Data: sources of clean examples, a user's own observations, and the store of reconstructions."""

from diffem_jax.data.observations import array_shapes, load_observations, save_observations
from diffem_jax.data.sources import SOURCES, Dataset, load
from diffem_jax.data.tables import Column, Table, encode_table
from diffem_jax.storage.reconstructions import ReconstructionStore
from diffem_jax.storage.rows import Rows, first

__all__ = [
    "SOURCES", "Column", "Dataset", "ReconstructionStore", "Rows", "Table", "array_shapes", "encode_table", "first", "load",
    "load_observations", "save_observations",
]  # fmt: skip
