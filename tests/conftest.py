"""Strictness for every test: no silent rank or dtype promotion, no key used twice. And what makes the suite fast."""

import atexit
import ctypes
import gc
import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path

CACHE = "JAX_COMPILATION_CACHE_DIR"
if CACHE not in os.environ:
    # Programs that one test has compiled are there for the others, the second worker and the commands that tests start.
    os.environ[CACHE] = tempfile.mkdtemp(prefix="diffem_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, os.environ[CACHE], ignore_errors=True)
# Nearly all the time of the tests is XLA's compilation; what they compute is small.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# jaxlib before 0.11.2 shares a batch of matrices out among the threads of a pool, in one of which the caller waits: two devices
# that factorise at once on two cores wait for each other for ever (jax::ParallelBatchMap).
ALONE = "--xla_cpu_multi_thread_eigen=false"
# The older emitters of fused loops compile in half of the time; jaxlib after 0.11.0 has them no more, and ends at a flag that it
# does not know.
VERSION = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:3]))
OLDER = "--xla_cpu_use_fusion_emitters=false" if VERSION < (0, 11, 1) else ""
ALONE += " --xla_cpu_parallel_codegen_split_count=1"  # small programs in one piece: three quarters of the time
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {ALONE} {OLDER}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402

# Traces are millions of small objects, and few of them garbage.
gc.freeze()
gc.set_threshold(50_000, 10, 10)

# Another platform shows what an accelerator does to the numbers; many tests are written for two devices of a CPU.
jax.config.update("jax_platforms", os.environ.get("DIFFEM_TEST_PLATFORMS", "cpu") or None)
jax.config.update("jax_num_cpu_devices", 2)
MOST_MEMORY = 1.2 * 2**30


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"), jax.debug_key_reuse(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def little_memory():
    """Compiled programs of other files are dropped before they fill the memory."""
    status = Path("/proc/self/statm")
    if status.exists() and int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > MOST_MEMORY:
        jax.clear_caches()
        gc.collect()
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
    yield


@pytest.fixture(scope="module")
def quick():
    """Runs draw no pictures, calibrate nothing and write no page: other tests' matter."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("picture", "spread_picture", "calibrate"):
            patch.setattr(f"diffem_jax.run.record.{name}", lambda *args: None)
        patch.setattr("diffem_jax.report.page.write", lambda folder: None)
        yield
