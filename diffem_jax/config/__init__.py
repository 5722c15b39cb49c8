"""The configuration: one table of fields, from which defaults, checks, flags, help, messages and documentation come."""

from diffem_jax.config.fields import AUTO, AUTOMATIC, FIELDS, RETIRED, RULES, TRAINING_RULES
from diffem_jax.config.values import class_fields, default, flatten, frozen, leave_open, override, put, validate
from diffem_jax.errors import lookup, nearest
