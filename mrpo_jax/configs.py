# SPDX-License-Identifier: Apache-2.0
"""What config files share: arguments after the colon, and the debug run.

from mrpo_jax import configs

def get_config(arg=""):
  arg = configs.parse_arg(arg, beta=0.1, debug=False)
"""

import pathlib
import types

_HERE = pathlib.Path(__file__).resolve().parent
# A wheel has them in the package, a clone of the repository beside it.
SHIPPED = _HERE / "shipped"
if not SHIPPED.is_dir():
  SHIPPED = _HERE.parent / "configs"
HH_HARMLESS = SHIPPED / "hh_harmless"
TOKENIZERS = SHIPPED / "tokenizers"  # trained on these pairs
MODELS = "/tmp/mrpo_quickstart/models"  # of launch/quickstart.sh by itself
HH = dict(  # `data` of a run on these pairs
  train=str(HH_HARMLESS / "train.jsonl.gz"),
  eval=str(HH_HARMLESS / "eval.jsonl.gz"),
  max_prompt=96,  # tokens; keeps the prompt's end
  max_response=160,  # tokens; keeps the response's start
  row_length=512,  # tokens of a packed row: about three pairs
)
# `online` of a run whose reward counts words, D2PO's word collector.
WORDS = dict(
  prompts=str(HH_HARMLESS / "train.jsonl.gz"),
  reward="mrpo_jax.online.words:collected",
  max_new_tokens=48,
)
TINY = dict(
  layers=2,
  width=32,
  heads=2,
  kv_heads=1,
  mlp_width=64,
  tokenizer="bpe",
  vocab_size=512,
)


def parse_arg(arg, **defaults):
  """ "debug,models=/m" with debug=False, models="" -> a namespace of both.

  A bare name sets a boolean, or, where `run` is among the defaults, the run.
  Values take the type of their default.

  Raises:
    ValueError: an argument has no default, or a value is not of its type.
  """
  values = dict(defaults)
  for item in filter(None, arg.split(",")):
    name, equals, value = item.partition("=")
    if not equals and isinstance(defaults.get(name), bool):
      values[name] = True
    elif not equals and "run" in defaults:
      values["run"] = name
    elif equals and name in defaults:
      values[name] = _typed(item, value, type(defaults[name]))
    else:
      known = ", ".join(defaults)
      raise ValueError(f"unknown config argument {item!r}; known: {known}")
  return types.SimpleNamespace(**values)


def _typed(item, value, kind):
  try:
    if kind is bool:
      return {"true": True, "false": False}[value.lower()]
    return kind(value)
  except (KeyError, ValueError):
    want = "true or false" if kind is bool else kind.__name__
    raise ValueError(f"config argument {item!r}: want {want}") from None


def shrink(c):
  """The same experiment as a CPU run of a minute: tiny models made on the spot.

  Reference 0 stays the policy's start; every further one gets another shape
  and, but where it has the policy's, another tokenizer.  Nothing is downloaded.
  """
  c.steps = 8
  c.batch = 8
  c.log_every = 1
  c.eval_every = 4
  c.checkpoint_every = 4
  if "online" in c:
    c.steps = 4
    c.online.rounds = 2
    c.online.prompts = str(HH_HARMLESS / "eval.jsonl.gz")
    c.online.max_new_tokens = 32
    c.online.min_new_tokens = 0
    # Of random letters hardly any are a word.
    c.online.reward = "mrpo_jax.online.words:length"
    c.online.reward_options = {"unit": "characters"}
    if "discriminator" in c.online:
      c.online.discriminator.every = 1
    c.policy.tokenizer = str(TOKENIZERS / "unigram-512")
  else:
    c.data.train = str(HH_HARMLESS / "eval.jsonl.gz")
    c.data.eval = str(HH_HARMLESS / "eval.jsonl.gz")
  c.data.max_prompt = 64
  c.data.max_response = 64
  c.data.row_length = 256
  c.mesh = dict(data=-1)  # whatever devices there are
  c.policy.path = ""
  c.policy.new = dict(TINY)
  for k, name in enumerate(c.references.names):
    reference = c.references[name]
    reference.path = "policy" if k == 0 else ""
    if k:
      width = 16 * (k + 2)
      reference.new = dict(TINY, width=width, tokenizer="unigram")
      if not reference.get("tokenizer"):
        reference.tokenizer = str(TOKENIZERS / "unigram-512")
  return c
