# SPDX-License-Identifier: Apache-2.0
"""Diffusion-DPO in plain torch as a player; see benchmarks/turns.py.

Runs in an environment with torch alone.  A transformer of torch's own layers,
of the job's shape; the two images of a pair go through it together, and so they
go through the reference without a gradient.
"""

import copy
import math
import time

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import turns


class Block(nn.Module):
  def __init__(self, width, heads, mlp_width):
    super().__init__()
    self.heads = heads
    self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
    self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
    self.up, self.down = (
      nn.Linear(width, mlp_width),
      nn.Linear(mlp_width, width),
    )
    self.modulation = nn.Linear(width, 6 * width)

  def forward(self, x, about):
    parts = self.modulation(about)[:, None].chunk(6, dim=-1)
    shift, scale, gate, shift2, scale2, gate2 = parts
    h = self.norm(x) * (1 + scale) + shift
    q, k, v = (
      one.unflatten(-1, (self.heads, -1)).transpose(1, 2)
      for one in self.qkv(h).chunk(3, dim=-1)
    )
    seen = F.scaled_dot_product_attention(q, k, v)
    x = x + gate * self.out(seen.transpose(1, 2).flatten(2))
    h = self.norm(x) * (1 + scale2) + shift2
    return x + gate2 * self.down(F.gelu(self.up(h), approximate="tanh"))


class Denoiser(nn.Module):
  def __init__(self, image, classes, patch, width, layers, heads, mlp_width):
    super().__init__()
    height, columns, channels = image
    tokens = height // patch * (columns // patch)
    self.patches = nn.Conv2d(channels, width, patch, stride=patch)
    self.register_buffer("places", torch.randn(1, tokens, width))
    self.time = nn.Sequential(
      nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width)
    )
    self.classes = nn.Embedding(classes + 1, width)
    self.blocks = nn.ModuleList(
      Block(width, heads, mlp_width) for _ in range(layers)
    )
    self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
    self.last = nn.Linear(width, 2 * width)
    self.pixels = nn.Linear(width, patch * patch * channels)
    self.fold = nn.Fold((height, columns), patch, stride=patch)

  def forward(self, noisy, time, label):
    x = self.patches(noisy).flatten(2).transpose(1, 2) + self.places
    rate = torch.exp(-math.log(10_000.0) * torch.arange(128) / 128)
    angle = 1000.0 * time[:, None] * rate
    about = self.time(torch.cat([torch.cos(angle), torch.sin(angle)], 1))
    about = F.silu(about + self.classes(label))
    for block in self.blocks:
      x = block(x, about)
    shift, scale = self.last(about)[:, None].chunk(2, dim=-1)
    out = self.pixels(self.norm(x) * (1 + scale) + shift)
    return self.fold(out.transpose(1, 2))


def errors(model, image, time, noise, label):
  """[B, 2] of images [B, 2, X, H, W] that are noised alike."""
  start = math.cos(0.008 / 1.008 * math.pi / 2)
  signal = torch.cos((time + 0.008) / 1.008 * math.pi / 2) / start
  a = signal[:, None, None, None, None]
  s = torch.sqrt(1 - a**2)
  noisy = (a * image + s * noise[:, None]).flatten(0, 1)
  twice = time.repeat_interleave(2), label.repeat_interleave(2)
  found = model(noisy, *twice).unflatten(0, image.shape[:2])
  return ((found - noise[:, None]) ** 2).mean(dim=(2, 3, 4))


def main():
  given = turns.worker_arguments(__doc__)
  job = given.job
  torch.manual_seed(0)
  model = Denoiser(**job["shape"])
  reference = copy.deepcopy(model).requires_grad_(False)
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=1e-4, weight_decay=0.0, fused=True
  )
  height, columns, channels = job["shape"]["image"]
  image = torch.rand(job["batch"], 2, channels, height, columns) * 2 - 1
  label = torch.randint(job["shape"]["classes"], (job["batch"],))

  def step():
    time = 0.001 + 0.994 * torch.rand(job["batch"])
    noise = torch.randn(image[:, 0].shape)
    with torch.no_grad():
      other = errors(reference, image, time, noise, label)
    own = errors(model, image, time, noise, label)
    change = (own[:, 0] - own[:, 1]) - (other[:, 0] - other[:, 1])
    loss = F.softplus(0.5 * job["beta"] * change).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()

  def turn(number):
    started = time.perf_counter()
    for _ in range(job["steps"]):
      step()
    seconds = time.perf_counter() - started
    pairs = job["steps"] * job["batch"]
    return {"seconds": seconds, "pairs": pairs, "memory": turns.resident()}

  about = {"torch": torch.__version__, "threads": torch.get_num_threads()}
  turns.serve(given.channel, about, turn)


if __name__ == "__main__":
  main()
