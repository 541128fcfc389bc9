# SPDX-License-Identifier: Apache-2.0
"""The study of disagreement: labels by hand, and the page of tiny models."""

import re
import types

import numpy as np
import pytest

from docs.studies.disagreement import labels, page, scores, study
from docs.studies.grid.models import STARTS
from mrpo_jax import files
from mrpo_jax.errors import InputError
from tests.material.runs import files_of, on_one_device


def judged(number, verdicts, words=3):
  return {
    "instruction": f"say {number}",
    "input": "now" if number % 2 else "",
    "response1": " ".join(["yes"] * words),
    "response2": False if number == 1 else "no",
    **{f"annotator{n}": one for n, one in enumerate(verdicts, 1)},
  }


def ranked(number, verdicts):
  said = [f"answer {letter} to {number}" for letter in "abcd"]
  return {
    "question": f"what is {number}?",
    "predictions": said,
    "preference": verdicts,
  }


@pytest.fixture(scope="module")
def given(tmp_path_factory):
  """Files of labels."""
  folder = tmp_path_factory.mktemp("labels")
  said = [(1, 1, 1), (1, 1, 2), (0, 0, 0), (2, 2, 0), (2, 2, 2), (1, 2, 2)]
  pandalm = [judged(n, one, 2 + n) for n, one in enumerate(said)]
  pandalm.append(judged(6, (1, 1, 1), words=0))  # no response: dropped
  ties = [[1] * 6, [0, 1, 1, 2, 2, 2], [0, 0, 0, 1, 1, 1], [2, 2, 2, 0, 0, 1]]
  files.write_lines(folder / "pandalm.jsonl", pandalm)
  files.write_lines(
    folder / "qa.jsonl", [ranked(n, one) for n, one in enumerate(ties)]
  )
  return folder


@pytest.mark.parametrize(
  "said,disagreement,undecided",
  [
    ([1, 1, 1], 0, 0),
    ([0, 0, 0], 0, 1),  # all agree that neither is better
    ([1, 2, 2], 2 / 3, 2 / 3),
    ([0, 2, 2], 2 / 3, 1 / 3),
    ([0, 1, 2], 1, 1),
  ],
)
def test_measures_by_hand(said, disagreement, undecided):
  assert labels.disagreement(said) == pytest.approx(disagreement)
  assert labels.undecided(said) == pytest.approx(undecided)


def test_labels_are_read_as_they_stand(given):
  found = labels.pandalm(given / "pandalm.jsonl")
  assert [one.prompt for one in found.items[:2]] == ["say 0", "say 1\n\nnow"]
  assert found.items[1].responses == ("yes yes yes", "False")
  assert labels.counts(found.items, "disagreement") == {0: 4, 0.667: 3}
  found = labels.qa_feedback(given / "qa.jsonl")
  shares = [one.measures["ties"] for one in found.items]
  assert shares == pytest.approx([0, 1 / 6, 1 / 2, 1 / 3])
  rows = [*found.items[0].rows()]
  assert [row["chosen"][0]["content"][7] for row in rows] == ["a", "c"]
  assert [row["rejected"][0]["content"][7] for row in rows] == ["b", "d"]


def test_a_file_of_other_rows_is_refused(given, tmp_path):
  with pytest.raises(InputError, match=r"qa\.jsonl line 1: no row of PandaLM"):
    labels.pandalm(given / "qa.jsonl")
  (tmp_path / "none.jsonl").write_text("")
  with pytest.raises(InputError, match="no row of QA-Feedback"):
    labels.qa_feedback(tmp_path / "none.jsonl")


def test_dispersion_of_four_responses_is_that_of_their_mean():
  item = labels.Item("", ("a", "b", "c", "d"), {})
  four = labels.Labels("", "", "", "", [item, item])
  shares = {0: (0.1, 0.2), 1: (0.3, 0.4), 2: (0.5, 0.5)}  # row 3 was dropped
  found = scores.of_items(shares, {0: 5, 1: 7, 2: 1}, four)
  assert found.places == [0]
  np.testing.assert_allclose(found.neg_log_dispersion, [-np.log(0.25)], 1e-6)
  assert found.tokens.tolist() == [12]


@pytest.mark.parametrize(
  "intervals,said",
  [
    ([(-0.3, -0.1), (-0.2, -0.01)], "**holds**"),
    ([(-0.09, 0.1), (-0.05, 0.3)], "**does not hold**"),
    ([(-0.3, -0.1), (-0.2, 0.01)], "**cannot be told at this size**"),
  ],
)
def test_the_verdict_wants_certain_models_where_people_agree(intervals, said):
  assert page.verdict(intervals) == said


@pytest.fixture(scope="module")
def finished(tmp_path_factory, programs, inputs, given):
  """(folder of the page, labels, scores) of a study that was done."""
  workdir = tmp_path_factory.mktemp("disagreement")
  to = workdir / "page"
  for folder in (to, workdir / "models"):
    folder.mkdir()
  for name, model in zip(STARTS, ("base", "second"), strict=True):
    (workdir / "models" / name).symlink_to(inputs / model)
  both = (
    labels.pandalm(given / "pandalm.jsonl"),
    labels.qa_feedback(given / "qa.jsonl"),
  )
  with on_one_device():
    study.study(workdir, both, to=to)
    before = files_of(workdir / "store")
    study.study(workdir, both, to=to)
    assert files_of(workdir / "store") == before  # nothing is scored twice
    base = workdir / "models" / STARTS[0]
    found = scores.score_labels(workdir, STARTS[0], base, both)
  yield to, both, found


@pytest.mark.slow
def test_the_page_has_the_correlations_of_what_was_scored(finished):
  to, both, found = finished
  text = (to / "disagreement.md").read_text()
  rows = re.findall(r"^\| sft-base \| (.*) \|$", text, re.MULTILINE)
  verdict, *sections = [row.split(" | ") for row in rows]
  for place, (one, its) in enumerate(zip(both, found, strict=True)):
    human = [one.items[n].measures[one.measure] for n in its.places]
    rank = types.SimpleNamespace(
      x=np.argsort(np.argsort(its.neg_log_dispersion)) + 1.0,
      y=np.array([np.mean(np.flatnonzero(np.sort(human) == h)) for h in human]),
    )
    rho = np.corrcoef(rank.x, rank.y)[0, 1]
    assert verdict[place].startswith(f"{rho:+.3f} [")
    assert sections[place][0] == str(len(its.places))
    assert sections[place][3].startswith(f"{rho:+.3f} [")
  assert [len(its.places) for its in found] == [6, 4]  # one has no response


@pytest.mark.slow
def test_two_models_of_one_name_are_refused(finished, inputs, tmp_path):
  _, both, _ = finished
  with pytest.raises(InputError, match="name of another model"):
    study.study(tmp_path, both, [inputs / "base", inputs / "base"])
