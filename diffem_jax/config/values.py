"""Configurations made, checked, changed by flags, read back and compared."""

import ast
import inspect
import json
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FieldReference

from diffem_jax.config import fields as table
from diffem_jax.config.fields import AUTO, AUTOMATIC, CLASSES, FIELDS, OWN, RETIRED, Field
from diffem_jax.corruptions import CORRUPTIONS
from diffem_jax.errors import UserError, lookup, nearest

NOT_FIELDS = ("shape", "parent", "name", "report")  # parameters of classes and functions that the program sets
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
    found: dict[str, tuple[Any, Any]] = {}
    for p in parameters:
        if p.kind is p.VAR_KEYWORD and ":" in name:
            found["*"] = (None, Any)
        elif p.name not in NOT_FIELDS and (p.default is not p.empty or p.kind is p.KEYWORD_ONLY):
            value, kind = None if p.default is p.empty else p.default, hints.get(p.name, Any)
            if hasattr(value, "dtype"):  # a dtype, which a configuration names
                value, kind = jnp.dtype(value).name, str
            allowed = LIMITS.get(p.name, kind) if isinstance(value, float | int) else kind
            found[p.name] = (value, typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else allowed)
    if CLASSES[section] is CORRUPTIONS:  # above 0, each observation has a noise level of its own, up to this one
        found.setdefault("noise_std_max", (0.0, LIMITS["noise_std_max"]))
    names = {key: f"{section}.{key}" for key in found}
    return {names[key]: Field(names[key], value, allowed, f"of {name}") for key, (value, allowed) in found.items()}


def known_fields(flat: Mapping[str, Any]) -> dict[str, Field]:
    """Every field that a flat configuration may have: those of the table, and those of the classes that it names."""
    found = {**FIELDS, "data_corruption.name": FIELDS["corruption.name"]._replace(name="data_corruption.name")}
    for section in CLASSES:
        if (field := f"{section}.name") in flat:
            check(found[field], flat[field])
            found = class_fields(section, flat[field]) | found
    return found


def fits(value: Any, kind: Any) -> bool:
    """Whether a value has a type, written as an annotation; a type that is not known here takes everything."""
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if kind in (float, int):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if origin not in (tuple, Sequence):
        return isinstance(value, kind) if kind in (bool, str) else True
    if not isinstance(value, tuple | list):
        return False
    if origin is tuple and arguments and Ellipsis not in arguments:
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    return not arguments or all(fits(entry, arguments[0]) for entry in value)


def check(field: Field, value: Any) -> None:
    """Compares a value with its field; UserError where it does not fit."""
    name = field.name
    if isinstance(value, str) and value == AUTO and name in AUTOMATIC:
        return
    if not fits(value, field.kind):
        expected = f"{WORDS.get(field.kind, 'a tuple')}, such as the default {field.default!r}"
        raise UserError(f"config.{name}: {value!r}; expected {expected}; correct it")
    if not all(math.isfinite(leaf) for leaf in jax.tree.leaves(value) if isinstance(leaf, float)):
        raise UserError(f"config.{name}: {value!r}; expected a finite number")
    if field.choices and value not in field.choices and not (OWN in field.choices and ":" in value):
        raise UserError(f"config.{name}: {value!r} is not known; {nearest(value, field.choices)}")
    if field.range and not field.range[0] <= value <= field.range[1]:
        expected = f"a number from {field.range[0]} to {field.range[1]}"
        raise UserError(f"config.{name}: {value!r}; expected {expected}; correct it")


def validate(config: ConfigDict, training: bool = False) -> None:
    """Checks names, types, ranges and the rules over several fields, ``training`` also those of training; UserError for the first."""
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
    for holds, message in () if AUTO in given.values() else table.RULES + (table.TRAINING_RULES if training else ()):
        if not holds(config):
            raise UserError(message.format(c=config))


def unknown(name: str, known: Iterable[str]) -> UserError:
    """The error of a field that there is not."""
    if name in RETIRED:
        cure = "leave it out, or go on with the version that made the run"
        return UserError(f"config.{name}: a field of earlier versions, which this one lacks; {cure}")
    return UserError(f"config.{name}: unknown field; {nearest(name, known)}")


def default() -> ConfigDict:
    """Every field with its default; a config file changes what it needs."""
    config = ConfigDict({"data_corruption": {}})
    for field in table.TABLE:
        put(config, field.name, field.default)
    return config.lock()


def put(config: ConfigDict, name: str, value: Any) -> None:
    """Sets a field, in a new section where there is none yet."""
    *sections, key = name.split(".")
    for section in sections:
        if section not in config:
            config[section] = ConfigDict()
        config = config[section]
    config[key] = value


def frozen(value: Any) -> Any:
    """A value with its lists as tuples."""
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def leave_open(config: ConfigDict, names: Iterable[str] = AUTOMATIC) -> None:
    """Sets fields to 'auto', which follow from the data and the corruption; a value of their own type may replace it."""
    with config.unlocked(), config.ignore_type():
        for name in names:
            put(config, name, FieldReference(AUTO, field_type=object))


def override(config: ConfigDict, flags: Iterable[tuple[str, str]]) -> None:
    """Sets fields in place from (field, text), as flags give them: the last one wins.

    Names of classes go first, and drop the fields of the class before. UserError for an unknown field or another type.
    """
    with config.unlocked(), config.ignore_type():
        for name, text in sorted(flags, key=lambda flag: not flag[0].endswith(".name")):
            known = known_fields(flatten(config))
            if name not in known and f"{name.partition('.')[0]}.*" not in known:
                raise unknown(name, known)
            field = known.get(name) or Field(name, None, Any, "")
            value = AUTO if text == AUTO and name in AUTOMATIC else parse(field.kind, text)
            check(field, value)
            section, _, key = name.rpartition(".")
            if key == "name" and section in CLASSES and config[section].get("name") != value:
                config[section] = ConfigDict({k: v for k, v in config[section].items() if f"{section}.{k}" in FIELDS})
            put(config, name, value)


def parse(kind: Any, text: str) -> Any:
    """The value that text stands for, or the text where it stands for none."""
    if kind is str:
        return text
    try:
        value = ast.literal_eval(text.capitalize() if text in ("true", "false") else text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text
    if kind is float and fits(value, float):
        return float(value)
    one = (typing.get_origin(kind) or kind) in (tuple, Sequence) and not isinstance(value, tuple | list)
    return (value,) if one else value


def restore(stored: Mapping[str, Any]) -> ConfigDict:
    """The configuration of a flat one, as a work directory keeps it; newer fields have their defaults, UserError for unknown ones."""
    config = default()
    with config.unlocked(), config.ignore_type():
        for name, value in stored.items():
            if name not in RETIRED or value != RETIRED[name]:
                try:
                    put(config, name, frozen(value))
                except (TypeError, AttributeError, ValueError):
                    raise unknown(name, FIELDS) from None
    validate(config)
    return config


def differences(config: ConfigDict, stored: Mapping[str, Any]) -> list[str]:
    """Fields in which a config differs from a stored one, as 'field: stored -> now', but for the free ones."""
    before, now = _completed(stored), _completed(flatten(config))
    names = (name for name in sorted(set(now) | set(before)) if not name.startswith(table.FREE_FIELDS))
    pairs = ((name, before.get(name), now.get(name)) for name in names)
    return [f"{name}: {old!r} -> {new!r}" for name, old, new in pairs if old != new]


def _completed(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A flat configuration with the defaults of the fields that it leaves out, without retired ones that changed nothing."""
    try:
        known = known_fields(flat)
    except UserError:  # a class that is not there any more
        known = FIELDS
    sections = {"", *(name.partition(".")[0] for name in flat if "." in name)}
    usual = {name: field.default for name, field in known.items() if field.default is not None}
    usual = {name: value for name, value in usual.items() if name.rpartition(".")[0] in sections}
    given = {name: value for name, value in flat.items() if name not in RETIRED or value != RETIRED[name]}
    return json.loads(json.dumps(usual, default=str)) | given
