"""The documentation and the README: made pages are whole, code and commands run, what they name exists."""

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

import jax
import numpy as np
import pytest
from faults.command import ROOT, complete, python
from faults.harness import arguments
from sklearn.datasets import load_digits

from diffem_jax import config, corruptions, networks, usage

DOCS = sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"(<!-- not run: [^>]+ -->\n)?^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


SPEC = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
generate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(generate)


def blocks(page, language):
    """The blocks that are to run, with included files in place."""

    def included(match):
        return (ROOT / match.group(1)).read_text()

    found = [code for skip, kind, code in FENCE.findall(page.read_text()) if kind == language and not skip]
    return [re.sub(r'^--8<-- "(.*?)"$', included, code, flags=re.M) for code in found]


def test_every_field_is_on_the_page():
    page = generate.config_page()
    for name, field in config.FIELDS.items():
        row = next((line for line in page.splitlines() if line.startswith(f"| `{name}` ")), None)
        assert row is not None, name
        assert row.count("|") == 5 and f"| `{field.default!r}` |" in row, row
        assert all(f"`{choice}`" in row for choice in field.choices)
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


def test_fields_that_pages_and_messages_name_exist():
    sections = {"corruption": corruptions.CORRUPTIONS, "network": networks.NETWORKS}
    classes = [(section, name) for section, registry in sections.items() for name in registry]
    known = {*config.FIELDS, *(field for kind in classes for field in config.class_fields(*kind))}
    texts = [page.read_text() for page in (ROOT / "README.md", *DOCS)] + [text for _, text in generate.messages()]
    named = {name for text in texts for name in re.findall(r"(?<!_)config\.([a-z_]+\.[a-z_]*[a-z])\b", text)}
    assert len(named) > 30 and not named - known


def test_the_page_of_results_is_made_from_the_results():
    from experiments import results

    assert results.page() == (ROOT / "docs" / "results.md").read_text(), "run python -m experiments.results"


RESULTS = {f"{path.parent.name}.run": path for path in (ROOT / "experiments").glob("*/results.json")}
RESULTS["patches.classical"] = ROOT / "experiments/patches/classical.json"


@pytest.mark.parametrize("module", RESULTS)
def test_the_tables_of_an_experiment_are_made_from_its_results(module):
    results, text = RESULTS[module], importlib.import_module(f"experiments.{module}").tables
    page = results.with_name("README.md" if results.name == "results.json" else "classical.md").read_text()
    made = text(json.loads(results.read_text()))
    shown = page.partition("<!-- results: begin -->")[2].partition("<!-- results: end -->")[0]
    assert len(made.splitlines()) > 5 and shown.strip() == made


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


PATTERNS = ("*.md", "docs/*.md", "configs/*.py", "experiments/*/*.md", "experiments/*/*.py", "benchmarks/*.py")
TOLD = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))


def commands():
    """(page, words) of each command that a page or docstring shows, whether or not a test runs it."""
    for page in TOLD:
        text = page.read_text() if page.suffix == ".md" else ast.get_docstring(ast.parse(page.read_text())) or ""
        shown = r"(?:^ *|`)((?:diffem |python -m \w+\.[\w.]*\w|srun .*diffem_jax\.main )[^`\n]*)"
        for line in re.findall(shown, text, re.M):
            words = shlex.split(re.sub(r"[\[\]]", " ", line), comments=True)
            yield page, [word for word in words if word not in ("...", "NAME")]


def test_commands_that_pages_show_could_be_run():
    """Configs, fields, flags and modules that they name exist, and the fields take the values."""
    seen, known, used = 0, {"help", *re.findall(r"--([a-z_]+)", usage.HELP)}, set()
    for page, words in commands():
        where = f"{page.relative_to(ROOT)}: {shlex.join(words)}"
        if "-m" in words:
            module = words[words.index("-m") + 1]
            assert module.endswith(".NAME") or importlib.util.find_spec(module), where
        program = next((i for i, word in enumerate(words) if word in ("diffem", "diffem_jax.main")), len(words))
        used |= {w[2:].partition("=")[0] for w in words[program:] if re.match("--(?!config[.])", w)}
        assert used <= known, where
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
    assert seen > 30 and {"coordinator", "observations", "mode"} <= used


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


def test_what_is_not_explained_stops_the_build(monkeypatch):
    """A field without a meaning, a message without a cure."""
    monkeypatch.setattr(generate, "messages", lambda: [("a.py:1", "x: ...; expected a unicorn; bring one")])
    assert not generate.without_cure()
    monkeypatch.setattr(generate, "messages", lambda: [("a.py:1", "config....: ...; expected a unicorn")])
    assert len(generate.without_cure()) == 1
    monkeypatch.setitem(config.FIELDS, "m_step.steps", config.FIELDS["m_step.steps"]._replace(meaning=""))
    with pytest.raises(ValueError, match=r": m_step\.steps$"):
        generate.config_page()


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed")
    build = [sys.executable, "-m", "mkdocs", "build", "-d", tmp_path / "site"]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "config.html").exists()


def test_the_public_surface_is_small():
    import diffem_jax as dx

    assert len(dx.__all__) <= 60
    assert all(not name.startswith("_") and getattr(dx, name) is not None for name in dx.__all__)
    assert all(not inspect.ismodule(getattr(dx, name)) for name in dx.__all__)


README = (ROOT / "README.md").read_text()
BLOCKS = dict(re.findall(r"<!-- test: ([\w ]+) -->\n```\w+\n(.*?)```", README, re.DOTALL))
TINY = [flag for flag in arguments(rounds=1)[1:] if not flag.startswith("--config.eval.metrics")]


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """Runs the lines of a block as a shell would, in an empty folder, with a tiny model; returns what they printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFEM_DATA_DIR", str(tmp_path / "cache"))

    def run(block):
        printed = ""
        for program, *words in map(shlex.split, block.splitlines()):
            if program == "diffem":
                ended = complete(*words, *(TINY if any(word.startswith("--config=") for word in words) else ()))
                printed += ended.out
            else:
                assert program == "python" and words[0] == "-c"
                printed += python(*words[1:], cwd=tmp_path)
        return printed

    return run


def test_readme_is_short_and_its_blocks_are_tested():
    assert len(README.split()) <= 700 and README.count("![") == 1
    assert set(BLOCKS) == {"commands", "own data", "python"}


def test_commands(shell, tmp_path):
    shell(BLOCKS["commands"])
    work = tmp_path / "runs/digits"
    for name in ("config.json", "metrics.jsonl", "rounds", "reconstructions", "samples/round_00001.png", "report.html"):
        assert (work / name).exists(), name


def test_own_data(shell, tmp_path):
    x = (load_digits().images[:200, :, :, None] / 4 - 2).astype(np.float32)
    mask = (np.random.default_rng(0).random(x.shape) < 0.5).astype(np.float32)
    np.savez(tmp_path / "obs.npz", y=np.where(mask > 0, x, np.nan), mask=mask)
    printed = shell(BLOCKS["own data"])
    assert printed.splitlines()[-1].startswith("(8, 200, 8, 8, 1) (200, 8, 8, 1)")
    assert (tmp_path / "draws.png").exists() and (tmp_path / "runs/mine/report.html").exists()
    with np.load(tmp_path / "draws.npz") as draws:
        assert np.isfinite(draws["x"]).all()
        hidden = np.broadcast_to(mask == 0, x.shape)
        assert draws["std"][hidden].mean() > 3 * draws["std"][~hidden].mean()


def test_python(capsys):
    with jax.numpy_dtype_promotion("standard"):
        exec(compile(BLOCKS["python"], "README.md", "exec"), {})
    assert capsys.readouterr().out == "(4, 8, 8, 1) (8, 4, 8, 8, 1)\n"


def test_every_path_and_make_target_exists():
    named = set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
    named |= set(re.findall(r"\b(?:docs|diffem_jax|configs|tests|colabs|experiments|benchmarks)/[\w./-]*\w", README))
    assert "docs/demo.png" in named and not [path for path in named if not (ROOT / path).exists()]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named <= targets
