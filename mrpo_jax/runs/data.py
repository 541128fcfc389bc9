# SPDX-License-Identifier: Apache-2.0
"""What a run reads of its data, from checked settings: text as token ids."""

import dataclasses
import pathlib

from mrpo_jax.data import formats, source
from mrpo_jax.data.tokenizer import (
  load_tokenizer,
  tokenizer_fingerprint,
  train_tokenizer,
  with_template,
)

SPLITS = ("train", "eval", "validation")  # keys of config.data


@dataclasses.dataclass(frozen=True)
class Tokenizers:
  """The tokenizers of a run; equal ones are one view of the data."""

  # Distinct ones: 0 is the policy's, last come those of scored references
  # alone.
  views: list
  view_of: dict  # "policy" or "references.<name>" -> index of its view
  made: dict  # folder in the workdir -> tokenizer trained here
  identity: dict


def sections_of(config):
  """Every model of the config by its key, the policy first."""
  references = config["references"]
  return {"policy": config["policy"]} | {
    f"references.{name}": references[name] for name in references["names"]
  }


def is_scored(section):
  """Is this reference read from the store?  Never so of a policy."""
  return section.get("mode") == "scored"


def load_pairs(config, splits=SPLITS):
  """{split: list of PreferencePair} of the files that the config names."""
  names = {split: config["data"][split] for split in splits}
  return {split: source.load(name) for split, name in names.items() if name}


def load_tokenizers(config, workdir, pairs, say):
  """Loads each model's tokenizer, or trains it on the training text."""
  views, view_of, made, identity, bare = {}, {}, {}, {}, {}
  # The step reads the rows of the first ones only.
  in_order = sorted(
    sections_of(config).items(), key=lambda one: is_scored(one[1])
  )
  for key, section in in_order:
    folder = section["tokenizer"] or section["path"]
    if folder == "policy":
      tokenizer, policy = bare["policy"], config["policy"]
      template = section["template"] or policy["template"]
    else:
      template = section["template"]
      tokenizer = _tokenizer(key, folder, section, workdir, pairs, made, say)
    bare[key] = tokenizer
    tokenizer = with_template(tokenizer, template)
    mark = identity[f"{key}.tokenizer"] = tokenizer_fingerprint(tokenizer)
    views.setdefault(mark, tokenizer)
    view_of[key] = list(views).index(mark)
  return Tokenizers(list(views.values()), view_of, made, identity)


@dataclasses.dataclass(frozen=True)
class Unread:
  """In the place of a tokenizer that is not there: its size, if known."""

  size: int = 0
  bos_token_id: int | None = None
  eos_token_id: int | None = None

  def __len__(self):
    return self.size


def abstract_tokenizers(config):
  """The Tokenizers of a run that reads none: one for each name and template."""
  views, view_of = {}, {}
  in_order = sorted(
    sections_of(config).items(), key=lambda one: is_scored(one[1])
  )
  for key, section in in_order:
    folder = section["tokenizer"] or section["path"]
    of_policy = folder == "policy"
    owner = "policy" if of_policy else key
    named = config["policy"] if of_policy else section
    folder = named["tokenizer"] or named["path"] or owner
    mark = folder, section["template"] or named["template"]
    size = 0 if named["path"] else named["new"]["vocab_size"]
    views.setdefault(mark, Unread(size))
    view_of[key] = list(views).index(mark)
  return Tokenizers(list(views.values()), view_of, {}, {})


def _tokenizer(key, folder, section, workdir, pairs, made, say):
  """As it stands in its folder, or trained here: then it is in `made` too."""
  trained = pathlib.Path(workdir) / f"tokenizer-{key}"
  if folder:
    return load_tokenizer(folder)
  if trained.is_dir():
    return load_tokenizer(trained)
  new = section["new"]
  say(f"training the {new['tokenizer']} tokenizer of {key}")
  texts = (text for pair in pairs for text in formats.texts(pair))
  made[trained.name] = train_tokenizer(
    texts, kind=new["tokenizer"], vocab_size=new["vocab_size"]
  )
  return made[trained.name]
