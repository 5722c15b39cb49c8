"""The shape of the code base: imports go one way, the maths knows no host, modules stay short."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "diffem_jax"
ROOMS = [
    "errors", "types", "networks", "samplers", "gaussians", "corruptions", "denoisers", "em", "metrics", "parallel",
    "config", "storage", "data", "build", "testing", "report", "run", "pretrained", "usage", "sklearn", "commands", "main",
]  # fmt: skip
"""Imports go down this list, never up."""
PURE = ROOMS[: ROOMS.index("em") + 1]
HOST_MODULES = {"absl", "ml_collections", "orbax", "tensorflow_datasets", "os", "logging", "pathlib"}
DEVICE_WORDS = {"pmap", "pmean", "psum", "shard_map", "axis_name"}


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


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
    upward = {n for n in inner if ROOMS.index(n) > ROOMS.index(name)}
    assert not upward, f"{path.name} imports {upward} from a later room"
    if name in PURE:
        assert not {n.split(".")[0] for n in names} & HOST_MODULES


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_length_and_devices(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    words = {n.attr for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Attribute)}
    if top(path) != "parallel":
        assert not words & DEVICE_WORDS


@pytest.mark.parametrize(("name", "most"), [("main.py", 80), ("em.py", 100), ("run/rounds.py", 200)])
def test_what_is_read_first_is_short(name, most):
    assert len((PACKAGE / name).read_text().splitlines()) <= most


def test_every_file_has_a_room():
    assert {top(p) for p in modules()} == set(ROOMS) and len(list(PACKAGE.glob("*.py"))) <= 10


@pytest.mark.parametrize("heavy", ["tensorflow", "torch"])
def test_heavy_libraries_are_never_imported_at_module_level(heavy):
    for path in modules():
        top_level = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)]
        assert not [n for node in top_level for n in imported(node) if n.split(".")[0] == heavy], path


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
    for line in ("import pickle", "from joblib import load", "np.load(f, allow_pickle=True)", "exec(text)"):
        assert runs_code_of_files(line), line
    assert not runs_code_of_files("np.load(f, allow_pickle=False)")
