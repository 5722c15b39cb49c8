"""Compiled programs are kept where the user said nothing, and found by the next process."""

import os
import subprocess
import sys

CODE = """
import sys, pathlib, jax, jax.numpy as jnp
from diffem_jax.storage.programs import keep_compiled
keep_compiled(pathlib.Path(sys.argv[1]))
counts = {"hits": 0, "misses": 0}
def note(event, **_):
    for name in counts:
        counts[name] += event == f"/jax/compilation_cache/cache_{name}"
jax.monitoring.register_event_listener(note)
jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((8, 8))).block_until_ready()
print(jax.config.jax_compilation_cache_dir, counts["hits"], counts["misses"])
"""


def start(folder, **variables):
    names = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    environment = {**names, "JAX_PLATFORMS": "cpu", **variables}
    done = subprocess.run([sys.executable, "-c", CODE, str(folder)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    place, hits, misses = done.stdout.split()
    return place, int(hits), int(misses)


def test_the_second_process_compiles_nothing(tmp_path):
    place, hits, misses = start(tmp_path)
    assert place.startswith(str(tmp_path)) and hits == 0 and misses > 0
    again, hits, left = start(tmp_path)
    assert again == place and left == 0 and hits == misses


def test_what_the_user_chose_is_left_alone(tmp_path):
    own, folder = tmp_path / "own", tmp_path / "compiled"
    assert start(folder, JAX_COMPILATION_CACHE_DIR=str(own))[0] == str(own)
    assert start(folder, JAX_ENABLE_COMPILATION_CACHE="false")[0] == "None"
    (tmp_path / "file").write_text("")
    assert start(tmp_path / "file" / "below")[0] == "None"
    assert not folder.exists()
