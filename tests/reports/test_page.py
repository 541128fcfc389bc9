# SPDX-License-Identifier: Apache-2.0
"""report.html: what it shows, what it never does, and of what it is made."""

import errno
import html.parser
import importlib.util
import os
import re
import time

import numpy as np
import pytest

from mrpo_jax import cli, files
from mrpo_jax.reports import report as reports
from mrpo_jax.reports.comparison import compared
from mrpo_jax.reports.gather import gather
from mrpo_jax.reports.page import page as pages
from mrpo_jax.reports.page.benchmarks import benchmarks
from mrpo_jax.reports.page.curves import MOST, curve
from mrpo_jax.reports.page.markup import VOID, Html, escaped, tag
from mrpo_jax.reports.page.plots import style_of, svg
from mrpo_jax.reports.page.samples import figures_of, repetition
from tests.material.reported import ODD, make_study

ODD_REFERENCE = "eval/references/a,b/margin"
STDERR = "eval/a/acc_stderr,none"


class Page(html.parser.HTMLParser):
  """Elements and text of a page."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.text, self._open = [], [], []
    self._texts = []  # (name of the element, text)
    self._rows = []  # of tables, the text of each cell
    self.feed(text)

  def handle_starttag(self, name, attributes):
    self.elements.append((name, dict(attributes)))
    if name == "tr":
      self._rows.append([])
    elif name in ("th", "td"):
      self._rows[-1].append("")
    if name not in VOID:
      self._open.append(name)

  def handle_endtag(self, name):
    assert self._open.pop() == name

  def handle_data(self, data):
    self.text.append(data)
    if {"th", "td"} & {*self._open}:
      self._rows[-1][-1] += data
    self._texts.append((self._open[-1] if self._open else "", data))

  def texts(self, name):
    """The texts that stand in elements of that name."""
    return [text.strip() for where, text in self._texts if where == name]

  def rows(self):
    """The texts of each row's cells, without the header."""
    return self._rows[1:]

  def shows(self, text):
    return " ".join(text.split()) in " ".join("".join(self.text).split())


@pytest.fixture(scope="module")
def study(shared):
  return shared("study", make_study)


@pytest.fixture(scope="module")
def text(study):
  return pages.page("study", compared(study))


@pytest.fixture(scope="module")
def page(text):
  return Page(text)


def test_every_section_is_there(page):
  ids = [one.get("id") for name, one in page.elements if name == "section"]
  assert ids == [
    *("summary", "warnings", "runs", "differences", "curves", "mixture"),
    *("benchmarks", "samples", "configs"),
  ]
  targets = [one.get("href") for name, one in page.elements if name == "a"]
  assert targets == [f"#{one}" for one in ids]


def test_every_plot_has_a_title_that_is_read_aloud(page):
  plots = [one for name, one in page.elements if name == "svg"]
  ids = [one["id"] for _, one in page.elements if "id" in one]
  assert len(plots) > 10 and len(ids) == len({*ids})
  for one in plots:
    assert one["role"] == "img" and one["viewbox"]
    assert {*one["aria-labelledby"].split()} <= {*ids}
  used = re.findall(r"url\(#(.+?)\)", str(page.elements))
  assert used and {*used} <= {*ids}


def test_what_samples_and_configs_say_is_text(page, text):
  names = {name for name, _ in page.elements}
  assert names.isdisjoint({"script", "img", "iframe", "object", "base", "form"})
  for _, attributes in page.elements:
    assert not [key for key in attributes if key.startswith("on")]
  assert page.shows(ODD.replace("\u202e", "\ufffd"))
  assert "\u202e" not in text and "&lt;script&gt;" in text


def test_nothing_is_loaded_from_elsewhere(page, text):
  assert "http:" not in text and "https:" not in text and "@import" not in text
  for name, attributes in page.elements:
    assert not {"src", "srcset", "data", "action"} & {*attributes}, name
    assert attributes.get("href", "#").startswith("#")
  policy = [one for _, one in page.elements if one.get("http-equiv")]
  assert policy[0]["content"].startswith("default-src 'none'")


def test_references_have_other_colours_than_series(text):
  figures = re.findall(r'<figure class="plot">.*?</figure>', text, re.DOTALL)
  mixed = [one for one in figures if 'aria-labelledby="mixture-' in one]
  curves = [one for one in figures if 'aria-labelledby="curve-' in one]
  used, of_series = (
    {*re.findall(r"--c\d", "".join(some))} for some in (mixed, curves)
  )
  assert len(used) == len(of_series) == 2 and not used & of_series


def test_names_of_runs_are_text_too(tmp_path):
  make_study(tmp_path / "<b onclick=x>&", seeds=1)
  page = Page(pages.page("<i>", compared(tmp_path)))
  assert not [one for _, one in page.elements if "onclick" in one]
  assert page.shows("<b onclick=x>&/loss.name=dpo,seed=0")


def test_names_are_no_formulas_and_none_is_left_out_of_a_plot(tmp_path):
  make_study(tmp_path, seeds=1)
  (tmp_path / "loss.name=mrpo,seed=0").rename(tmp_path / "z$b_{$c")
  for old, new in ("base", "_base"), ("second", "$x^{$"):
    for name in ("config.json", "metrics.jsonl"):
      path = tmp_path / "z$b_{$c" / name
      path.write_text(path.read_text().replace(old, new))
  page = Page(pages.page("study", compared(tmp_path)))
  texts = page.texts("text")
  assert "z$b_{$c" in texts
  # The legends of both plots of the mixture.
  assert texts.count("_base") == texts.count("$x^{$") == 2


def test_each_comparison_says_n_interval_and_test(page):
  assert page.shows("Difference to loss.name=dpo (3 seeds) on the same")
  assert page.shows("paired bootstrap: prompts are drawn with all their pairs")
  assert page.shows("exact sign test on the accuracy of prompts")
  assert page.shows("n = 60 held-out pairs")
  assert page.shows("ranks nothing")


def test_the_page_is_the_same_each_time(study, text):
  assert pages.page("study", compared(study)) == text
  assert len(text) < 500_000


def test_a_run_without_two_references_has_no_mixture(page, study):
  rows = "".join(page.text)
  assert "share of the mixture" in rows
  for name in ("base", "second"):
    assert f"loss.name=mrpo (3 seeds){name}" in rows
  assert "loss.name=dpo (3 seeds)base" not in rows


def test_what_looks_wrong_with_references_is_a_warning(study, tmp_path):
  make_study(tmp_path, seeds=1)
  path = tmp_path / "loss.name=mrpo,seed=0" / "metrics.jsonl"
  lines = files.read_lines(path)
  for line in lines[1:]:
    line["references/second/margin"] = 5000.0
  files.write_lines(path, lines)
  page = Page(pages.page("study", compared(tmp_path)))
  assert page.shows("the margins of reference 'second' have a root mean square")
  both = "loss.name=dpo,seed=0, loss.name=mrpo,seed=0: holds no checkpoint"
  assert page.shows(both)


def test_a_text_after_a_figure_ends_no_report(tmp_path):
  make_study(tmp_path, seeds=1)
  path = tmp_path / "loss.name=mrpo,seed=0" / "metrics.jsonl"
  lines = files.read_lines(path)
  lines[1] |= {"references/second/margin": 5000.0}
  lines[2:] = [{**one, "references/second/margin": "x"} for one in lines[2:]]
  files.write_lines(path, lines)
  page = Page(pages.page("study", compared(tmp_path)))
  assert page.shows("the margins of reference 'second' have a root mean square")
  assert page.shows("29 figures of metrics.jsonl are no finite numbers")


def test_warnings_of_many_lines_are_found_in_one_pass(tmp_path):
  make_study(tmp_path, seeds=1)
  run = gather(tmp_path)[0][1]
  figures = {f"references/second/distance/{n}": 1.0 for n in range(30)}
  run.lines[:] = [{"step": step, **figures} for step in range(2000)]
  begun = time.process_time()
  pages.reference_warnings(run)
  assert (
    time.process_time() - begun < 1.0
  )  # 0.01 s; looking at all for each: 30


def shown(series):
  return Page(escaped(benchmarks(series)))


def test_benchmarks_are_named_by_a_comma_and_shown_at_their_steps(tmp_path):
  make_study(tmp_path, seeds=1)
  (first, second), _ = gather(tmp_path)
  for run, steps in ((first, (0, 5, 30)), (second, (15,))):
    run.lines[:] = [
      {"step": s, "eval/a/acc,none": s / 100, "eval/new/head": 1} for s in steps
    ]
  page = shown({"x": [first], "y": [second]})
  assert page.texts("th") == ["run", "benchmark", "first", "last", "x", "y"]
  assert page.rows() == [
    ["x", "a/acc,none", "0.000 before training", "0.300 step 30"],
    ["y", "a/acc,none", "", "0.150 step 15"],
  ]
  (row,) = shown({"x": [first, second]}).rows()
  assert row[3] == "0.225 [0.150, 0.300] step 15, 30"
  for run in (first, second):
    run.lines[:] = [{"step": 1, "eval/new/head": 1, ODD_REFERENCE: 1.0}]
  assert benchmarks({"x": [first, second]}) is None


def test_a_benchmark_has_its_standard_error_beside_it(tmp_path):
  make_study(tmp_path, seeds=1)
  (first, second), _ = gather(tmp_path)
  for run, error in ((first, 0.02), (second, 0.04)):
    run.lines[:] = [{"step": 3, "eval/a/acc,none": 0.5, STDERR: error}]
  (row,) = shown({"x": [first]}).rows()
  assert row == ["x", "a/acc,none", "", "0.500 ±0.020 step 3"]
  (row,) = shown({"x": [first, second]}).rows()
  assert row[3] == "0.500 ±0.030 [all agree] step 3"
  # One document has none; evaluation.limit may change within a run.
  steps = ({"step": 0}, *({"step": s, STDERR: s / 100} for s in (5, 6)))
  first.lines[:] = [{**one, "eval/a/acc,none": 0.5} for one in steps]
  (row,) = shown({"x": [first]}).rows()
  assert row[2:] == ["0.500 before training", "0.500 ±0.060 step 6"]


def test_benchmarks_say_what_was_asked_of_whom(tmp_path):
  make_study(tmp_path, seeds=1)
  (first, second), _ = gather(tmp_path)
  first.config["evaluation"] = {"limit": 20, "num_fewshot": 5}
  second.config["evaluation"] = {"apply_chat_template": True}
  second.config["policy"] = {"path": "/models/<b>"}
  page = shown({"x": [first], "y": [second]})
  want = "at most 20 documents of each task, 5 shots where a task does not fix"
  assert page.shows(f"x: the policy, {want} them, no chat template")
  assert page.shows(
    "y: the policy that starts as /models/<b>, all documents, shots as each "
    "task says, a chat template"
  )
  second.config.update(first.config)
  del second.config["policy"]
  assert shown({"x": [first], "y": [second]}).shows("x, y: the policy, at most")
  for odd in (None, 1, [], {"limit": [1], "num_fewshot": {}}):
    second.config["evaluation"] = odd
    assert benchmarks({"y": [second]})


def test_damaged_runs_are_said_and_the_page_comes(tmp_path):
  make_study(tmp_path, seeds=2)
  first, second, third, fourth = sorted(tmp_path.iterdir())
  (first / "metrics.jsonl").write_bytes(b'\x00\xff\n{"step": 1, "loss": {}}\n')
  (second / "eval_pairs.jsonl").unlink()
  content = files.read_json(third / "config.json")
  files.write_json(third / "config.json", {**content, "references": [1]})
  lines = files.read_lines(fourth / "metrics.jsonl")
  lines[0]["samples"] = [7, {"response": 3}, {"response": "said"}]
  lines[1]["samples"] = "none"
  files.write_lines(fourth / "metrics.jsonl", lines)
  text = reports.report(tmp_path)
  assert f"report: {tmp_path / 'report.html'}" in text
  page = Page((tmp_path / "report.html").read_text("utf-8"))
  assert page.shows(f"{first.name}: 1 lines of metrics.jsonl are no metrics")
  assert page.shows(f"not evaluated: {second.name}")
  assert page.shows(f"{third.name} is left out: config.references is no")
  assert page.shows("said")


def test_without_matplotlib_the_text_comes_and_says_so(
  study, tmp_path, monkeypatch
):
  make_study(tmp_path, seeds=1)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  text = reports.report(tmp_path)
  assert text.startswith("run  ")
  last = text.splitlines()[-1]
  assert "report.html is not written" in last and "mrpo-jax[plot]" in last
  assert sorted(path.name for path in tmp_path.glob("re*")) == ["results.json"]


@pytest.mark.parametrize("room", [0, 1])
def test_on_a_full_disk_the_report_of_before_stays_whole(
  tmp_path, monkeypatch, room, capsys
):
  make_study(tmp_path, seeds=1)
  reports.report(tmp_path)
  before = {path: path.read_bytes() for path in tmp_path.glob("re*")}
  assert len(before) == 2
  path = tmp_path / "loss.name=mrpo,seed=0" / "eval_pairs.jsonl"
  files.write_lines(path, files.read_lines(path)[:40])
  left = [None] * room

  def fsync(_):
    if not left:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    left.pop()

  monkeypatch.setattr(files.os, "fsync", fsync)
  assert cli.main(["report", f"--workdir={tmp_path}"]) == 1
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: the disk is full")
  assert {path: path.read_bytes() for path in tmp_path.glob("re*")} == before
  assert not [*tmp_path.glob(".*")]


# Of what it is made.


def test_markup_escapes_what_is_no_markup():
  assert tag("p", "a<b", [1, None], class_="x&y") == (
    '<p class="x&amp;y">a&lt;b1</p>'
  )
  assert tag("p", tabindex=0, value=0.0, title=None, hidden=False) == (
    '<p tabindex="0" value="0.0"></p>'
  )
  assert tag("a", Html("<b>"), hidden=True, title=None) == "<a hidden><b></a>"
  assert (
    escaped("a\x00\ud800\u202eb\n\u200dü") == "a\ufffd\ufffd\ufffdb\n\u200dü"
  )


def test_lines_differ_without_colour():
  styles = {(style_of(n).dashes, style_of(n).marker) for n in range(32)}
  assert len(styles) == 32


def test_numbers_in_a_plot_are_not_rounded():
  found = svg("x", "t", "a", lambda axes: axes.set_xticks([0.0125, 0.0375]))
  assert ">0.0125<" in found and ">0.0375<" in found
  assert not re.search(r' d="[^"]*\d\.\d{3}', found)
  assert "var(--ink)" in found and "#0a0" not in found


def test_a_curve_is_the_mean_of_seeds_between_the_least_and_the_largest(
  tmp_path,
):
  make_study(tmp_path, seeds=2)
  runs, _ = gather(tmp_path)
  runs = runs[:2]
  for run, values in zip(runs, ((1.0, 2.0), (3.0, 5.0)), strict=True):
    run.lines[:] = [{"step": s, "x": v} for s, v in enumerate(values, 1)]
  runs[1].lines.append({"step": 3, "x": 7.0})  # only one has come so far
  step, mean, low, high = curve(runs, "x")
  np.testing.assert_array_equal(step, [1, 2, 3])
  np.testing.assert_array_equal(mean, [2.0, 3.5, 7.0])
  np.testing.assert_array_equal(low, [1.0, 2.0, 7.0])
  np.testing.assert_array_equal(high, [3.0, 5.0, 7.0])
  assert curve(runs, "y") is None
  runs[0].lines[:] = [{"step": s, "x": s} for s in range(1000)]
  assert len(curve(runs[:1], "x")[0]) == MOST


def test_repetition_by_hand():
  # Of the five sequences of four words the last is the first again.
  assert repetition("a b c d a b c d") == pytest.approx(1 / 5)
  assert repetition("a b c") == repetition("") == 0.0
  assert repetition("a " * 10) == pytest.approx(6 / 7)
  found = figures_of(
    [
      {"response": "abcd", "tokens": 2, "finish": "stop"},
      {"response": "ab", "tokens": 4, "finish": "length"},
    ]
  )
  assert found == dict(tokens=3.0, characters=3.0, repetition=0.0, ended=0.5)


def test_answers_stand_below_the_prompt_that_they_answer(tmp_path):
  make_study(tmp_path, seeds=1)
  path = tmp_path / "loss.name=mrpo,seed=0" / "metrics.jsonl"
  lines = files.read_lines(path)
  for one in (one for line in lines for one in line.get("samples", ())):
    one["prompt"] = f"Another file's prompt {one['index']}"
  files.write_lines(path, lines)
  text = pages.page("study", compared(tmp_path))
  articles = re.findall("<article.*?</article>", text, re.DOTALL)
  assert len(articles) == 6
  for article in articles:
    is_other = "Another file" in article
    assert ("loss.name=mrpo,seed=0, " in article) == is_other
    assert ("loss.name=dpo,seed=0, " in article) != is_other


def test_a_run_without_others_is_compared_with_none(tmp_path):
  make_study(tmp_path, seeds=1)
  alone = Page(pages.page("run", compared(tmp_path / "loss.name=dpo,seed=0")))
  assert not alone.shows("the others are compared with this one")
  path = tmp_path / "loss.name=mrpo,seed=0" / "config.json"
  config = files.read_json(path)
  files.write_json(path, config | {"identity": {"data.eval": "y"}})
  apart = Page(pages.page("study", compared(tmp_path)))
  assert not apart.shows("the others are compared with this one")
  assert "nothing is compared with this one" in apart.text


@pytest.mark.parametrize(
  "interval,words",
  [
    ([0.01, 0.03], "better than dpo: accuracy +0.020 [+0.010, +0.030]"),
    ([-0.01, 0.05], "not told apart from dpo: "),
    ([0.0, 0.04], "not told apart from dpo: "),
    ([-0.03, -0.01], "worse than dpo: "),
  ],
)
def test_a_verdict_is_by_the_interval_of_the_difference(interval, words):
  one = {"difference": sum(interval) / 2, "interval": interval}
  found = {"to": "dpo", "pairs": 60, "prompts": 40, "accuracy": one}
  assert pages.verdict(found).startswith(words)


@pytest.mark.parametrize(
  "pairs,prompts,words",
  [
    (1, None, "too few to compare with dpo (1 pair): accuracy +1.000 [all"),
    (40, 5, "too few to compare with dpo (5 prompts): accuracy +1.000 "),
    (40, 6, "better than dpo: "),
    (6, None, "better than dpo: "),
  ],
)
def test_of_few_prompts_there_is_no_verdict(pairs, prompts, words):
  # Where all of five lead one way, no draw of them holds 0; p is 1/16.
  one = {"difference": 1.0, "interval": [1.0, 1.0]}
  found = {"to": "dpo", "pairs": pairs, "prompts": prompts, "accuracy": one}
  assert pages.verdict(found).startswith(words)


def test_groups_are_named_by_what_their_seeds_have_in_common(tmp_path):
  make_study(tmp_path, seeds=2)
  (tmp_path / "loss.name=mrpo,seed=1").rename(tmp_path / "other")
  found = compared(tmp_path)
  labels = ["loss.name=dpo (2 seeds)", "loss.name=mrpo (2 seeds)"]
  assert [*found.series] == labels
  assert found.results[labels[1]]["difference"]["to"] == labels[0]
  (tmp_path / "other").rename(tmp_path / "b")
  for seed in (0, 1):
    (tmp_path / f"loss.name=dpo,seed={seed}").rename(tmp_path / f"seed={seed}")
  found = compared(tmp_path)
  assert [*found.series][1] == "seed=0 (2 seeds)"  # nothing else is left


def test_under_another_reference_0_there_is_no_verdict(tmp_path):
  make_study(tmp_path, seeds=2)
  for path in sorted(tmp_path.glob("loss.name=mrpo*/eval_pairs.jsonl")):
    lines = files.read_lines(path)
    for one in lines[:40]:
      one["references"][0] = [-50.0, -60.0]
    files.write_lines(path, lines)
  comparison = compared(tmp_path)
  page = Page(pages.page("study", comparison))
  said = "reference 0 scores 67% of the pairs otherwise"
  dpo = "loss.name=dpo (2 seeds)"
  assert page.shows(f"not compared with {dpo}: {said}")
  assert page.shows(
    f"accuracy and margin are not compared: {said} than in {dpo}"
  )
  assert not page.shows("not told apart") and not page.shows("better than")
  assert not any("Margin, nats: difference" in one for one in page.text)
  assert comparison.text().count(said) == 3  # of two runs, and at the table


def test_what_cannot_be_compared_has_no_verdict():
  found = pages.verdict({"to": "dpo", "reference_apart": 0.7})
  assert found.startswith("not compared with dpo: reference 0 scores 70%")
  assert "no yardstick" in pages.verdict({"to": "dpo"})
  one = {"difference": 0.1, "interval": [0.05, 0.2]}
  size = {"pairs": 60, "prompts": 40}
  found = pages.verdict({"to": "dpo", **size, "policy_accuracy": one})
  assert found.startswith("better than dpo: accuracy of the policy alone")
