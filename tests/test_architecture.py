"""The shape of the code base: imports go one way, the maths knows no host, modules stay short."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "diffem_jax"
LAYERS = [
    {"types"},
    {"schedules", "linalg", "networks", "augment", "noise"},
    {"corruptions", "gaussians", "denoisers", "bases", "initial", "factor_analysis"},
    {"posteriors", "samplers", "picard", "starts", "ambient"},
    {"em"},
    {
        "parallel",
        "data",
        "datasets",
        "checkpoints",
        "metrics",
        "plots",
        "config",
        "progress",
        "prepare",
        "redraw",
        "guards",
    },
    {"parts", "workdir"},
    {"build"},
    {"problem"},
    {
        "evaluate",
        "held_out",
        "round_zero",
        "fresh",
        "refresh",
        "engine",
        "stopping",
        "several",
        "warm",
        "set_measures",
        "updates",
        "diagnose",
        "identifiability",
        "matched",
    },
    {"report", "report_template", "writers"},
    {"announce"},
    {"rounds", "prior", "draw", "measure", "testing", "plugged"},
    {"train", "pretrained"},
    {"usage"},
    {"commands"},
    {"main"},
]
PURE = set().union(*LAYERS[:5])
HOST_MODULES = {"absl", "ml_collections", "orbax", "tensorflow_datasets", "os", "logging", "pathlib"}
DEVICE_WORDS = {"pmap", "pmean", "psum", "shard_map", "axis_name"}


def layer(module: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if module in names)


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py" or p.parent != PACKAGE)


def top(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    name, names = top(path), imported(ast.parse(path.read_text()))
    inner = {n.split(".")[1] for n in names if n.startswith("diffem_jax.")} - {name}
    upward = {n for n in inner if layer(n) > layer(name)}
    assert not upward, f"{path.name} imports {upward} from a later layer"
    if name in PURE:
        assert not {n.split(".")[0] for n in names} & HOST_MODULES


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_length_and_devices(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    words = {n.attr for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Attribute)}
    if top(path) != "parallel":
        assert not words & DEVICE_WORDS


def test_main_is_short():
    assert len((PACKAGE / "main.py").read_text().splitlines()) <= 80


def test_every_module_has_a_layer():
    assert {top(p) for p in modules()} <= set().union(*LAYERS)


@pytest.mark.parametrize("heavy", ["tensorflow", "torch"])
def test_heavy_libraries_are_never_imported_at_module_level(heavy):
    for path in modules():
        tree = ast.parse(path.read_text())
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not any(n.split(".")[0] == heavy for n in imported(node)), path


CODE_FROM_FILES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def runs_code_of_files(text: str) -> list[str]:
    """What could run code that a data file holds."""
    tree, found = ast.parse(text), []
    found += sorted({name.split(".")[0] for name in imported(tree)} & CODE_FROM_FILES)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name, given = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
        allowed = given.get("allow_pickle", "unsaid" if name in ("np.load", "np.save") else "False")
        if name in ("eval", "exec") or allowed != "False":
            found.append(name)
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_file_is_unpickled_or_run(path):
    assert not runs_code_of_files(path.read_text())


def test_what_would_run_a_file_is_seen():
    for line in (
        "import pickle",
        "from joblib import load",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "exec(text)",
    ):
        assert runs_code_of_files(line), line
    assert not runs_code_of_files("np.load(f, allow_pickle=False)")
