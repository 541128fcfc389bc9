# SPDX-License-Identifier: Apache-2.0
"""Denoiser: a diffusion transformer (DiT) on patches of images, by class.

Source: Peebles and Xie, arXiv:2212.09748: patches, positions by sines, blocks
whose norms are shifted, scaled and gated by time and class (adaLN-Zero), so
that the first prediction is zero.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from mrpo_jax.diffusion.schedule import PREDICTIONS, SCHEDULES
from mrpo_jax.errors import InputError
from mrpo_jax.models.parameters import ArraySpec

FREQUENCIES = 128  # of the time's sines
# How much slower the slowest sine is than the fastest, whose angle is the time
# in thousandths, or the row or column of a patch.
PERIOD = 10_000.0
EPSILON = 1e-6  # of the norms
CHANNELS = (1, 3)  # greyscale; red, green, blue
LARGEST = 2**20  # size: arrays of three have fewer than 2^63 numbers


@dataclasses.dataclass(frozen=True)
class DenoiserConfig:
  """The shape of a denoiser, what it predicts and under which noise.

  Raises:
    InputError: sizes that do not fit each other, or an unknown name.
  """

  image: tuple[int, int, int]  # height, width, channels
  classes: int = 0  # how many; 0: it knows of none
  patch: int = 2  # pixels along a side
  width: int = 128
  layers: int = 4
  heads: int = 4
  mlp_width: int = 512
  prediction: str = "epsilon"
  schedule: str = "cosine"

  def __post_init__(self):
    height, width, channels = self.image
    if min(height, width) < 1 or channels not in CHANNELS:
      raise InputError(
        f"images of {height} x {width} with {channels} channels are none; want "
        "positive sizes, and 1 or 3 channels"
      )
    sizes = ("patch", "width", "layers", "heads", "mlp_width", "classes")
    for name in sizes:
      size, least = getattr(self, name), int(name != "classes")
      if not least <= size <= LARGEST:
        raise InputError(f"{name} must be {least} to {LARGEST}, got {size}")
    if height % self.patch or width % self.patch:
      raise InputError(
        f"patch={self.patch} does not divide images of {height} x {width}"
      )
    if self.width % self.heads or self.width % 4:
      raise InputError(
        f"width={self.width} must be a multiple of heads={self.heads} and of 4"
      )
    for name, known in dict(prediction=PREDICTIONS, schedule=SCHEDULES).items():
      if getattr(self, name) not in known:
        raise InputError(
          f"{name}={getattr(self, name)!r} is not known; known: "
          f"{', '.join(known)}"
        )

  @property
  def grid(self):
    """Patches in a column and in a row."""
    height, width, _ = self.image
    return height // self.patch, width // self.patch

  @property
  def patch_size(self):
    """Numbers in a patch."""
    return self.patch**2 * self.image[2]


def table(config):
  """The nested dict of ArraySpec that is the denoiser."""
  D, F, H = config.width, config.mlp_width, config.heads
  E, L = D // H, config.layers

  def matrix(ins, outs, scale=None):
    """(inputs, outputs), each (sizes, axes); from zero where it is a gate."""
    count = math.prod(ins[0])
    if scale is None:
      scale = 1.0 / math.sqrt(count)
    start = dict(scale=scale) if scale else dict(start=0.0)
    return ArraySpec(ins[0] + outs[0], ins[1] + outs[1], len(ins[0]), **start)

  def bias(outs):
    return ArraySpec(outs[0], outs[1], start=0.0)

  def pairs(**matrices):
    """Each matrix and its bias."""
    found = {}
    for name, (ins, outs, *scale) in matrices.items():
      found[name] = matrix(ins, outs, *scale)
      found[f"{name}_bias"] = bias(outs)
    return found

  width, heads = ((D,), ("embed",)), ((H, E), ("heads", None))
  inner, pixels = ((F,), ("mlp",)), ((config.patch_size,), (None,))
  sines = ((2 * FREQUENCIES,), (None,))
  # Activations of one matrix may split either side, not both over one axis.
  same = ((D,), (None,))
  six, two = (((n, D), (None, None)) for n in (6, 2))
  layer = pairs(
    query=(width, heads),
    key=(width, heads),
    value=(width, heads),
    out=(heads, width),
    up=(width, inner),
    down=(inner, width),
    modulation=(width, six, 0.0),
  )
  blocks = {
    name: dataclasses.replace(
      spec, shape=(L, *spec.shape), axes=("layers", *spec.axes)
    )
    for name, spec in layer.items()
  }
  found = pairs(
    patches=(pixels, width),
    time_in=(sines, same),
    time_out=(same, width),
    last_modulation=(width, two, 0.0),
    pixels=(width, pixels, 0.0),
  )
  if config.classes:
    # The last row stands for no class, as guidance needs it.
    rows = (config.classes + 1, D)
    found["classes"] = ArraySpec(rows, (None, "embed"), scale=0.02)
  return found | {"blocks": blocks}


def predict(config, params, noisy_BHWX, time_B, class_B=None):
  """prediction_BHWX of noisy images, of the kind that the config names.

  Args:
    config: DenoiserConfig, static.
    params: tree in the shape of `table(config)`.
    noisy_BHWX: images at their times.
    time_B: from 0 to 1.
    class_B: int, 0 to classes - 1; the number of classes stands for none, and
      so does None.
  """
  with jax.named_scope("denoiser"):
    x_BTD = _linear(
      _patches(config, noisy_BHWX), params, "patches", "BTP,PD->BTD"
    )
    x_BTD += _positions(config)[None].astype(x_BTD.dtype)
    about_BD = jax.nn.silu(_about(config, params, time_B, class_B))

    def block(x_BTD, layer):
      return _block(x_BTD, about_BD, layer), None

    x_BTD, _ = jax.lax.scan(block, x_BTD, params["blocks"])
    shift, scale = _modulation(about_BD, params, "last_modulation")
    x_BTD = _norm(x_BTD) * (1.0 + scale) + shift
    return _images(config, _linear(x_BTD, params, "pixels", "BTD,DP->BTP"))


def _linear(x, params, name, einsum):
  product, bias = jnp.einsum(einsum, x, params[name]), params[f"{name}_bias"]
  return product + jnp.expand_dims(bias, range(product.ndim - bias.ndim))


def _block(x_BTD, about_BD, layer):
  shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = _modulation(
    about_BD, layer, "modulation"
  )
  with jax.named_scope("attention"):
    h_BTD = _norm(x_BTD) * (1.0 + scale) + shift
    query, key, value = (
      _linear(h_BTD, layer, name, "BTD,DHE->BTHE")
      for name in ("query", "key", "value")
    )
    seen_BTHE = jax.nn.dot_product_attention(query, key, value)
    x_BTD += gate * _linear(seen_BTHE, layer, "out", "BTHE,HED->BTD")
  with jax.named_scope("mlp"):
    h_BTD = _norm(x_BTD) * (1.0 + mlp_scale) + mlp_shift
    h_BTF = jax.nn.gelu(_linear(h_BTD, layer, "up", "BTD,DF->BTF"))
    return x_BTD + mlp_gate * _linear(h_BTF, layer, "down", "BTF,FD->BTD")


def _modulation(about_BD, params, name):
  """Arrays [B, 1, D]: shifts, scales and gates."""
  found_BND = _linear(about_BD, params, name, "BD,DNM->BNM")
  return jnp.split(found_BND, found_BND.shape[1], axis=1)


def _norm(x_BTD):
  """Layer norm without weights of its own."""
  mean = jnp.mean(x_BTD, axis=-1, keepdims=True)
  variance = jnp.var(x_BTD, axis=-1, keepdims=True)
  return (x_BTD - mean) * jax.lax.rsqrt(variance + EPSILON)


def _about(config, params, time_B, class_B):
  """about_BD: what the blocks are told of time and class."""
  rate_N = jnp.exp(-math.log(PERIOD) * jnp.arange(FREQUENCIES) / FREQUENCIES)
  angle_BN = 1000.0 * time_B[:, None] * rate_N[None]
  sines_BN = jnp.concatenate([jnp.cos(angle_BN), jnp.sin(angle_BN)], axis=1)
  hidden = jax.nn.silu(_linear(sines_BN, params, "time_in", "BN,ND->BD"))
  about_BD = _linear(hidden, params, "time_out", "BD,DM->BM")
  if not config.classes:
    return about_BD
  if class_B is None:
    class_B = jnp.full(time_B.shape, config.classes)
  return about_BD + params["classes"][class_B]


def _positions(config):
  """position_TD: sines of the patch's row and of its column, halves of D."""
  rows, columns = config.grid
  rate_N = PERIOD ** (-jnp.arange(config.width // 4) / (config.width // 4))

  def sines(place_T):
    angle_TN = place_T[:, None] * rate_N[None]
    return jnp.concatenate([jnp.sin(angle_TN), jnp.cos(angle_TN)], axis=1)

  row_T = jnp.repeat(jnp.arange(rows), columns)
  column_T = jnp.tile(jnp.arange(columns), rows)
  return jnp.concatenate([sines(row_T), sines(column_T)], axis=1)


def _patches(config, image_BHWX):
  """patch_BTP of images, row by row."""
  rows, columns = config.grid
  P, X = config.patch, config.image[2]
  cut = image_BHWX.reshape(-1, rows, P, columns, P, X)
  return cut.transpose(0, 1, 3, 2, 4, 5).reshape(-1, rows * columns, P * P * X)


def _images(config, patch_BTP):
  """The images of patches; undoes `_patches`."""
  rows, columns = config.grid
  P, X = config.patch, config.image[2]
  cut = patch_BTP.reshape(-1, rows, columns, P, P, X)
  return cut.transpose(0, 1, 3, 2, 4, 5).reshape(-1, *config.image)
