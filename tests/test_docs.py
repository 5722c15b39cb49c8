"""The documentation: made pages are whole, its code runs, the site builds, pictures and pages that it names exist."""

import ast
import importlib
import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from diffem_jax import config, corruptions, networks, usage

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"(<!-- not run: [^>]+ -->\n)?^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load("generate")


def blocks(page, language):
    """The blocks that are to run, with included files in place."""

    def included(match):
        return (ROOT / match.group(1)).read_text()

    found = FENCE.findall(page.read_text())
    return [
        re.sub(r'^--8<-- "(.*?)"$', included, code, flags=re.M)
        for skip, kind, code in found
        if kind == language and not skip
    ]


def test_every_field_is_on_the_page():
    page = generate.config_page()
    for name, field in config.FIELDS.items():
        row = next((line for line in page.splitlines() if line.startswith(f"| `{name}` ")), None)
        assert row is not None, name
        assert row.count("|") == 5 and f"| `{field.default!r}` |" in row, row
        for choice in field.choices:
            assert f"`{choice}`" in row
        if field.range:
            low, high = field.range
            assert f" {low:g} or more |" in row or f" {low:g} to {high:g} |" in row, row


def test_every_field_is_described():
    assert not [name for name, field in config.FIELDS.items() if len(field.meaning) < 6]
    for kind in (*corruptions.CORRUPTIONS.values(), *networks.NETWORKS.values()):
        assert not [name for name, (_, meaning) in generate.fields(kind).items() if len(meaning) < 6], kind
    assert {"rate", "noise_std", "fill_order"} <= set(generate.fields(corruptions.CORRUPTIONS["pixel_mask"]))


def test_every_corruption_is_in_the_table_of_names():
    table = (ROOT / "docs" / "own_data.md").read_text().partition("## Names")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")][1:]
    names = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(names) == sorted(corruptions.CORRUPTIONS)


def test_every_message_has_a_cure():
    found = generate.messages()
    assert len(found) > 150
    assert not generate.without_cure(), "say what to do in the message, or add it to docs/troubleshooting.md"


def class_fields():
    """Fields of every class that a corruption or a network may be."""
    sections = {"corruption": corruptions.CORRUPTIONS, "network": networks.NETWORKS}
    return {
        field for section, names in sections.items() for name in names for field in config.class_fields(section, name)
    }


def test_fields_that_pages_and_messages_name_exist():
    known = {*config.FIELDS, *class_fields()}
    texts = [page.read_text() for page in (ROOT / "README.md", *DOCS)] + [text for _, text in generate.messages()]
    named = {name for text in texts for name in re.findall(r"(?<!_)config\.([a-z_]+\.[a-z_]*[a-z])\b", text)}
    assert len(named) > 30 and not named - known


def test_the_page_of_results_is_made_from_the_results():
    from experiments import results

    assert results.page() == (ROOT / "docs" / "results.md").read_text(), "run python -m experiments.results"


RESULTS = sorted(path.parent for path in (ROOT / "experiments").glob("*/results.json"))


def results_of(page):
    """What stands between the markers of a page."""
    return page.read_text().partition("<!-- results: begin -->")[2].partition("<!-- results: end -->")[0].strip()


@pytest.mark.parametrize("folder", RESULTS, ids=lambda path: path.name)
def test_the_tables_of_an_experiment_are_made_from_its_results(folder):
    run = importlib.import_module(f"experiments.{folder.name}.run")
    made = run.tables(json.loads((folder / "results.json").read_text()))
    assert len(made.splitlines()) > 5 and results_of(folder / "README.md") == made


def test_the_tables_of_classical_restoration_are_made_from_their_results():
    from experiments.patches import classical

    made = classical.tables(json.loads((ROOT / "experiments/patches/classical.json").read_text()))
    page = ROOT / "experiments/patches/classical.md"
    assert len(made.splitlines()) > 10 and results_of(page) == made


def test_the_page_of_performance_is_made_from_the_results(tmp_path, monkeypatch):
    from benchmarks import table

    monkeypatch.setattr(table, "PAGE", tmp_path / "performance.md")
    table.main()
    assert (tmp_path / "performance.md").read_text() == (ROOT / "docs" / "performance.md").read_text()


@pytest.mark.parametrize("page", DOCS, ids=lambda path: path.stem)
def test_python_blocks_run(page, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    names = {"__name__": page.stem}
    for code in blocks(page, "python"):
        if "ROUNDS, STEPS" not in code:
            exec(compile(code, page.name, "exec"), names)


def test_shell_blocks_are_run_or_marked():
    """Those that are to run are few, and run here; nothing is in a language that no test knows."""
    for page in DOCS:
        kinds = {kind for _, kind, _ in FENCE.findall(page.read_text())}
        assert kinds <= {"python", "sh"}, (page.name, kinds)
        for code in blocks(page, "sh"):
            for line in code.splitlines():
                command = line.replace("diffem ", f"{sys.executable} -m diffem_jax.main ", 1)
                done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120)
                assert done.returncode == 0, done.stderr


TOLD = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "configs/*.py", "experiments/*/*.md", "experiments/*/*.py", "benchmarks/*.py")
    for path in ROOT.glob(pattern)
)


def commands():
    """(page, words) of each command that a page or docstring shows, whether or not a test runs it."""
    for page in TOLD:
        text = page.read_text() if page.suffix == ".md" else ast.get_docstring(ast.parse(page.read_text())) or ""
        for line in re.findall(
            r"(?:^ *|`)((?:diffem |python -m \w+\.[\w.]*\w|srun .*diffem_jax\.main )[^`\n]*)", text, re.M
        ):
            words = shlex.split(re.sub(r"[\[\]]", " ", line), comments=True)
            yield page, [word for word in words if word not in ("...", "NAME")]


def test_commands_that_pages_show_could_be_run():
    """Configs, fields and modules that they name exist, and the fields take the values."""
    seen = 0
    for page, words in commands():
        where = f"{page.relative_to(ROOT)}: {shlex.join(words)}"
        if "-m" in words:
            module = words[words.index("-m") + 1]
            assert module.endswith(".NAME") or importlib.util.find_spec(module), where
        flags = dict(re.findall(r"^--([\w.]+)=(.*)$", "\n".join(words), re.M))
        if "config" not in flags:
            continue
        name, _, variant = flags.pop("config").partition(":")
        given = importlib.import_module(f"configs.{name}").get_config(*filter(None, [variant]))
        chosen = {k.removeprefix("config."): v for k, v in flags.items() if k.startswith("config.")}
        if given.data.name in ("observations", "arrays"):
            assert "data.path" in chosen, where
        config.override(given, chosen.items())
        config.validate(given)
        seen += 1
    assert seen > 30


def test_flags_that_pages_show_exist():
    known, seen = {"help", *re.findall(r"--([a-z_]+)", usage.HELP)}, set()
    for page, words in commands():
        program = next((i for i, word in enumerate(words) if word in ("diffem", "diffem_jax.main")), len(words))
        named = {word[2:].partition("=")[0] for word in words[program:] if word.startswith("--")}
        seen |= {name for name in named if not name.startswith("config.")}
        assert seen <= known, f"{page.relative_to(ROOT)}: {shlex.join(words)}"
    assert {"coordinator", "observations", "mode"} <= seen


@pytest.mark.slow
def test_the_script():
    """Under 30 lines; it trains, and what it draws comes closer to what nobody showed it."""
    script = ROOT / "examples" / "script.py"
    assert len(script.read_text().splitlines()) < 30
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    errors = [float(value) for value in re.findall(r"error ([\d.]+)", done.stdout)]
    assert len(errors) == 2 and max(errors) < 1.2, done.stdout


def test_links_and_pictures_exist():
    made = set(generate.PAGES)
    for page in DOCS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", FENCE.sub("", page.read_text())):
            assert target in made or (page.parent / target).exists(), (page.name, target)


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-d", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "config.html").exists()


def test_the_public_surface_is_small():
    import diffem_jax as dx

    assert len(dx.__all__) <= 60
    assert all(not name.startswith("_") and getattr(dx, name) is not None for name in dx.__all__)
    assert all(not inspect.ismodule(getattr(dx, name)) for name in dx.__all__)
