"""Configurations made, changed by flags, read back and compared."""

from __future__ import annotations

import ast
import json
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, FieldReference

from diffem_jax.config.checks import check, fits, flatten, known_fields, unknown, validate
from diffem_jax.config.fields import AUTO, AUTOMATIC, CLASSES, FIELDS, FREE_FIELDS, RETIRED, TABLE, Field
from diffem_jax.errors import UserError


def default() -> ConfigDict:
    """Every field with its default; a config file changes what it needs."""
    config = ConfigDict({"data_corruption": {}})
    for field in TABLE:
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

    The names of classes go first, each of which drops the fields of the class before.

    Raises:
        UserError: an unknown field, or a value of another type.
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
                kept = {k: v for k, v in config[section].items() if f"{section}.{k}" in FIELDS}
                config[section] = ConfigDict(kept)
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
    """Fields in which a config differs from a stored one, as 'field: stored -> now', but for the free ones.

    A field that one of them leaves out counts as its default, and a retired one that changed nothing does not count.
    """
    before, now = _completed(stored), _completed(flatten(config))
    return [
        f"{name}: {before.get(name)!r} -> {now.get(name)!r}"
        for name in sorted(set(now) | set(before))
        if now.get(name) != before.get(name) and not name.startswith(FREE_FIELDS)
    ]


def _completed(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A flat configuration with the defaults of the fields that it leaves out."""
    try:
        known = known_fields(flat)
    except UserError:  # a class that is not there any more
        known = FIELDS
    sections = {"", *(name.partition(".")[0] for name in flat if "." in name)}
    usual = {name: field.default for name, field in known.items() if field.default is not None}
    usual = {name: value for name, value in usual.items() if name.rpartition(".")[0] in sections}
    given = {name: value for name, value in flat.items() if name not in RETIRED or value != RETIRED[name]}
    return json.loads(json.dumps(usual, default=str)) | given
