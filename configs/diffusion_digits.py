r"""Diffusion-DPO on handwritten digits: train, draw pairs, prefer more ink.

Diffusion-DPO, arXiv:2311.12908, on the 8 x 8 digits of scikit-learn (pip
install mrpo-jax[diffusion]).  A denoiser learns the digits, draws pairs of
them, the one with more ink is preferred, and it is trained on that.

  mrpo train --config=configs/diffusion_digits.py --workdir=/tmp/digits

Append `:debug` for a minute.
"""

from ml_collections import config_dict

from mrpo_jax import configs

DIGITS = (
  *("zero", "one", "two", "three", "four"),
  *("five", "six", "seven", "eight", "nine"),
)


def get_config(arg=""):
  arg = configs.parse_arg(arg, debug=False)
  c = config_dict.ConfigDict()
  c.seed = 0
  c.steps = 20 if arg.debug else 400
  c.batch = 64
  c.data = dict(classes=DIGITS)
  c.denoiser = dict(
    new=dict(patch=4, width=128, layers=4, heads=4, mlp_width=512)
  )
  c.start = dict(
    images="digits:train",
    steps=60 if arg.debug else 2_000,
    batch=128,
    peak_lr=1e-3,
  )
  c.drawn = dict(pairs=64 if arg.debug else 2_000, reward="ink")
  if arg.debug:
    c.drawn.held_out, c.drawn.steps, c.eval_draws = 32, 10, 4
  c.optimizer = dict(peak_lr=2e-5)
  c.references = dict(names=("start",), start=dict(path="policy"))
  c.loss = dict(name="dpo", beta=0.03)
  c.samples = dict(each=8, steps=10 if arg.debug else 50)
  return c
