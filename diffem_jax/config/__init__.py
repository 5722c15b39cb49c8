"""The configuration: one table of fields, from which defaults, checks, flags, help, messages and documentation come."""

from diffem_jax.config.checks import class_fields, flatten, known_fields, lookup, nearest, validate
from diffem_jax.config.fields import AUTO, AUTOMATIC, FIELDS, RETIRED, RULES, TRAINING_RULES, Field
from diffem_jax.config.values import default, differences, frozen, leave_open, override, put, restore

__all__ = [
    "AUTO", "AUTOMATIC", "FIELDS", "RETIRED", "RULES", "TRAINING_RULES", "Field", "class_fields", "default", "differences", "flatten",
    "frozen", "known_fields", "leave_open", "lookup", "nearest", "override", "put", "restore", "validate",
]  # fmt: skip
