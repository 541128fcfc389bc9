# SPDX-License-Identifier: Apache-2.0
"""YAML of a config: text to a nested dict and back, by YAML 1.2's words.

PyYAML reads YAML 1.1, in which 1e-5 is a text, no a boolean, 010 eight, 1:30
ninety and 2026-01-01 a date.  Here a scalar is null, true or false, a number as
Python writes it, or a text; a key may stand once; and aliases and
tags, by which a text could be of any size or kind, are refused.
"""

import re

import yaml

WORDS = {  # kind of a scalar: (its pattern, how it may begin)
  "null": (r"null|Null|NULL|~|", ("n", "N", "~", "")),
  "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
  "int": (r"[-+]?[0-9]+", "-+0123456789"),
  "float": (
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "-+.0123456789",
  ),
}
RESOLVERS = {  # by a scalar's first letter, as PyYAML has them
  letter: [
    (f"tag:yaml.org,2002:{kind}", re.compile(f"^(?:{pattern})$"))
    for kind, (pattern, letters) in WORDS.items()
    if letter in letters
  ]
  for letter in {letter for _, letters in WORDS.values() for letter in letters}
}


class _Loader(yaml.SafeLoader):
  yaml_implicit_resolvers = RESOLVERS

  def compose_node(self, parent, index):
    event = self.peek_event()
    problem = None
    if isinstance(event, yaml.AliasEvent):
      problem = "aliases are not read"
    elif event.tag is not None:
      problem = f"tags like {event.tag!r} are not read"
    if problem:
      raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
    return super().compose_node(parent, index)

  def construct_mapping(self, node, deep=False):
    seen = set()
    for key, _ in node.value:
      problem = None
      if not key.tag.endswith(":str"):
        problem = "a key must be a text"
      elif key.value in seen:
        problem = f"the key {key.value!r} stands there twice"
      if problem:
        raise yaml.constructor.ConstructorError(
          None, None, problem, key.start_mark
        )
      seen.add(key.value)
    return super().construct_mapping(node, deep=deep)

  def construct_yaml_int(self, node):
    return int(self.construct_scalar(node))  # 010 is ten


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


class _Dumper(yaml.SafeDumper):
  # Texts are quoted that either version would take for something else.
  yaml_implicit_resolvers = {
    letter: [
      *RESOLVERS.get(letter, []),
      *yaml.SafeDumper.yaml_implicit_resolvers.get(letter, []),
    ]
    for letter in {*RESOLVERS, *yaml.SafeDumper.yaml_implicit_resolvers}
  }

  def ignore_aliases(self, data):
    return True


def parsed(text):
  """What a text in YAML says.

  >>> parsed("peak_lr: 1e-5\\nname: no\\nsteps: 010")
  {'peak_lr': 1e-05, 'name': 'no', 'steps': 10}

  Raises:
    yaml.YAMLError: it is none; says where.
  """
  return yaml.load(text, _Loader)  # a safe one


def written(values):
  """The text that `parsed` reads as these values.

  >>> print(written({"loss": {"name": "dpo", "beta": 1e-05}, "eval": ""}))
  loss:
    name: dpo
    beta: 1.0e-05
  eval: ''
  <BLANKLINE>
  """
  return yaml.dump(values, Dumper=_Dumper, sort_keys=False)
