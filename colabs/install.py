# Installs the package where it is missing, and gives jax and its GPU or TPU plug-in one version.
import importlib.metadata
import importlib.util
from pathlib import Path

# Where it is published; python -m colabs.build writes here what pyproject.toml says.
REPOSITORY = "https://github.com/OWNER/diffem_jax"

found = importlib.util.find_spec("diffem_jax")
# A clone in this folder is found too, as a folder of that name without an __init__.py: its origin is None.
if found is None or found.origin is None:
    from IPython import get_ipython

    clones = [f"./{path}" for path in ("..", "diffem_jax") if (Path(path) / "diffem_jax/__init__.py").exists()]
    package = clones[0] if clones else f"git+{REPOSITORY}"
    if "OWNER" in package:
        raise SystemExit("set REPOSITORY to the address that you cloned from")
    # A plug-in of another version than jax's own leaves the accelerator unused. TensorFlow is not touched.
    present = {each.metadata["Name"] for each in importlib.metadata.distributions()}
    extras = {"jax-cuda12-plugin": "cuda12", "jax-cuda13-plugin": "cuda13", "libtpu": "tpu"}
    wanted = [package, *(f"'jax[{extra}]'" for plugin, extra in extras.items() if plugin in present)]
    get_ipython().run_line_magic("pip", f"install -q {' '.join(wanted)}")
    importlib.invalidate_caches()
