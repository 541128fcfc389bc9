# SPDX-License-Identifier: Apache-2.0
"""Results of several runs, from files made by hand."""

import json

import pytest

from mrpo_jax import files
from mrpo_jax.errors import InputError
from mrpo_jax.reports.comparison import LEGEND, compared
from mrpo_jax.reports.gather import gather
from mrpo_jax.training.log import Metrics
from tests.material.logged import logged


def make_run(folder, margins, beta=0.5, first=0, **config):
  folder.mkdir(parents=True)
  pairs = [
    dict(
      pair=first + i,
      policy=[-1.0 + m, -2.0],
      references=[[-1.0, -2.0]],
      tokens=[1, 4],
    )
    for i, m in enumerate(margins)
  ]
  files.write_lines(folder / "eval_pairs.jsonl", pairs)
  loss = dict(name="dpo", beta=beta)
  files.write_json(folder / "config.json", dict(loss=loss, **config))
  lines = [
    {
      "step": s,
      "pairs": 8,
      "seconds": t,
      "tokens/real": 90,
      "tokens/slots": 100,
    }
    for s, t in ((1, 50.0), (2, 2.0), (3, 1.0), (4, 4.0))
  ]
  files.write_lines(folder / "metrics.jsonl", lines)


def change_pairs(folder, **changes):
  pairs = files.read_lines(folder / "eval_pairs.jsonl")
  pairs = [{**pair, **changes} for pair in pairs]
  files.write_lines(folder / "eval_pairs.jsonl", pairs)


def written(folder):
  """The text of a folder's report, whose results.json is written."""
  found = compared(folder)
  files.write_json(folder / "results.json", found.results)
  return found.text()


def reported(folder):
  """(results.json, the table's lines by run, what stands below it)."""
  lines = written(folder).splitlines()
  table = lines[1 : lines.index("")]
  notes = lines[lines.index("") + 1 + len(LEGEND.splitlines()) :]
  notes = notes[: notes.index("")] if "" in notes else notes
  rows = {line.strip().split("  ")[0]: line for line in table}
  return json.loads((folder / "results.json").read_text()), rows, notes


def test_a_run_by_hand(tmp_path):
  make_run(tmp_path / "dpo", [1.0, 3.0, -2.0, 0.0])
  text = written(tmp_path)
  results = json.loads((tmp_path / "results.json").read_text())
  dpo = results["dpo"]
  assert dpo["accuracy"] == 0.5  # 0 is not larger
  assert dpo["margin"] == pytest.approx(0.5 * 0.5)
  assert dpo["pairs_per_second"] == 4.0  # the first step is left out
  assert dpo["real_token_share"] == pytest.approx(0.9)
  low, high = dpo["interval"]
  assert 0.0 <= low < 0.5 < high <= 1.0
  assert text.splitlines()[1].split()[:2] == ["dpo", "0.500"]


def test_runs_are_compared_on_the_pairs_that_all_evaluated(tmp_path):
  make_run(tmp_path / "dpo", [1.0, 1.0, -1.0])
  make_run(tmp_path / "mrpo", [1.0, -1.0, -1.0], first=1)
  written(tmp_path)
  results = json.loads((tmp_path / "results.json").read_text())
  assert [r["held_out_pairs"] for r in results.values()] == [2, 2]
  assert [r["accuracy"] for r in results.values()] == [0.5, 0.5]


def test_runs_without_a_common_pair_are_refused(tmp_path):
  make_run(tmp_path / "dpo", [1.0])
  make_run(tmp_path / "mrpo", [1.0], first=1)
  with pytest.raises(InputError, match="share no held-out pair"):
    written(tmp_path)


def test_a_run_without_a_reference_is_shown_with_what_it_has(tmp_path):
  make_run(tmp_path / "dpo", [1.0, -3.0])
  make_run(tmp_path / "simpo", [1.0, -3.0])
  change_pairs(tmp_path / "simpo", references=[])
  results, rows, notes = reported(tmp_path)
  dpo, simpo = results["dpo"], results["simpo"]
  assert simpo["accuracy"] is simpo["margin"] is simpo["margin_nats"] is None
  # -1 + 1 and -1 - 3 against -2; per token -2 is -0.5.
  for one in (dpo, simpo):
    assert one["policy_accuracy"] == 0.5
    assert one["policy_mean_accuracy"] == 0.5
    assert one["nll"] == pytest.approx((0.0 + 4.0) / 2)
  assert "-" in rows["simpo"].split() and "0.500" in rows["simpo"]
  assert not notes


def test_a_supervised_run_is_shown_with_its_likelihood(tmp_path):
  make_run(tmp_path / "dpo", [1.0])
  make_run(tmp_path / "sft", [0.5])
  change_pairs(tmp_path / "sft", references=[], tokens=[2, 0])
  results, rows, _ = reported(tmp_path)
  sft = results["sft"]
  assert sft["nll"] == pytest.approx(0.25)
  assert sft["policy_accuracy"] is sft["policy_mean_accuracy"] is None
  assert rows["sft"].split()[1:6] == 5 * ["-"]


def test_margins_of_several_betas_are_comparable(tmp_path):
  make_run(tmp_path / "low", [1.0, 3.0], beta=0.1)
  make_run(tmp_path / "high", [1.0, 3.0], beta=2.0)
  results, rows, _ = reported(tmp_path)
  assert results["low"]["margin_nats"] == results["high"]["margin_nats"] == 2.0
  assert results["low"]["margin"] == pytest.approx(0.2)
  assert results["high"]["margin"] == pytest.approx(4.0)
  assert "+2.000  +0.2000" in rows["low"] and "+2.000  +4.0000" in rows["high"]


@pytest.mark.parametrize("loss,beta", [("dpo", 0.1), ("rainbow_po", 10.0)])
def test_a_beta_that_is_not_given_is_the_one_of_the_loss(tmp_path, loss, beta):
  make_run(tmp_path / "run", [3.0])
  files.write_json(tmp_path / "run" / "config.json", dict(loss={"name": loss}))
  results, _, _ = reported(tmp_path)
  assert results["run"]["margin"] == pytest.approx(3.0 * beta)


def test_the_folder_of_one_run_is_reported(tmp_path):
  make_run(tmp_path / "dpo", [1.0, 3.0, -2.0, 0.0])
  alone, _, _ = reported(tmp_path / "dpo")
  among, _, _ = reported(tmp_path)
  assert alone == among


def test_runs_at_any_depth_are_reported(tmp_path):
  make_run(tmp_path / "beta=0.1" / "first", [1.0])
  make_run(tmp_path / "other", [1.0])
  results, _, _ = reported(tmp_path)
  assert [*results] == ["beta=0.1/first", "other"]


def test_seeds_of_one_config_are_grouped(tmp_path):
  make_run(tmp_path / "a0", [1.0, 1.0, -1.0, -1.0], seed=0)
  make_run(tmp_path / "a1", [1.0, 1.0, 1.0, -1.0], seed=1)
  make_run(tmp_path / "b", [1.0, -1.0, -1.0, -1.0], beta=0.25, seed=0)
  results, rows, _ = reported(tmp_path)
  assert [*rows] == ["a0 (2 seeds)", "a0", "a1", "b"]
  mean = results["a0 (2 seeds)"]
  assert mean["accuracy"] == pytest.approx((0.5 + 0.75) / 2)
  assert mean["accuracy_sd"] == pytest.approx(0.25 / 2**0.5)
  assert mean["margin_nats"] == pytest.approx((0.0 + 0.5) / 2)
  assert mean["runs"] == ["a0", "a1"] and mean["pairs_per_second"] == 4.0
  assert results["a1"]["group"] == "a0 (2 seeds)"
  assert results["a1"]["seed"] == 1 and "group" not in results["b"]


@pytest.mark.parametrize(
  "names,label",
  [
    (["dpo/seed=0", "dpo/seed=1"], "dpo (2 seeds)"),
    (["a/seed=0,x=1", "a/seed=1,x=1"], "a/x=1 (2 seeds)"),
    (["seed=0/x=1", "seed=1/x=1"], "x=1 (2 seeds)"),
    (["seed=0", "seed=1"], "seed=0 (2 seeds)"),
  ],
)
def test_a_group_in_folders_is_not_named_by_a_seed(tmp_path, names, label):
  for seed, name in enumerate(names):
    make_run(tmp_path / name, [1.0, -1.0], seed=seed)
  _, rows, _ = reported(tmp_path)
  assert [*rows] == [label, *names]


def test_what_cannot_be_compared_is_said(tmp_path):
  make_run(tmp_path / "a", [1.0, 1.0, -1.0], identity={"data.eval": "x"})
  make_run(tmp_path / "b", [1.0, 1.0], identity={"data.eval": "x"})
  change_pairs(tmp_path / "b", references=[[-9.0, -2.0]])
  make_run(tmp_path / "c", [1.0], identity={"data.eval": "y"})
  make_run(tmp_path / "d", [1.0], identity={"data.eval": "x"})
  (tmp_path / "d" / "eval_pairs.jsonl").unlink()
  results, _, notes = reported(tmp_path)
  assert [*results] == ["a", "b", "c"]
  assert [one["held_out_pairs"] for one in results.values()] == [2, 2, 1]
  assert notes == [
    "not evaluated: d",
    "held-out pairs differ, figures are not comparable between: a, b; c",
    "a: 1 of 3 pairs left out, which another run did not evaluate",
    "b: reference 0 scores 100% of the pairs otherwise than in a (another "
    "model, or texts cut elsewhere)",
  ]


def test_the_difference_of_two_runs_by_hand(tmp_path):
  # Right: 1, 1, 0, 0 and 1, 0, 1, 1: one is lost and two are gained.
  make_run(tmp_path / "a", [1.0, 1.0, -1.0, -1.0])
  make_run(tmp_path / "b", [2.0, -1.0, 1.0, 1.0])
  results, _, _ = reported(tmp_path)
  assert "difference" not in results["a"]
  found = results["b"]["difference"]
  assert found["to"] == "a" and found["pairs"] == 4 and found["prompts"] is None
  accuracy = found["accuracy"]
  assert accuracy["difference"] == pytest.approx(0.25)
  assert accuracy["p"] == [1.0]  # two of three or more: 2 * 1/2
  low, high = accuracy["interval"]
  assert low < 0.25 < high
  assert found["margin_nats"]["difference"] == pytest.approx(0.75)
  assert found["nll"]["difference"] == pytest.approx(-0.75)


@pytest.mark.parametrize("apart", [2, 3])
def test_runs_of_most_pairs_of_another_reference_have_no_difference(
  tmp_path, apart
):
  for name in "ab":
    make_run(tmp_path / name, [1.0, 1.0, -1.0, -1.0])
  path = tmp_path / "b" / "eval_pairs.jsonl"
  lines = files.read_lines(path)
  for one in lines[:apart]:
    one["references"] = [[-3.0, -9.0]]
  files.write_lines(path, lines)
  results, _, notes = reported(tmp_path)
  found = results["b"]["difference"]
  is_most = apart == 3
  assert ("accuracy" in found) == ("margin_nats" in found) == (not is_most)
  assert found.get("reference_apart") == (0.75 if is_most else None)
  assert "policy_accuracy" in found and "nll" in found
  assert any("otherwise than in a" in note for note in notes)
  text = written(tmp_path)
  assert (
    "b: accuracy and margin are not compared: reference" in text
  ) == is_most
  row = text[text.index("difference to a") :].splitlines()[2].split()
  assert row[1:4] == (["-", "-", "-"] if is_most else row[1:4])


def test_the_differences_stand_below_the_table(tmp_path):
  make_run(tmp_path / "a", [1.0, 1.0, -1.0, -1.0])
  make_run(tmp_path / "b", [2.0, -1.0, 1.0, 1.0])
  lines = written(tmp_path).splitlines()
  start = lines.index("difference to a, on the same 4 held-out pairs")
  assert lines[start + 1].split()[:4] == ["run", "accuracy", "[95", "%]"]
  assert lines[start + 2].split()[:2] == ["b", "+0.250"]
  assert "exact sign test of prompts" in " ".join(lines[start + 3 :])


def test_seeds_are_paired_with_the_same_seeds(tmp_path):
  for seed, margins in enumerate(([1.0, 1.0], [1.0, -1.0], [-1.0, -1.0])):
    make_run(tmp_path / f"a{seed}", margins, seed=seed)
  for seed, margins in ((1, [1.0, 1.0]), (2, [1.0, -1.0]), (7, [1.0, 1.0])):
    make_run(tmp_path / f"b{seed}", margins, beta=0.1, seed=seed)
  results, _, _ = reported(tmp_path)
  found = results["b1 (3 seeds)"]["difference"]
  assert found["to"] == "a0 (3 seeds)" and found["seeds"] == [1, 2]
  # Of each of them one pair is gained.
  assert found["accuracy"]["difference"] == pytest.approx(0.5)
  assert found["accuracy"]["p"] == [1.0, 1.0]
  assert "difference" not in results["b1"]


def test_without_a_common_seed_means_are_compared_and_no_test_is_made(tmp_path):
  for seed, margins in enumerate(([1.0, 1.0], [1.0, -1.0])):
    make_run(tmp_path / f"a{seed}", margins, seed=seed)
    make_run(tmp_path / f"b{seed}", [-1.0, 1.0], beta=0.1, seed=seed + 5)
  found = reported(tmp_path)[0]["b0 (2 seeds)"]["difference"]
  assert found["seeds"] == [] and "p" not in found["accuracy"]
  assert found["accuracy"]["difference"] == pytest.approx(0.5 - 0.75)


def test_pairs_of_one_prompt_are_drawn_together(tmp_path):
  margins = [1.0] * 10 + [-1.0] * 10
  make_run(tmp_path / "a", [-1.0] * 20)
  make_run(tmp_path / "b", margins)
  before = reported(tmp_path)[0]["b"]
  alone = before["difference"]
  for name in "ab":
    pairs = files.read_lines(tmp_path / name / "eval_pairs.jsonl")
    pairs = [{**one, "prompt": str(one["pair"] // 10)} for one in pairs]
    files.write_lines(tmp_path / name / "eval_pairs.jsonl", pairs)
  after = reported(tmp_path)[0]["b"]
  together = after["difference"]
  assert together["prompts"] == 2
  # Two prompts, of which one is all right: a quarter of the draws has it twice.
  assert together["accuracy"]["interval"] == [0.0, 1.0]
  assert alone["accuracy"]["interval"][1] < 0.8
  assert alone["accuracy"]["p"] == pytest.approx(
    [2 / 2**10]
  )  # ten gained, none lost
  assert together["accuracy"]["p"] == [1.0]  # one prompt gained
  for figure in ("", "policy_", "policy_mean_"):
    low, high = before[f"{figure}interval"]
    assert [0.0, 1.0] == after[f"{figure}interval"] != [low, high]
  assert "on the same 20 held-out pairs of 2 prompts" in written(tmp_path)


def test_runs_of_other_data_are_compared_among_themselves(tmp_path):
  for name, data in ("a", "x"), ("b", "y"), ("c", "y"):
    make_run(tmp_path / name, [1.0, -1.0], identity={"data.eval": data})
  results, _, _ = reported(tmp_path)
  assert "difference" not in results["a"] and "difference" not in results["b"]
  assert results["c"]["difference"]["to"] == "b"


def test_a_run_without_a_reference_differs_by_the_yardsticks_that_it_has(
  tmp_path,
):
  make_run(tmp_path / "dpo", [1.0, -3.0])
  make_run(tmp_path / "simpo", [1.0, 3.0])
  change_pairs(tmp_path / "simpo", references=[])
  found = reported(tmp_path)[0]["simpo"]["difference"]
  assert "accuracy" not in found and "margin_nats" not in found
  assert found["policy_accuracy"]["difference"] == pytest.approx(0.5)


def test_nats_a_token_are_compared_under_one_tokenizer_alone(tmp_path):
  for name, tokenizer in (("a", "x"), ("b", "x"), ("c", "y")):
    identity = {"data.eval": "d", "policy.tokenizer": tokenizer}
    make_run(tmp_path / name, [1.0, -1.0, 2.0], identity=identity)
  results, _, _ = reported(tmp_path)
  assert "nll" in results["b"]["difference"]
  found = results["c"]["difference"]
  assert "nll" not in found and "margin_nats" in found


def test_a_run_that_is_there_twice_is_said_and_no_seed(tmp_path):
  make_run(tmp_path / "a0", [1.0, 1.0, -1.0, -1.0], seed=0)
  make_run(tmp_path / "a1", [1.0, 1.0, 1.0, -1.0], seed=1)
  make_run(tmp_path / "b0", [1.0, 1.0, -1.0, -1.0], seed=0)
  results, rows, notes = reported(tmp_path)
  assert [*rows] == ["a0 (2 seeds)", "a0", "a1", "b0"]
  assert results["a0 (2 seeds)"]["runs"] == ["a0", "a1"]
  want = "b0: config, data and seed are those of a0; it counts as no further s"
  assert [note for note in notes if note.startswith(want)]


ODD = [
  {"prompt": ["a"]},
  {"policy": [1e308, -1e308]},
  {"policy": [10**400, 0.0]},
  {"pair": "x"},
]


@pytest.mark.parametrize("changes", ODD)
def test_pairs_that_are_none_are_left_out_and_counted(tmp_path, changes):
  make_run(tmp_path / "a", [1.0, -1.0, 2.0])
  lines = files.read_lines(tmp_path / "a" / "eval_pairs.jsonl")
  text = "".join(f"{json.dumps(one)}\n" for one in [*lines, lines[0] | changes])
  (tmp_path / "a" / "eval_pairs.jsonl").write_text(text)
  results, _, notes = reported(tmp_path)
  assert results["a"]["held_out_pairs"] == 3
  assert "a: 1 lines of eval_pairs.jsonl are no pairs" in notes


@pytest.mark.parametrize("seed", [[1], {"a": 1}, "x", None, True])
def test_seeds_and_marks_of_data_of_any_type_are_no_fault(tmp_path, seed):
  make_run(tmp_path / "a", [1.0, -1.0], seed=seed, identity={"data.eval": [1]})
  make_run(tmp_path / "b", [1.0, -1.0], seed=1, identity={"data.eval": [1]})
  with open(tmp_path / "a" / "metrics.jsonl", "a") as file:
    file.write(json.dumps({"step": 10**30, "loss": 1.0}) + "\n")
  results, _, notes = reported(tmp_path)
  assert {"a", "b"} <= {*results}
  assert "a: 1 lines of metrics.jsonl are no metrics" in notes


@pytest.mark.parametrize("names", [1, "ab", {"a": 1}, [1], ["a", None], True])
def test_names_of_references_of_another_type_are_said(tmp_path, names):
  make_run(tmp_path / "a", [1.0, -1.0])
  make_run(tmp_path / "b", [1.0, -1.0], references={"names": names})
  results, _, notes = reported(tmp_path)
  assert [*results] == ["a"]
  want = "b is left out: config.references.names is no list of names"
  assert notes == [want]


def test_what_is_damaged_is_said_and_the_rest_reported(tmp_path):
  for name in "abcdef":
    make_run(tmp_path / name, [1.0, -1.0, 2.0])
  (tmp_path / "f" / "metrics.jsonl").unlink()
  (tmp_path / "f" / "metrics.jsonl").mkdir()
  with open(tmp_path / "a" / "metrics.jsonl", "a") as file:
    file.write('garbage\n{"loss": 1}\n{"step": 9, "loss": "high"}\n{"st')
  with open(tmp_path / "b" / "eval_pairs.jsonl", "a") as file:
    file.write('{"pair": 7}\n\x00\n')
  (tmp_path / "c" / "config.json").write_text("{")
  loss = dict(name="dpo")
  files.write_json(tmp_path / "d" / "config.json", dict(loss=loss, steps=30))
  files.write_json(tmp_path / "e" / "config.json", dict(loss=dict(name="?")))
  results, _, notes = reported(tmp_path)
  assert [*results] == ["a", "b", "d"]
  assert results["a"]["pairs_per_second"] == 4.0
  assert notes[0] == "a: 2 lines of metrics.jsonl are no metrics"
  assert notes[1].startswith("a: 1 figures of metrics.jsonl are no finite")
  assert notes[2] == "b: 2 lines of eval_pairs.jsonl are no pairs"
  assert notes[3].startswith("c is left out: ") and "is not JSON" in notes[3]
  assert notes[4] == "d: holds no checkpoint"
  assert notes[5].startswith("e is left out: config.loss: ")
  assert notes[6].startswith("f is left out: ") and len(notes) == 7


def test_a_line_of_before_the_training_has_no_speed(tmp_path):
  make_run(tmp_path / "a", [1.0])
  lines = files.read_lines(tmp_path / "a" / "metrics.jsonl")
  first = {"step": 0, "eval/gsm8k/exact_match,none": 0.1}
  files.write_lines(tmp_path / "a" / "metrics.jsonl", [first, *lines])
  assert reported(tmp_path)[0]["a"]["pairs_per_second"] == 4.0


def test_figures_that_are_no_finite_numbers_are_counted_and_left_out(tmp_path):
  make_run(tmp_path / "a", [1.0])
  huge = 10**400
  strange = [
    {"step": 5, "seconds": "fast", "pairs": 8, "loss": None},
    {"step": 6, "seconds": 0, "pairs": 8, "tokens/real": 90, "tokens/slots": 1},
    {"step": 7, "seconds": 1e-9, "pairs": huge, "loss": float("nan")},
    {"step": 8, "seconds": 4.0, "pairs": 8, "samples": [{"response": "said"}]},
  ]
  with open(tmp_path / "a" / "metrics.jsonl", "a") as file:
    file.writelines(json.dumps(line) + "\n" for line in strange)
  results, _, notes = reported(tmp_path)
  assert results["a"]["pairs_per_second"] == 4.0
  assert notes == [
    "a: 4 figures of metrics.jsonl are no finite numbers and are left out"
  ]
  (run,), _ = gather(tmp_path)
  assert run.lines[-4] == {"step": 5, "pairs": 8}
  assert run.last("loss") is None and run.last("seconds") == 4.0
  assert run.samples == [(8, [{"response": "said"}])]


def test_nothing_to_report_is_said(tmp_path):
  with pytest.raises(InputError, match="no run that was evaluated"):
    written(tmp_path)


def test_a_line_cut_short_is_left_out(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\n{"step": 2}\n{"st')
  assert [line["step"] for line in files.read_lines(path)] == [1, 2]


def test_metrics_keep_the_lines_up_to_the_restored_step(tmp_path):
  with logged() as said:
    with Metrics(tmp_path, step=0) as first:
      for step in (1, 2, 3):
        first.write(step, {"loss": 0.5})
    with Metrics(tmp_path, step=2) as again:
      again.write(3, {"loss": 0.25})
  lines = files.read_lines(tmp_path / "metrics.jsonl")
  assert [line["step"] for line in lines] == [1, 2, 3]
  assert lines[-1]["loss"] == 0.25
  assert not said
