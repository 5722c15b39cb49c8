"""Data: sources of clean examples, a user's own observations, the store of reconstructions and batch indices."""

from diffem_jax.data.observations import array_shapes, load_observations, save_observations
from diffem_jax.data.sources import SOURCES, Dataset, load
from diffem_jax.data.tables import Column, Table, encode_table, load_table
from diffem_jax.storage.files import cache_folder
from diffem_jax.storage.reconstructions import Done, ReconstructionStore, Round, RowReader, index_stream
from diffem_jax.storage.rows import Rows, first

__all__ = [
    "SOURCES",
    "Column",
    "Dataset",
    "Done",
    "ReconstructionStore",
    "Round",
    "RowReader",
    "Rows",
    "Table",
    "array_shapes",
    "cache_folder",
    "encode_table",
    "first",
    "index_stream",
    "load",
    "load_observations",
    "load_table",
    "save_observations",
]
