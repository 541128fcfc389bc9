# SPDX-License-Identifier: Apache-2.0
"""Package metadata; the lower bounds are tested versions."""

import itertools
import pathlib
import runpy
import shutil

import setuptools
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).parent
TENSORBOARD = ["tensorboard>=2.20"]
PLOT = ["matplotlib>=3.10"]
GGUF = ["gguf>=0.18"]
REWARDS = ["vaderSentiment>=3.3.2", "alt-profanity-check>=1.9"]
DIFFUSION = ["pillow>=10.4", "scikit-learn>=1.5"]
GCS = ["gcsfs>=2026.10.1"]
S3 = ["s3fs>=2026.9"]
TRACKERS = {
  "wandb": ["wandb>=0.30"],
  "trackio": ["trackio>=0.40"],
  "mlflow": ["mlflow-skinny>=3.6"],
}
EVAL = ["lm-eval>=0.4.13,<0.5", "datasets>=4"]


class WithConfigs(build_py):
  """Puts the configs and what they read into the package of a wheel.

  `pip install -e` leaves them where they are: see mrpo_jax/configs.py.
  """

  def run(self):
    super().run()
    if not self.editable_mode:
      to = pathlib.Path(self.build_lib) / "mrpo_jax/shipped"
      ignored = shutil.ignore_patterns("__pycache__")
      shutil.rmtree(to, ignore_errors=True)
      shutil.copytree(HERE / "configs", to, ignore=ignored)


setuptools.setup(
  name="mrpo-jax",
  version=runpy.run_path(str(HERE / "mrpo_jax/__init__.py"))["__version__"],
  description="Multi-reference preference optimization of language models in "
  "JAX",
  long_description=(HERE / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  packages=setuptools.find_packages(include=["mrpo_jax", "mrpo_jax.*"]),
  package_data={"mrpo_jax": ["py.typed", "evaluation/tasks/*.yaml"]},
  python_requires=">=3.11",
  install_requires=[
    "absl-py>=2.1",
    "annotated-types>=0.7",
    "array-record>=0.8.3",
    "flax>=0.12.1",
    "grain>=0.2.16",
    "huggingface_hub>=1.3",
    "jinja2>=3.1",
    "jax>=0.10",
    "ml-collections>=1.1",
    "numpy>=2.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.11.36",
    "pyarrow>=18",
    "pydantic>=2.12",
    "pyyaml>=6",
    "qwix>=0.1.8",
    "safetensors>=0.6",
    "tensorflow-datasets>=4.9.10",
    "tokenizers>=0.22.2",
    "tqdm>=4.67",
    "transformers>=5.0",
  ],
  extras_require={
    "tensorboard": TENSORBOARD,
    **TRACKERS,
    "plot": PLOT,
    "eval": EVAL,
    "gguf": GGUF,
    "rewards": REWARDS,
    "diffusion": DIFFUSION,
    "gcs": GCS,
    "s3": S3,
    "test": [
      "pytest>=8",
      "filelock>=3.16",
      "pytest-xdist>=3.6",
      "ruff>=0.9",
      "setuptools>=66.1",
      *TENSORBOARD,
      *itertools.chain(*TRACKERS.values()),
      *PLOT,
      *EVAL,
      *GGUF,
      *REWARDS,
      *DIFFUSION,
      *GCS,
      *S3,
      "gcp-storage-emulator>=2026.7.19",
      "moto[s3]>=5.2",
      "flask>=3.1",
      "flask-cors>=6",
    ],
    "hub": ["datasets>=4"],
    "tpu": ["jax[tpu]>=0.10"],
    "cuda": ["jax[cuda13]>=0.10"],
    "cuda12": ["jax[cuda12]>=0.10"],
    "plan": ["libtpu"],
    # jax's CUDA plug-in of jaxlib's own version, without CUDA's libraries.
    "plan-gpu": ["jax[cuda13-local]>=0.10"],
    "docs": [
      "mkdocs-material>=9.6",
      "mkdocstrings[python]>=0.29",
      "mkdocs-jupyter>=0.26",
    ],
    "mutation": ["cosmic-ray>=8.7"],
  },
  cmdclass={"build_py": WithConfigs},
  entry_points={"console_scripts": ["mrpo = mrpo_jax.cli:main"]},
)
