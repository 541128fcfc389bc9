# SPDX-License-Identifier: Apache-2.0
"""A file of judgements, a line each, which a killed command goes on with.

judgements.jsonl.run.json beside it says which judge and which answers its lines
are of.  None is asked for twice; a model that is added later is judged beside
what stands there.
"""

import logging

from mrpo_jax import files
from mrpo_jax.errors import InputError
from mrpo_jax.external import Withdrawn
from mrpo_jax.progress import appended
from mrpo_jax.runs.workdir import differences

logger = logging.getLogger(__name__)

# By which a judgement is known, and what each of them is.
KINDS = {"first": str, "second": str, "index": int, "sample": int}
KEYS = tuple(KINDS)


class Judgements:
  """What a file of judgements holds: {KEYS: preference}."""

  def __init__(self, path, judge, prompts):
    """Reads what is there.

    Args:
      path: of the file.
      judge: of evaluation.judges.
      prompts: SHA-256 of their file.

    Raises:
      InputError: it is of another judge or other prompts, or is damaged.
    """
    self._path, self._judge = path, judge
    self._beside = path.with_name(f"{path.name}.run.json")
    self._record = {
      "judge": judge.name,
      "judge_script": judge.script,
      "prompts": prompts,
      "answers": {},
    }
    self._known = {}
    if self._beside.is_file():
      there = files.read_json(self._beside)
      answers = there.get("answers", {})
      if not isinstance(answers, dict):
        raise InputError(
          f"{self._beside}: 'answers' is not as it was written; remove it and "
          f"{path.name}"
        )
      self._record["answers"] = answers
      # Of before it was recorded, nobody knows.
      there.setdefault("judge_script", judge.script)
      self._refuse_other(self._record, there)
      files.cut_half_line(path)
      self._known = dict(self._read())
      # One that was added, and never judged, may still say something else.
      judged = {name for key in self._known for name in key[:2]}
      self._record["answers"] = {
        name: mark for name, mark in answers.items() if name in judged
      }
    elif path.exists() and path.stat().st_size:
      raise InputError(
        f"{path} exists, and no {self._beside.name} beside it says of what it "
        "is; remove it or name another folder"
      )

  def _refuse_other(self, here, there):
    found = [str(one) for one in differences(here, there)]
    if found:
      raise InputError(
        f"{self._path} holds judgements of others: {'; '.join(found)}; name "
        f"another folder, or remove it and {self._beside.name}"
      )

  def _read(self):
    for number, line in enumerate(files.read_lines(self._path), 1):
      value = line.get("preference")
      wrong = [
        key for key, kind in KINDS.items() if type(line.get(key)) is not kind
      ]
      if type(value) is not float or not 1 <= value <= 2:
        wrong.append("preference")
      if wrong:
        raise InputError(
          f"{self._path} line {number}: {wrong[0]!r} is not as it was written; "
          f"remove the file and {self._beside.name}"
        )
      yield tuple(line[key] for key in KEYS), value

  def of(self, responses, requests):
    """The preference of each request, judged where none is known.

    Args:
      responses: list of responses.Responses.
      requests: {tuple of KEYS: request of evaluation.judges}.

    Raises:
      InputError: the judge fails, or a known model has other responses now.
    """
    answers = {one.name: one.fingerprint for one in responses}
    known = self._record["answers"]
    here = {name: mark for name, mark in answers.items() if name in known}
    self._refuse_other(
      {"answers": here}, {"answers": {name: known[name] for name in here}}
    )
    todo = {key: one for key, one in requests.items() if key not in self._known}
    if todo:
      self._record["answers"] = known | answers
      files.write_json(self._beside, self._record)
      self._ask(todo, len(requests))
    return [self._known[key] for key in requests]

  def _ask(self, todo, total):
    done = total - len(todo)
    if done:
      logger.info(f"{self._path} holds {done} of {total} judgements; going on")
    try:
      self._answers(todo, done)
    finally:
      if not self._known:
        self._path.unlink(missing_ok=True)
        self._beside.unlink()

  def _answers(self, todo, done):
    """Asks, and writes what is answered, a line at a time."""

    def line_of(asked, answer):
      key, request = asked
      order = {"order": request["order"]}
      return dict(zip(KEYS, key, strict=True)) | order | answer

    answers = appended(
      self._path,
      self._judge([*todo.values()]),
      [*todo.items()],
      line_of,
      title="judging",
      unit="judgements",
      done=done,
    )
    try:
      for (key, _), answer in answers:
        self._known[key] = answer["preference"]
    except Withdrawn:
      self._known = {
        key: one for key, one in self._known.items() if key not in todo
      }
      raise
