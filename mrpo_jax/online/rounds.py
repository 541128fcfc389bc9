# SPDX-License-Identifier: Apache-2.0
"""Files of the rounds of an online run: what was said, and figures.

`rounds/<n>/pairs.jsonl` is a data set that can be trained on alone, and
`rounds/<n>/rollouts.jsonl` what losses of tokens are trained on;
`rounds/<n>/round.json` beside them says what the round was.
"""

import logging
import pathlib
import shutil

from mrpo_jax import files, processes
from mrpo_jax.errors import InputError, StoppedRun

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
    self._folder, self._mark = pathlib.Path(workdir) / FOLDER, mark
    self._kind = kind

  def read(self, number):
    """(entries, figures) of a round that was written whole; None of another.

    Raises:
      InputError: its files are not as they were written.
    """
    record = processes.first(lambda: self._record(number))
    if record is None:
      return None
    path = self._folder / str(number) / self._kind.FILE
    try:
      lines = processes.first(lambda: files.read_lines(path))
      if len(lines) != record["entries"]:
        raise ValueError(f"{len(lines)} lines, not {record['entries']}")
      return [self._kind.of(line) for line in lines], record["figures"]
    except (KeyError, TypeError, ValueError, OSError) as error:
      raise InputError(
        f"{path} is not as it was written ({error}); remove {path.parent}, and "
        "the newest checkpoints if the run stands within that round"
      ) from None

  def _record(self, number):
    path = self._folder / str(number) / RECORD
    if not path.is_file():
      return None
    record = files.read_json(path)
    if record.get("run") != self._mark:
      logger.warning(
        f"warning: {path.parent} is of another run, or of other settings; the "
        "round is made anew"
      )
      return None
    return record

  def require(self, number, step):
    """`read` of the round within which the run stands.

    Raises:
      StoppedRun: it is not there: the policy that said it is no more.
    """
    found = self.read(number)
    if found is None:
      raise StoppedRun(
        f"the run stands at step {step}, within round {number}, whose "
        f"{self._kind.FILE} is not in {self._folder / str(number)}; put it "
        "back, or start anew in another --workdir"
      )
    return found

  def write(self, number, entries, figures):
    """The whole of a round, in the place of what stood there."""
    if processes.is_first():
      folder = self._folder / str(number)
      if folder.exists():
        shutil.rmtree(folder)
      self._folder.mkdir(parents=True, exist_ok=True)
      record = self._recorded(entries, figures)
      with files.new_folder(folder) as partial:
        files.write_lines(
          partial / self._kind.FILE, [one.line(number) for one in entries]
        )
        files.write_json(partial / RECORD, record)
    processes.gather(None)  # it stands there for all

  def note(self, number, entries, figures):
    """The figures of a round that stands there, in the place of those before.

    Args:
      number: of the round.
      entries: of it.
      figures: all of them.
    """
    if processes.is_first():
      path = self._folder / str(number) / RECORD
      files.write_json(path, self._recorded(entries, figures))

  def _recorded(self, entries, figures):
    return {"run": self._mark, "entries": len(entries), "figures": figures}
