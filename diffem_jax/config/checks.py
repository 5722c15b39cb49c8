"""What a configuration may hold: the fields of the table and of the classes that it names, their types, ranges and rules."""

from __future__ import annotations

import inspect
import json
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from diffem_jax.config.fields import AUTO, AUTOMATIC, CLASSES, FIELDS, OWN, RETIRED, RULES, TRAINING_RULES, Field
from diffem_jax.corruptions import CORRUPTIONS
from diffem_jax.errors import UserError, lookup, nearest

NOT_FIELDS = ("shape", "parent", "name", "report")
"""Parameters of classes and functions that the program sets."""
LIMITS = {
    "noise_std": (0, 1e6), "noise_std_max": (0, 1e6), "rate": (0, 0.999999), "dropout": (0, 0.99), "patch": (1, 64),
}  # fmt: skip
"""Ranges of fields that classes bring, by their last name."""
WORDS = {float: "a number", int: "a whole number", bool: "True or False", str: "text"}


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{'section.field': value} of a nested config, tuples as lists, as JSON would give it back."""
    out: dict[str, Any] = {}
    for key in sorted(config):
        value, name = config[key], f"{prefix}{key}"
        if hasattr(value, "keys"):
            out.update(flatten(value, name + "."))
        else:
            out[name] = json.loads(json.dumps(value))
    return out


def class_fields(section: str, name: str) -> dict[str, Field]:
    """The fields that a section has because of the class or function that it names; UserError where there is no such."""
    if name == AUTO:
        return {key: field for choice in CLASSES[section] for key, field in class_fields(section, choice).items()}
    factory = lookup(f"{section}.name", name, CLASSES[section])
    try:
        parameters = list(inspect.signature(factory).parameters.values())
        hints = typing.get_type_hints(factory)
    except Exception:  # a built-in, or an annotation that only a type checker can resolve
        parameters, hints = [], {}
    found = {}
    for p in parameters:
        if p.kind is p.VAR_KEYWORD and ":" in name:
            found[f"{section}.*"] = Field(f"{section}.*", None, Any, f"of {name}")
        elif p.name not in NOT_FIELDS and (p.default is not p.empty or p.kind is p.KEYWORD_ONLY):
            value, kind = None if p.default is p.empty else p.default, hints.get(p.name, Any)
            if hasattr(value, "dtype"):  # a dtype, which a configuration names
                value, kind = jnp.dtype(value).name, str
            allowed = LIMITS.get(p.name, kind) if isinstance(value, float | int) else kind
            allowed = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else allowed
            found[f"{section}.{p.name}"] = Field(f"{section}.{p.name}", value, allowed, f"of {name}")
    largest = f"{section}.noise_std_max"
    if CLASSES[section] is CORRUPTIONS and largest not in found:
        meaning = "above 0, each observation has a noise level of its own, up to this one"
        found[largest] = Field(largest, 0.0, LIMITS["noise_std_max"], meaning)
    return found


def known_fields(flat: Mapping[str, Any]) -> dict[str, Field]:
    """Every field that a flat configuration may have: those of the table, and those of the classes that it names."""
    found = {**FIELDS, "data_corruption.name": FIELDS["corruption.name"]._replace(name="data_corruption.name")}
    for section in CLASSES:
        if (name := flat.get(f"{section}.name")) is not None:
            check(found[f"{section}.name"], name)
            found = class_fields(section, name) | found
    return found


def fits(value: Any, kind: Any) -> bool:
    """Whether a value has a type, written as an annotation; a type that is not known here takes everything."""
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if kind in (float, int):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if kind in (bool, str):
        return isinstance(value, kind)
    if origin not in (tuple, Sequence):
        return True
    if not isinstance(value, tuple | list):
        return False
    if origin is tuple and arguments and Ellipsis not in arguments:
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    return not arguments or all(fits(entry, arguments[0]) for entry in value)


def _finite(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def check(field: Field, value: Any) -> None:
    """Compares a value with its field; UserError where it does not fit."""
    name = field.name
    if isinstance(value, str) and value == AUTO and name in AUTOMATIC:
        return
    if not fits(value, field.kind):
        expected = f"{WORDS.get(field.kind, 'a tuple')}, such as the default {field.default!r}"
        raise UserError(f"config.{name}: {value!r}; expected {expected}; correct it")
    if not _finite(value):
        raise UserError(f"config.{name}: {value!r}; expected a finite number")
    if field.choices and value not in field.choices and not (OWN in field.choices and ":" in value):
        raise UserError(f"config.{name}: {value!r} is not known; {nearest(value, field.choices)}")
    if field.range and not field.range[0] <= value <= field.range[1]:
        raise UserError(f"config.{name}: {value!r}; expected a number from {field.range[0]:g} to {field.range[1]:g}")


def validate(config: ConfigDict, training: bool = False) -> None:
    """Checks names, types, ranges and the rules over several fields; for ``training`` also what it alone refuses.

    Raises:
        UserError: the first wrong field, its value, what was expected and the nearest name.
    """
    given = flatten(config)
    known = known_fields(given)
    for name, value in given.items():
        section, _, rest = name.partition(".")
        # A field of any type may be a section: corruption.of.name.
        field = known.get(name) or known.get(f"{section}.{rest.partition('.')[0]}") or known.get(f"{section}.*")
        if field is None:
            raise unknown(name, known)
        check(field, value)
    for name in FIELDS:
        if name not in given:
            raise UserError(f"config.{name}: missing; start a config file from diffem_jax.config.default()")
    # What is 'auto' is validated once it is chosen.
    for holds, message in () if AUTO in given.values() else RULES + (TRAINING_RULES if training else ()):
        if not holds(config):
            raise UserError(message.format(c=config))


def unknown(name: str, known: Iterable[str]) -> UserError:
    """The error of a field that there is not."""
    if name in RETIRED:
        cure = "leave it out, or go on with the version that made the run"
        return UserError(f"config.{name}: a field of earlier versions, which this one lacks; {cure}")
    return UserError(f"config.{name}: unknown field; {nearest(name, known)}")
