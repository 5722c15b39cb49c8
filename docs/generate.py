"""A hook of mkdocs: pages of the documentation that are made, not typed (fields of the configuration, notebooks, API)."""

import ast
import dataclasses
import importlib
import inspect
import json
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "diffem_jax"


def config_page() -> str:
    """Every field: default, meaning, what it may be; and those of the classes of a section; ValueError for one without a meaning."""
    from diffem_jax import config, corruptions, networks, samplers

    missing = [name for name, field in config.FIELDS.items() if not field.meaning]
    rows: dict[str, list[str]] = {}
    for name, field in config.FIELDS.items():
        allowed = ", ".join(f"`{choice}`" for choice in field.choices)
        if field.range:
            low, high = field.range
            allowed = f"{low:g} to {high:g}" if high < 1e5 else f"{low:g} or more"
        row = f"| `{name}` | `{field.default!r}` | {_cell(field.meaning)} | {allowed} |"
        rows.setdefault(name.rpartition(".")[0], []).append(row)
    lines = [
        "# Every field of the configuration",
        "",
        "Made from diffem_jax/config/fields.py. Each is a flag, `--config.FIELD=VALUE`; `corruption` and `network` take further",
        "fields, those of the class that their `name` chooses ([corruptions](#corruptionname), [networks](#networkname)), whether the",
        "config file has them or not. Setting another `name` drops the fields of the class before.",
    ]
    for section, entries in rows.items():
        lines += ["", f"## {section or 'The run'}", "", "| field | default | meaning | allowed |", "|---|---|---|---|"]
        lines += entries
    for section, registry in (("corruption", corruptions.CORRUPTIONS), ("network", networks.NETWORKS)):
        lines += ["", f"## {section}.name", ""]
        for name, kind in registry.items():
            lines += [f"### {name}", "", (inspect.getdoc(kind) or "").partition("\n\n")[0], ""]
            lines += ["| field | default | meaning |", "|---|---|---|"]
            for field, (default, meaning) in fields(kind).items():
                if not meaning:
                    missing.append(f"{section}.{field} of {name}")
                lines.append(f"| `{section}.{field}` | `{default}` | {_cell(meaning)} |")
            lines.append("")
    lines += ["## e_step.sampler, prior.sampler", "", "| name | what it is |", "|---|---|"]
    for name, make in samplers.SAMPLERS.items():
        lines.append(f"| `{name}` | {_cell((inspect.getdoc(make) or '').splitlines()[0])} |")
    if missing:
        raise ValueError(f"fields without a meaning (the table, 'Attributes' of a class): {', '.join(missing)}")
    return "\n".join(lines) + "\n"


GIVEN = ("shape", "parent", "name", "native_gradient")
"""Fields of classes that are no fields of a config: the data or the program sets them, or Python alone can."""


def fields(kind: type) -> dict[str, tuple[str, str]]:
    """Field -> (default, meaning) of a corruption or network; the meaning from the class that says it, its own before its bases'."""
    told: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        attributes = inspect.cleandoc(vars(base).get("__doc__") or "").partition("Attributes:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE):
            told[name] = re.sub(r"\s+", " ", text)
    names = [field for field in dataclasses.fields(kind) if field.name not in GIVEN]
    return {field.name: (f"{_tuple(field.default)!r}", told.get(field.name, "")) for field in names}


def _cell(text: str) -> str:
    """Plain text in a cell of a table."""
    return re.sub(r"[|<>]", lambda found: f"&#{ord(found[0])};", text)


def _tuple(value: object) -> object:
    if isinstance(value, type):
        return importlib.import_module("jax.numpy").dtype(value).name
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def notebooks_page() -> str:
    """The notebooks with their badges, from their first cells."""
    lines = [
        "# Notebooks",
        "",
        "Scripts with notebooks made from them, in `colabs/` of the repository. Each installs the package in its first cell, and the same",
        "cells run on a CPU in a few minutes or on a GPU or TPU. `make colabs` runs them all. On Colab: the badge, or File, Upload",
        "notebook.",
    ]
    if "/OWNER/" in repository():
        lines += ["", "*The repository's address is not set yet (pyproject.toml): the badges lead nowhere.*"]
    for file in sorted((ROOT / "colabs").glob("*.ipynb")):
        first = "".join(json.loads(file.read_text())["cells"][0]["source"])
        badge, title, said = first.split("\n\n")[:3]
        lines += ["", "#" + title, "", said, "", badge, "", f"`colabs/{file.name}`"]
    return "\n".join(lines) + "\n"


def repository() -> str:
    """Where the project is published."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["diffem_jax"]["repository"]


MODULES = ("diffem_jax.testing", "diffem_jax.corruptions", "diffem_jax.metrics")


def public() -> dict[str, object]:
    """Full name -> object, of everything that an outside program is meant to import."""
    import diffem_jax as dx

    names = {f"diffem_jax.{dx._HOME[name]}.{name}": getattr(dx, name) for name in dx.__all__}
    for module in MODULES:
        loaded = importlib.import_module(module)
        own = ((name, thing) for name, thing in vars(loaded).items() if hasattr(thing, "__module__"))
        names |= {f"{module}.{name}": thing for name, thing in own if thing.__module__.startswith(module)}
    return names


def api_page() -> str:
    """The public surface, from its docstrings, which the linter asks for."""
    names = public()
    lines = ["# API", "", "`import diffem_jax as dx` has the first part's names; the rest is imported from its module."]
    short = "import diffem_jax as dx"
    heads = {full: full.rpartition(".")[0] if full.startswith(MODULES) else short for full in names}
    section = ""
    for full in sorted(names, key=lambda name: (heads[name] != short, name)):
        if heads[full] != section:
            section = heads[full]
            lines += ["", f"## {section}", ""]
        thing = names[full]
        if inspect.isclass(thing) or inspect.isfunction(thing):
            lines += ["", f"::: {thing.__module__}.{thing.__qualname__}"]
    return "\n".join(lines) + "\n"


def messages() -> list[tuple[str, str]]:
    """(file, text) of what each ``UserError`` and each rule of the configuration says, '...' for what is filled in."""
    from diffem_jax.config import RULES, TRAINING_RULES

    found = [("config", re.sub(r"\{[^}]*\}", "...", message)) for _, message in RULES + TRAINING_RULES]
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError" and node.args:
                text = _template(node.args[-1])
                if re.search(r"[a-z]{4}", text.replace("...", "")):
                    found.append((str(file.relative_to(ROOT)), text))
    return found


def _template(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_template, node.values))
    if isinstance(node, ast.BinOp):
        return _template(node.left) + _template(node.right)
    return "..."


def without_cure() -> list[tuple[str, str]]:
    """Messages that neither end in what to do nor have a line in a table of docs/troubleshooting.md."""
    rows = re.findall(r"^\| (.*?) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    quoted = [phrase.split("...") for row in rows for phrase in re.findall(r"`([^`]{8,})`", row)]
    known = [re.compile(".*".join(re.escape(part.strip()) for part in parts), re.DOTALL) for parts in quoted]

    def is_cured(text: str) -> bool:
        head, _, last = text.rpartition("; ")
        own = (head and last.strip(". ") and not last.startswith(("expected", "see"))) or last.startswith("...")
        return bool(own) or any(phrase.search(text) for phrase in known)

    return [(file, text) for file, text in messages() if not is_cured(text)]


PAGES = {"config.md": config_page, "notebooks.md": notebooks_page, "api.md": api_page}


def on_config(config):  # type: ignore[no-untyped-def]
    """The repository is linked once it is known."""
    if "/OWNER/" not in repository():
        config.repo_url = repository()
    return config


def on_page_markdown(markdown, **rest):  # type: ignore[no-untyped-def]
    """Links to files outside docs/ serve readers of the repository; here they are text."""
    return re.sub(r"\[([^]]*)\]\(\.\./[^)]*\)", r"\1", markdown)


def on_files(files, config):  # type: ignore[no-untyped-def]
    """Adds the pages to mkdocs' own."""
    from mkdocs.structure.files import File

    sys.path.insert(0, str(ROOT))
    for name, make in PAGES.items():
        files.append(File.generated(config, name, content=make()))
    return files
