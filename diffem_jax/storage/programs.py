"""Compiled programs on disk, so that the second start of a run compiles nothing."""

import contextlib
import hashlib
import platform
import tempfile
from pathlib import Path
from typing import Any

import jax

from diffem_jax.storage.files import cache_folder


def keep_compiled(folder: Path | None = None) -> None:
    """Keeps compiled programs in a folder, None for one in the cache; not where the user chose another, or it cannot be written.

    Programs of a CPU are for its instructions: those of another model have a folder of their own.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache:
        return
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        kind = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
        folder = folder or cache_folder() / "compiled"
        place = folder / hashlib.sha256("\n".join([platform.machine(), *kind]).encode()).hexdigest()[:8]
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass  # it can be written
        config.update("jax_compilation_cache_dir", str(place))
        # Small programs are many: a run has dozens that take a tenth of a second each.
        config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        config.update("jax_persistent_cache_min_entry_size_bytes", -1)
