# SPDX-License-Identifier: Apache-2.0
"""How samples are drawn: by flags, or by a model's generation_config.json."""

import logging
import math

from mrpo_jax.errors import InputError
from mrpo_jax.generation import Sampling
from mrpo_jax.hub import folder as files_of

logger = logging.getLogger(__name__)

NAMES = (
  *("temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
  *("max_new_tokens", "min_new_tokens"),
)
WHOLE = ("top_k", "max_new_tokens", "min_new_tokens")
# Keys of which we can do this alone, beside null: they change nothing then.
ALONE = {
  **dict.fromkeys(("num_beams", "num_beam_groups", "guidance_scale"), 1),
  "num_return_sequences": 1,
  **dict.fromkeys(("typical_p", "encoder_repetition_penalty"), 1),
  **dict.fromkeys(("penalty_alpha", "epsilon_cutoff", "eta_cutoff"), 0),
  **dict.fromkeys(("no_repeat_ngram_size", "diversity_penalty"), 0),
  **dict.fromkeys(("encoder_no_repeat_ngram_size", "min_length"), 0),
  **dict.fromkeys(("constraints", "force_words_ids", "bad_words_ids"), []),
  **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), []),
  **dict.fromkeys(("sequence_bias", "watermarking_config"), {}),
  **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id"), None),
  **dict.fromkeys(("exponential_decay_length_penalty", "max_time"), None),
  **dict.fromkeys(("dola_layers", "top_h", "stop_strings"), None),
  **dict.fromkeys(("token_healing",), False),
}


def sampling_of(given, model=None, generation_config=False):
  """The Sampling that is asked for.

  Args:
    given: {name of a flag: its value, None where it was not given}.
    model: the model's model.InferenceModel.
    generation_config: does its file of that name count for what was not given?

  Raises:
    InputError: a value is out of range, or that file asks for what is not done
      here.
  """
  asked = {name: one for name, one in given.items() if one is not None}
  folder = model.folder if generation_config else None
  if generation_config and not folder:
    raise InputError(
      f"--generation_config: {model.name} was made without such a file"
    )
  taken = _of_file(folder, asked) if folder else {}
  try:
    return Sampling(**taken, **asked)
  except ValueError as error:  # "temperature=-1 is out of range"
    name = str(error).partition("=")[0]
    where = f"{folder}/{files_of.GENERATION}: " if name in taken else "--"
    raise InputError(f"{where}{error}") from None


def _of_file(folder, asked):
  """What counts of generation_config.json, and says so."""
  where, values = (
    f"{folder}/{files_of.GENERATION}",
    files_of.generation_config(folder),
  )
  values = {key: one for key, one in values.items() if one is not None}
  for key, harmless in ALONE.items():
    if key in values and values[key] != harmless:
      raise InputError(
        f"{where}: {key}={values[key]!r} is not done here; leave out "
        "--generation_config, or that key"
      )
  if "max_length" in values and not {"max_new_tokens"} & {*values, *asked}:
    raise InputError(
      f"{where}: max_length={values['max_length']!r} counts the prompt, too, "
      "which is not done here; give --max_new_tokens"
    )
  found = {name: values[name] for name in NAMES if name in values}
  if not isinstance(values.get("do_sample", True), bool):
    raise InputError(
      f"{where}: do_sample={values['do_sample']!r} is neither true nor false"
    )
  if values.get("do_sample") is False:
    found["temperature"] = 0.0
  for name, value in found.items():
    if type(value) not in (int, float):
      raise InputError(f"{where}: {name}={value!r} is no number")
    if name in WHOLE:
      if not math.isfinite(value) or value != int(value):
        raise InputError(f"{where}: {name}={value!r} is no whole number")
      found[name] = int(value)
  taken = {name: one for name, one in found.items() if name not in asked}
  said = ", ".join(f"{name}={one}" for name, one in taken.items())
  logger.info(f"of {where}: {said or 'nothing'}")
  return taken
