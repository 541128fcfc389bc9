# SPDX-License-Identifier: Apache-2.0
"""Makes what plain torch says of a denoiser, its losses and their gradients.

    pip install torch numpy
    python tests/golden/make_denoiser.py     # writes denoiser.npz beside it

The transformer is written here once more, from the paper (arXiv:2212.09748) and
with torch's own layers; weights and images follow from formulas.  denoiser.npz
holds predictions, errors of pairs, the loss of Diffusion-DPO with one reference
and with the mean of two, and the gradients of some weights.
"""

import math
import pathlib

import numpy as np

HERE = pathlib.Path(__file__).parent
SIZES = dict(
  image=(4, 8, 3), classes=3, patch=2, width=16, layers=2, heads=2, mlp_width=24
)
BETA = 0.5  # of means, times nats
WATCHED = (
  *("patches", "time_in", "classes", "pixels", "blocks.query"),
  *("blocks.modulation", "blocks.down", "last_modulation_bias"),
)


def weights(shapes, shift):
  """{name: float32 array}: waves, scaled by their inputs."""
  found = {}
  for n, (name, shape) in enumerate(sorted(shapes.items())):
    place = np.arange(math.prod(shape)).reshape(shape)
    scale = 0.5 / math.sqrt(shape[1 if name.startswith("blocks") else 0])
    found[name] = np.float32(scale * np.sin(0.7 * place + n + shift))
  return found


def images(count):
  """image_BCHWX in [-1, 1], noise_BHWX, time_B, class_B; 3 is no class."""
  shape = (count, 2, *SIZES["image"])
  place = np.arange(math.prod(shape)).reshape(shape)
  image = np.float32(np.sin(place * 1.3 + place**2 * 0.01))
  place = np.arange(count * math.prod(SIZES["image"]))
  noise = np.float32(1.4 * np.cos(place * 2.1 + 0.03 * place**2))
  time = np.float32(0.05 + 0.9 * np.arange(count) / (count - 1))
  return (
    image,
    noise.reshape(count, *SIZES["image"]),
    time,
    np.arange(count) % 4,
  )


def shapes():
  """{name: shape}, as the layout of `denoiser.table` has them."""
  D, F, H, L = (SIZES[k] for k in ("width", "mlp_width", "heads", "layers"))
  E, P = D // H, SIZES["patch"] ** 2 * SIZES["image"][2]
  found = dict(
    patches=(P, D),
    patches_bias=(D,),
    time_in=(256, D),
    time_in_bias=(D,),
    time_out=(D, D),
    time_out_bias=(D,),
    classes=(SIZES["classes"] + 1, D),
    last_modulation=(D, 2, D),
    last_modulation_bias=(2, D),
    pixels=(D, P),
    pixels_bias=(P,),
  )
  layer = dict(out=(H, E, D), out_bias=(D,), up=(D, F), up_bias=(F,))
  layer |= dict(down=(F, D), down_bias=(D,), modulation=(D, 6, D))
  layer |= dict(modulation_bias=(6, D))
  for name in ("query", "key", "value"):
    layer |= {name: (D, H, E), f"{name}_bias": (H, E)}
  return found | {f"blocks.{k}": (L, *shape) for k, shape in layer.items()}


def predict(w, noisy, time, label):
  """The prediction for images [B, H, W, X]."""
  import torch
  from torch import nn
  from torch.nn import functional as F

  height, width, channels = SIZES["image"]
  P, D = SIZES["patch"], SIZES["width"]
  rows, columns = height // P, width // P

  def linear(x, name, layer=None):
    matrix, bias = w[name], w[f"{name}_bias"]
    if layer is not None:
      matrix, bias = matrix[layer], bias[layer]
    return x @ matrix.reshape(x.shape[-1], -1) + bias.reshape(-1)

  norm = nn.LayerNorm(D, eps=1e-6, elementwise_affine=False)
  to_patches = nn.Unfold(P, stride=P)
  cut = to_patches(noisy.permute(0, 3, 1, 2))  # [B, X * P * P, T]
  cut = cut.reshape(-1, channels, P * P, rows * columns)
  x = linear(cut.permute(0, 3, 2, 1).flatten(2), "patches")
  rate = 10_000.0 ** (-torch.arange(D // 4) / (D // 4))

  def sines(place):
    angle = place[:, None] * rate
    return torch.cat([torch.sin(angle), torch.cos(angle)], 1)

  place = torch.arange(rows * columns)
  x = x + torch.cat([sines(place // columns), sines(place % columns)], 1)
  rate = torch.exp(-math.log(10_000.0) * torch.arange(128) / 128)
  angle = 1000.0 * time[:, None] * rate
  about = linear(torch.cat([torch.cos(angle), torch.sin(angle)], 1), "time_in")
  about = linear(F.silu(about), "time_out") + w["classes"][label]
  about = F.silu(about)
  for layer in range(SIZES["layers"]):
    parts = linear(about, "blocks.modulation", layer).reshape(-1, 6, D)
    shift, scale, gate, shift2, scale2, gate2 = parts[:, :, None].unbind(1)
    h = norm(x) * (1 + scale) + shift
    q, k, v = (
      linear(h, f"blocks.{name}", layer)
      .reshape(*h.shape[:2], SIZES["heads"], -1)
      .transpose(1, 2)
      for name in ("query", "key", "value")
    )
    seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = x + gate * linear(seen, "blocks.out", layer)
    h = norm(x) * (1 + scale2) + shift2
    h = F.gelu(linear(h, "blocks.up", layer), approximate="tanh")
    x = x + gate2 * linear(h, "blocks.down", layer)
  parts = linear(about, "last_modulation").reshape(-1, 2, D)
  shift, scale = parts[:, :, None].unbind(1)
  out = linear(norm(x) * (1 + scale) + shift, "pixels")  # [B, T, P * P * X]
  out = out.reshape(-1, rows * columns, P * P, channels).permute(0, 3, 2, 1)
  fold = nn.Fold((height, width), P, stride=P)
  return fold(out.reshape(-1, channels * P * P, rows * columns)).permute(
    0, 2, 3, 1
  )


def error(w, image, noise, time, label):
  """[B]: mean squared error of the noise, under the cosine schedule."""
  import torch

  angle = (time + 0.008) / 1.008 * math.pi / 2
  signal = torch.cos(angle) / math.cos(0.008 / 1.008 * math.pi / 2)
  level = torch.sqrt(1 - signal**2)
  a, s = signal[:, None, None, None], level[:, None, None, None]
  found = predict(w, a * image + s * noise, time, label)
  return ((found - noise) ** 2).flatten(1).mean(1), found


def main():
  import torch
  from torch.nn import functional as F

  image, noise, time, label = map(torch.tensor, images(5))
  made = {
    shift: {k: torch.tensor(a) for k, a in weights(shapes(), shift).items()}
    for shift in (0.0, 1.0, 2.0)
  }
  policy = {k: a.requires_grad_() for k, a in made[0.0].items()}
  found = {}

  def both(w):
    sides = [error(w, image[:, c], noise, time, label) for c in (0, 1)]
    return torch.stack([side[0] for side in sides], 1), sides[0][1]

  errors, predicted = both(policy)
  found["predicted"], found["errors"] = predicted, errors
  with torch.no_grad():
    one, other = both(made[1.0])[0], both(made[2.0])[0]
  for name, reference in {"one": one, "two": (one + other) / 2}.items():
    found[f"{name}/ref_errors"] = reference
    change = (errors[:, 0] - errors[:, 1]) - (reference[:, 0] - reference[:, 1])
    loss = F.softplus(0.5 * BETA * change)
    found[f"{name}/loss"] = loss
    grads = torch.autograd.grad(
      loss.mean(), [policy[k] for k in WATCHED], retain_graph=True
    )
    for key, grad in zip(WATCHED, grads, strict=True):
      found[f"{name}/grad/{key}"] = grad
  arrays = {k: a.detach().numpy() for k, a in found.items()}
  np.savez_compressed(HERE / "denoiser.npz", **arrays)
  for key in ("errors", "one/loss", "two/loss"):
    print(key, arrays[key])


if __name__ == "__main__":
  main()
