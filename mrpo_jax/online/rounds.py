# SPDX-License-Identifier: Apache-2.0
"""Files of the rounds of an online run: what was said, and figures.

`rounds/<n>/pairs.jsonl` is a data set that can be trained on alone, and
`rounds/<n>/rollouts.jsonl` what losses of tokens are trained on;
`rounds/<n>/round.json` beside them says what the round was.
"""

import logging

from mrpo_jax import files, processes
from mrpo_jax.errors import (
  InputError,
  StoppedRun,
  first_line,
  says_nothing_of_content,
)

logger = logging.getLogger(__name__)

FOLDER, RECORD = "rounds", "round.json"


class Rounds:
  """The folder of the rounds of one run."""

  def __init__(self, workdir, mark, kind):
    """Reads nothing yet.

    Args:
      workdir: folder of the run.
      mark: a text by which the run's own rounds are known.
      kind: class of what a line stands for, `pairs.Pair` say: `FILE` is the
        name of its file, `line(round)` makes a line, `of(line)` reads one.
    """
    self._folder, self._mark = files.path_of(workdir) / FOLDER, mark
    self._kind = kind

  def read(self, number):
    """(entries, figures) of a round that was written whole; None of another.

    Raises:
      InputError: its files are not as they were written.
    """
    record = processes.first(lambda: self._record(number))
    if record is not None and record.get("run") != self._mark:
      logger.warning(
        f"warning: {self._folder / str(number)} is of other settings; the "
        "round is made anew"
      )
      record = None
    return None if record is None else self._entries(number, record)

  def _entries(self, number, record):
    path = self._folder / str(number) / self._kind.FILE
    lines = processes.first(lambda: files.read_lines(path))
    return [self._kind.of(line) for line in lines], record["figures"]

  def _record(self, number):
    """The JSON of a round; None without one.

    Raises:
      InputError: it, or the file beside it, is not as it was written.
    """
    folder = self._folder / str(number)
    if not (folder / RECORD).is_file():
      return None
    try:
      record = files.read_json(folder / RECORD)
      digest = files.sha256_of(folder / self._kind.FILE)
      if (record["round"], record["sha256"]) != (number, digest):
        raise ValueError(f"{self._kind.FILE} is another")
      if not isinstance(record["figures"], dict):
        raise ValueError("it has no figures")
      return record
    except (InputError, KeyError, TypeError, ValueError, OSError) as error:
      if says_nothing_of_content(error):
        raise
      raise InputError(
        f"{folder} is not as it was written ({first_line(error)}); put its "
        "files back, or remove it, and the newest checkpoints if the run "
        "stands within that round"
      ) from None

  def require(self, number, step):
    """`read` of the round within which the run stands.

    Raises:
      StoppedRun: it is not there: the policy that said it is no more.
    """
    record = processes.first(lambda: self._record(number))
    if record is None:
      raise StoppedRun(
        f"the run stands at step {step}, within round {number}, whose "
        f"{self._kind.FILE} is not in {self._folder / str(number)}; put it "
        "back, or start anew in another --workdir"
      )
    # Whatever has changed since, it was this run's policy that said it.
    return self._entries(number, record)

  def write(self, number, entries, figures):
    """The whole of a round, in the place of what stood there."""
    if processes.is_first():
      folder = self._folder / str(number)
      if folder.exists():
        files.remove_folder(folder)
      files.make_folder(self._folder)
      with files.new_folder(folder) as partial:
        lines = [one.line(number) for one in entries]
        files.write_lines(partial / self._kind.FILE, lines)
        self._write_record(partial, number, figures)
    processes.gather(None)  # it stands there for all

  def note(self, number, figures):
    """All figures of a round that stands there, in the place of its own."""
    if processes.is_first():
      self._write_record(self._folder / str(number), number, figures)

  def _write_record(self, folder, number, figures):
    record = {
      "run": self._mark,
      "round": number,
      "sha256": files.sha256_of(folder / self._kind.FILE),
      "figures": figures,
    }
    files.write_json(folder / RECORD, record)
