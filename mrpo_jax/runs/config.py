# SPDX-License-Identifier: Apache-2.0
"""What a config file may say, checked in the first second of a run."""

import math

from mrpo_jax.errors import InputError

REQUIRED = object()
# Figures of an evaluation that can say which checkpoint is the best: 1 where
# more of it is better, -1 where less is.
BEST = {
  "eval/loss": -1,
  "eval/rewards/accuracies": 1,  # against reference 0
  "eval/rewards/margins": 1,
  "eval/virtual/rewards/accuracies": 1,  # against the mixture
  "eval/policy/rewards/accuracies": 1,  # against none
  "eval/policy_mean/rewards/accuracies": 1,  # against none, per token
}


def positive(value):
  return None if value > 0 else "must be positive"


def not_negative(value):
  return None if value >= 0 else "must not be negative"


def share(value):
  return None if 0 <= value < 1 else "must be at least 0 and less than 1"


def fraction(value):
  return None if 0 < value <= 1 else "must be more than 0 and at most 1"


def anything(value):
  return None


def one_of(*names):
  known = ", ".join(map(repr, names))
  return lambda value: None if value in names else f"must be one of {known}"


# key: (default, type, check).  0 for a period means: only at the end.
FIELDS = {
  "seed": (0, int, not_negative),
  "steps": (REQUIRED, int, positive),
  "batch": (REQUIRED, int, positive),
  "log_every": (1, int, positive),
  "eval_every": (0, int, not_negative),
  "checkpoint_every": (0, int, not_negative),
  "checkpoints.keep": (2, int, positive),  # so many of the newest
  "checkpoints.best": ("", str, one_of("", *BEST)),  # and the best by this
  "data.train": (REQUIRED, str, anything),
  "data.eval": ("", str, anything),
  "data.validation": ("", str, anything),  # weights of references measure here
  "data.max_prompt": (512, int, positive),
  "data.max_response": (512, int, positive),
  "data.row_length": (2048, int, positive),
  "data.rows": (0, int, not_negative),  # 0: one per shard of the mesh
  "mesh.data": (-1, int, anything),
  "mesh.fsdp": (1, int, anything),
  "mesh.context": (1, int, anything),
  "mesh.model": (1, int, anything),
  # TR-DPO: reference 0 moves so far towards the policy, every so many steps.
  "reference_update.every": (0, int, not_negative),  # 0: never
  "reference_update.rate": (1.0, float, fraction),  # 1: all the way
  # APO: so many runs, one after the other, each from where the last one ended
  # and `alpha` times as far again.
  "rounds.count": (1, int, positive),
  "rounds.alpha": (0.0, float, not_negative),
  "optimizer.peak_lr": (REQUIRED, float, positive),
  "optimizer.warmup": (0.1, float, not_negative),
  "optimizer.end_lr": (0.0, float, not_negative),
  "optimizer.clip_norm": (1.0, float, positive),
  "optimizer.weight_decay": (0.0, float, not_negative),
  "optimizer.b1": (0.9, float, not_negative),
  "optimizer.b2": (0.999, float, not_negative),
}
DTYPES = ("float32", "bfloat16", "float16")
MODEL = {
  "path": ("", str, anything),
  "tokenizer": ("", str, anything),
  "template": ("", str, anything),  # a name, or a file with a chat template
  "dtype": ("float32", str, one_of(*DTYPES)),
  "quantize": ("", str, one_of("", "int8", "int4")),
  "quantize_group": (32, int, positive),  # inputs that share a scale in int4
}
POLICY = {
  **MODEL,
  # Of the activations of all models; bfloat16 over float32 weights keeps these
  # as masters.
  "compute": ("", str, one_of("", "float32", "bfloat16")),  # "": as stored
  "kernel": (
    "auto",
    str,
    one_of("auto", "xla", "blockwise", "cudnn", "splash"),
  ),
  "remat": ("dots", str, one_of("none", "dots", "full")),
  "chunk": (0, int, not_negative),  # scored positions of a row; 0: chosen
}
REFERENCE = {
  **MODEL,
  "dtype": ("", str, one_of("", *DTYPES)),  # the policy's, or float32
  "mode": ("online", str, one_of("online", "scored")),
  "beta": (0.0, float, not_negative),  # of this reference; 0: loss.beta
  "adapter": ("", str, anything),  # a folder of PEFT, on top of `path`
}
ADAPTER = {  # of the policy: only this is trained then
  "rank": (REQUIRED, int, positive),
  "alpha": (REQUIRED, float, positive),
  "targets": ("all", str, anything),  # or a tuple of leaves of the blocks
  "rslora": (False, bool, anything),
  "dropout": (0.0, float, share),
}
IMPORTED = {  # the rest stands in the folder
  "path": (REQUIRED, str, anything),
  "dropout": ADAPTER["dropout"],
}
NEW = {  # a model made here, where `path` is empty
  "layers": (REQUIRED, int, positive),
  "width": (REQUIRED, int, positive),
  "heads": (REQUIRED, int, positive),
  "kv_heads": (REQUIRED, int, positive),
  "mlp_width": (REQUIRED, int, positive),
  "tokenizer": ("bpe", str, one_of("bpe", "unigram")),
  "vocab_size": (REQUIRED, int, positive),
}
# A config with a section `bandit` trains a table of arms; it has these instead.
COMMON = {key: field for key, field in FIELDS.items() if "." not in key}
# It draws nothing, takes a minute, and is scored at its end.
COMMON_OF_BANDIT = COMMON | dict.fromkeys(
  ("seed", "eval_every", "checkpoint_every"), (0, int, one_of(0))
)
BANDIT = {
  "lr": (REQUIRED, float, positive),
  "average": (1, int, positive),  # of so many last steps the policy is averaged
}
BANDIT_LISTS = {"rewards", "winners", "losers", "betas", "links"}


def with_defaults(values):
  """A config's nested dict with every default that it leaves out.

  What is wrong in it stays wrong: `read` says so.
  """
  values = dict(values)
  if "bandit" in values:
    values["bandit"] = _filled(values["bandit"], BANDIT)
    return _filled(values, COMMON_OF_BANDIT)
  for key, field in FIELDS.items():
    section, _, name = key.rpartition(".")
    if section:
      values[section] = _filled(values.get(section, {}), {name: field})
    else:
      values = _filled(values, {name: field})
  policy = _filled(values.get("policy", {}), POLICY)
  if isinstance(policy, dict):
    # A section even where it is empty, so that flags can fill it.
    adapter = policy.get("adapter") or {}
    fields = {} if not adapter or "path" in adapter else ADAPTER
    policy["adapter"] = _filled(adapter, fields)
  values["policy"] = policy
  values["mesh"] = _with_rules(values["mesh"])
  references = values.get("references", {})
  if isinstance(references, dict):
    values["references"] = {
      name: section
      if name == "names"
      else _with_rules(_filled(section, REFERENCE))
      for name, section in references.items()
    }
  return values


def _with_rules(section):
  """The section with its `rules` as text, so that flags can change them."""
  if not isinstance(section, dict):
    return section
  rules = section.get("rules") or {}
  if isinstance(rules, dict):
    rules = {axis: _rule(given) for axis, given in rules.items()}
  return {**section, "rules": rules}


def _rule(given):
  """Mesh axes as text with commas; what is neither stays as it is."""
  if given is None:
    return ""
  is_list = isinstance(given, list | tuple)
  if is_list and all(isinstance(name, str) for name in given):
    return ",".join(given)
  return given


def _filled(section, fields):
  if not isinstance(section, dict):
    return section
  defaults = {k: f[0] for k, f in fields.items() if f[0] is not REQUIRED}
  # None is what a flag cannot override: it means the default.
  given = {
    k: v for k, v in section.items() if v is not None or k not in defaults
  }
  return {**defaults, **given}


def read_config(values):
  """A config's plain nested dict, checked and completed.

  Raises:
    InputError: an unknown key (the known ones are listed), a missing one, a
      wrong type, a number out of range or not finite.
  """
  values = _plain(values)
  if "bandit" in values:
    return _read_bandit(values)
  sections = {key.split(".")[0] for key in FIELDS}
  _refuse_unknown("", values, sections | {"policy", "references", "loss"})
  checked = {}
  for key, field in FIELDS.items():
    section, _, name = key.rpartition(".")
    given = _section(values, section) if section else values
    _put(checked, key, _value(key, given, name, field))
  for section in {key.split(".")[0] for key in FIELDS if "." in key}:
    known = {key.split(".")[1] for key in FIELDS if key.startswith(section)}
    known |= {"rules"} if section == "mesh" else set()
    _refuse_unknown(section, _section(values, section), known)
  checked["mesh"]["rules"] = _rules("mesh", _section(values, "mesh"))
  checked["policy"] = _policy(_section(values, "policy"))
  checked["references"] = _references(
    _section(values, "references"), checked["policy"]
  )
  checked["loss"] = _loss(_section(values, "loss"))
  _check_moves(checked)
  if checked["optimizer"]["warmup"] > 1:
    raise InputError("optimizer.warmup is a share of the steps: at most 1")
  return checked


def _plain(value):
  """Tuples to lists, as JSON has them: a resumed config must compare equal."""
  if isinstance(value, dict):
    return {key: _plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  return value


def _section(values, name):
  section = values.get(name, {})
  if not isinstance(section, dict):
    raise InputError(f"config.{name} must be a section, got {section!r}")
  return section


def _put(tree, key, value):
  *parents, name = key.split(".")
  for parent in parents:
    tree = tree.setdefault(parent, {})
  tree[name] = value


def _refuse_unknown(where, given, known):
  for key in given:
    if key not in known:
      prefix = f"{where}." if where else ""
      raise InputError(
        f"config.{prefix}{key} is not known; known here: "
        f"{', '.join(sorted(known))}"
      )


def _value(key, section, name, field):
  default, kind, problem = field
  value = default if section.get(name) is None else section[name]
  if value is REQUIRED:
    raise InputError(f"config.{key} is missing")
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if not isinstance(value, kind) or (isinstance(value, bool) != (kind is bool)):
    raise InputError(
      f"config.{key} must be of type {kind.__name__}, got {value!r}"
    )
  _finite(key, value)
  if message := problem(value):
    raise InputError(f"config.{key} {message}, got {value!r}")
  return value


def _finite(key, value):
  if isinstance(value, float) and not math.isfinite(value):
    raise InputError(f"config.{key} must be a finite number, got {value!r}")


def _fields(where, given, fields):
  prefix = f"{where}." if where else ""
  return {
    name: _value(f"{prefix}{name}", given, name, field)
    for name, field in fields.items()
  }


def _numbers(where, given, name, kind, problem):
  """A list of numbers, each checked as `_value` checks one."""
  key, numbers = f"{where}.{name}", given.get(name)
  if numbers is None:
    raise InputError(f"config.{key} is missing")
  if not isinstance(numbers, list) or not numbers:
    raise InputError(
      f"config.{key} must be a tuple of numbers, got {numbers!r}"
    )
  field = (REQUIRED, kind, problem)
  numbers = dict(enumerate(numbers))
  return [_value(f"{key}[{i}]", numbers, i, field) for i in numbers]


def _model(where, given, fields):
  known = {*fields, "new", "adapter"}
  known |= {"rules"} if fields is REFERENCE else set()
  _refuse_unknown(where, given, known)
  section = _fields(where, given, fields)
  if section["path"]:
    return section  # what `new` says is not used then
  if "new" not in given:
    raise InputError(
      f"config.{where}.path is empty: name a Hugging Face folder, or describe "
      f"a new model in config.{where}.new"
    )
  new = _section(given, "new")
  _refuse_unknown(f"{where}.new", new, NEW)
  section["new"] = _fields(f"{where}.new", new, NEW)
  return section


def _rules(where, given):
  """{logical axis: mesh axes as text}; `parallel.rules_of` knows the names."""
  where, rules = f"{where}.rules", given.get("rules") or {}
  if not isinstance(rules, dict):
    raise InputError(f"config.{where} must be a section, got {rules!r}")
  rules = {axis: _rule(one) for axis, one in rules.items()}
  for axis, one in rules.items():
    if not isinstance(one, str):
      raise InputError(
        f"config.{where}.{axis} must be names of mesh axes, got {one!r}"
      )
  return rules


def _policy(given):
  section = _model("policy", given, POLICY)
  adapter = given.get("adapter")
  section["adapter"] = _adapter(adapter) if adapter else None
  if section["quantize"] and not adapter:
    raise InputError(
      f"config.policy.quantize={section['quantize']!r} needs "
      "config.policy.adapter: integers are not trained"
    )
  return section


def _adapter(given):
  where = "policy.adapter"
  if not isinstance(given, dict):
    raise InputError(f"config.{where} must be a section, got {given!r}")
  if given.get("path"):
    _refuse_unknown(where, given, IMPORTED)
    return _fields(where, given, IMPORTED)
  given = {key: value for key, value in given.items() if key != "path"}
  _refuse_unknown(where, given, {*ADAPTER, "path"})
  targets = given.pop("targets", "all")
  if isinstance(targets, str):  # of a flag
    targets = targets.split(",")
  if not targets or not all(isinstance(name, str) for name in targets):
    raise InputError(
      f"config.{where}.targets must be a tuple of names, got {targets!r}"
    )
  return {**_fields(where, given, ADAPTER), "targets": targets}


def _references(given, policy):
  return _named(
    "references", given, lambda where, one: _reference(where, one, policy)
  )


def _reference(where, given, policy):
  section = _model(where, given, REFERENCE)
  section["rules"] = _rules(where, given)
  is_policy = section["path"] == "policy"
  section["dtype"] = section["dtype"] or (
    policy["dtype"] if is_policy else "float32"
  )
  if is_policy and policy["quantize"]:
    if section["quantize"] not in ("", policy["quantize"]):
      raise InputError(
        f"config.{where}.quantize={section['quantize']!r}, but the policy is "
        f"{policy['quantize']}; name its folder instead of path='policy'"
      )
    section |= {key: policy[key] for key in ("quantize", "quantize_group")}
  return section


def _check_moves(config):
  """Can reference 0 follow the policy, where the config says so?"""
  every, rounds = config["reference_update"]["every"], config["rounds"]["count"]
  if config["steps"] % rounds:
    raise InputError(
      f"config.rounds.count={rounds} does not divide config.steps="
      f"{config['steps']}"
    )
  if not every and rounds == 1:
    return
  key = "reference_update.every" if every else "rounds.count"
  policy, references = config["policy"], config["references"]
  names = references["names"]
  if not names or references[names[0]]["path"] != "policy":
    raise InputError(
      f"config.{key} moves the first reference, whose path must be 'policy'"
    )
  where, base = f"references.{names[0]}", references[names[0]]
  for name, want in (
    ("mode", "online"),
    ("adapter", ""),
    ("rules", {}),
    *((name, policy[name]) for name in ("dtype", "quantize")),
  ):
    if base[name] != want:
      raise InputError(
        f"config.{key} moves the first reference: config.{where}.{name} must "
        f"be {want!r}, got {base[name]!r}"
      )
  if policy["adapter"] and "path" in policy["adapter"]:
    raise InputError(
      f"config.{key} moves the first reference, but an imported adapter does "
      "not start where it does; merge the adapter into a model first"
    )


def _named(where, given, check):
  """Sections listed by `names`, each checked; the others are not used."""
  names = given.get("names", [])
  if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
    raise InputError(
      f"config.{where}.names must be a tuple of names, got {names!r}"
    )
  if len(set(names)) != len(names) or "names" in names:
    raise InputError(f"config.{where}.names repeats a name: {names}")
  checked = {"names": names}
  for name in names:
    if name not in given:
      raise InputError(f"config.{where}.{name} is missing: {names}")
    checked[name] = check(f"{where}.{name}", _section(given, name))
  return checked


def _loss(given):
  given = _loss_keywords("loss", given)
  beta = given.get("beta", 1.0)
  if isinstance(beta, bool) or not isinstance(beta, int | float) or beta <= 0:
    raise InputError(f"config.loss.beta must be positive, got {beta!r}")
  return given


def _loss_keywords(where, given):
  """`losses.build` checks what only it knows."""
  if not isinstance(given.get("name"), str):
    raise InputError(f"config.{where}.name is missing")
  _all_finite(where, given)
  return given


def _all_finite(where, value):
  """Refuses a number that is not finite, at any depth."""
  if isinstance(value, dict | list):
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in inner:
      _all_finite(f"{where}.{key}", one)
  else:
    _finite(where, value)


def _read_bandit(values):
  _refuse_unknown("", values, {*COMMON, "bandit"})
  given = _section(values, "bandit")
  _refuse_unknown("bandit", given, {*BANDIT, *BANDIT_LISTS})
  section = _fields("bandit", given, BANDIT)
  section["rewards"] = _numbers("bandit", given, "rewards", float, anything)
  arms = len(section["rewards"])
  section["winners"], section["losers"] = _bandit_pairs(given, arms)
  section["betas"] = _numbers("bandit", given, "betas", float, positive)
  if len(set(section["betas"])) < len(section["betas"]):
    raise InputError(
      f"config.bandit.betas repeats a number: {section['betas']}"
    )
  section["links"] = _named("bandit.links", _section(given, "links"), _link)
  if not section["links"]["names"]:
    raise InputError("config.bandit.links.names is empty: name a loss")
  checked = _fields("", values, COMMON_OF_BANDIT)
  if checked["batch"] != len(section["winners"]):
    raise InputError(
      f"config.batch is {checked['batch']}, but every step of a bandit sees "
      f"all of its {len(section['winners'])} pairs"
    )
  return {**checked, "bandit": section}


def _link(where, given):
  if "beta" in given:
    raise InputError(f"config.{where}.beta belongs into config.bandit.betas")
  return _loss_keywords(where, given)


def _bandit_pairs(given, arms):
  def problem(arm):
    if not 1 <= arm <= arms:
      return f"must be one of the {arms} arms, counted from 1"

  winners = _numbers("bandit", given, "winners", int, problem)
  losers = _numbers("bandit", given, "losers", int, problem)
  if len(winners) != len(losers):
    raise InputError(
      f"config.bandit has {len(winners)} winners, but {len(losers)} losers"
    )
  for pair, (winner, loser) in enumerate(zip(winners, losers, strict=True)):
    if winner == loser:
      raise InputError(
        f"config.bandit: pair {pair} has arm {winner} on both sides"
      )
  return winners, losers
