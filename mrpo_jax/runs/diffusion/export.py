# SPDX-License-Identifier: Apache-2.0
"""Export of a denoiser's checkpoint as a folder of safetensors."""

from mrpo_jax import files
from mrpo_jax.diffusion import folder
from mrpo_jax.diffusion.denoiser import DenoiserConfig
from mrpo_jax.errors import InputError
from mrpo_jax.runs.config import DiffusionConfig
from mrpo_jax.runs.setup import best
from mrpo_jax.runs.workdir import CONFIG, recorded_config
from mrpo_jax.training import checkpoints


def config_of(workdir):
  """The DiffusionConfig of a workdir; None where it is of another run."""
  path = files.path_of(workdir) / CONFIG
  if not path.exists():
    return None
  config = recorded_config(path, files.read_json(path))
  return config if isinstance(config, DiffusionConfig) else None


def export(workdir, to, *, step="newest", config=None):
  """A checkpoint of a denoiser's run as a folder; see `checkpoints.find`.

  Returns:
    The step of the checkpoint.

  Raises:
    InputError: there is no such step, or the folder is taken.
  """
  config = config or config_of(workdir)
  step = checkpoints.find(workdir, step, best(config))
  params, meta = checkpoints.field(workdir, step, "params")
  shape = meta["denoiser"]
  denoiser = DenoiserConfig(**{**shape, "image": tuple(shape["image"])})
  folder.save(to, denoiser, params, classes=meta["classes"])
  return step


def refuse_language(given):
  """Raises InputError for flags that a denoiser knows nothing of."""
  for flag in ("merge_adapters", "dtype", "discriminator"):
    if getattr(given, flag):
      raise InputError(
        f"--{flag.replace('_', '-')}: {given.workdir} holds a denoiser, which "
        "is written whole, in float32"
      )
