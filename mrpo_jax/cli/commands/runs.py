# SPDX-License-Identifier: Apache-2.0
"""Commands on configs and runs: train, score, sweep, time, plan, report."""

import functools
import shlex
import tempfile

from mrpo_jax.buckets import is_bucket
from mrpo_jax.cli.table import first_given
from mrpo_jax.errors import InputError


def train(given):
  """Train as the config says; the same command resumes.

  Scores first what the store lacks of references in mode "scored"; with
  --no-autoscore it names the command that does.  --store=DIR is shared by
  runs; unless given, it is the workdir's own.

  A workdir of another config, data or reference is refused, key by key, unless
  only what changes no number differs, or numbers by rounding (the mesh, say).
  --allow-changed goes on all the same, where the checkpoint still fits:
  config.json then has the new values, config-<step>.json the old ones.
  """
  config = _config(given)
  from mrpo_jax import processes
  from mrpo_jax.runs import bandit
  from mrpo_jax.runs.config import BanditConfig, DiffusionConfig
  from mrpo_jax.runs.train import train_run

  if isinstance(config, BanditConfig):
    if processes.several():
      raise InputError("a bandit runs in one process")
    if flag := first_given(given, ("store", "no-autoscore", "allow-changed")):
      raise InputError(
        f"{flag}: a bandit's run scores nothing, and never goes on"
      )
    return bandit.train_run(config, given.workdir)
  if isinstance(config, DiffusionConfig):
    from mrpo_jax.runs import diffusion

    if given.no_autoscore:
      raise InputError(
        "--no-autoscore: a denoiser's run scores its references itself"
      )
    return diffusion.train_run(
      config,
      given.workdir,
      store=given.store,
      allow_changed=given.allow_changed,
    )
  same = [f"--config={given.config}", f"--workdir={given.workdir}"]
  same += [f"--store={given.store}"] if given.store else []
  same += ["--allow-changed"] if given.allow_changed else []
  train_run(
    config,
    given.workdir,
    store=given.store,
    autoscore=not given.no_autoscore,
    command=shlex.join([*same, *given.rest]),
    allow_changed=given.allow_changed,
  )


def score(given):
  """Score references, or a reward, over pairs, into the store.

  With --config and --workdir the references in mode "scored", and the rewards
  of config.data.rewards, over all pairs that the run would have.

  With --reward=NAME that reward over whole files: --pairs=FILE into
  --store=DIR, or the training and held-out pairs of --config.  NAME is
  module:name, command:WORDS, the folder of a reward model, or
  difference:DIR,DIR: how much likelier the first of two models finds a
  response.

  What is in the store is not scored again.  --part=i/n scores the i-th of n
  shares of the data, i from 0: n commands, on any machines that share the
  store, divide the work.
  """
  if given.reward:
    _score_reward(given)
    return
  if given.pairs:
    raise InputError("--pairs goes with --reward; see mrpo score --help")
  if flag := first_given(given, ["reward_timeout"]):
    raise InputError(f"{flag} is of --reward; a config has data.reward_timeout")
  for flag in ("config", "workdir"):
    if not getattr(given, flag):
      raise InputError(f"--{flag} is missing; see mrpo score --help")
  config = _of_models(given, "to score")
  from mrpo_jax.runs.score import score_run

  score_run(
    config,
    given.workdir,
    store=given.store,
    part=given.part,
    allow_changed=given.allow_changed,
  )


def _score_reward(given):
  """One reward over the files of --pairs, or of --config."""
  if bool(given.pairs) == bool(given.config):
    raise InputError("give --reward one of --pairs=FILE and --config=FILE")
  if given.allow_changed:
    raise InputError("--allow-changed is of a run; --reward has none")
  if given.pairs and given.rest:
    raise InputError(f"{given.rest[0]}: --pairs has no config")
  if given.store and given.workdir:
    raise InputError(
      "--reward writes into --store, or below --workdir; give one of them"
    )
  store = given.store or given.workdir and f"{given.workdir}/store"
  if not store:
    raise InputError("--store is missing: the folder for the rewards")
  from mrpo_jax.data import source
  from mrpo_jax.runs.data import load_pairs
  from mrpo_jax.runs.score import score_rewards

  if given.pairs:
    named = {given.pairs: source.load(given.pairs)}
  else:
    config = _of_models(given, "to score")
    named = load_pairs(config, ("train", "eval"))
  score_rewards(
    given.reward,
    named,
    store,
    timeout=given.reward_timeout,
    part=given.part,
  )


def sweep(given):
  """Train a grid of runs, one after the other.

  --vary KEY=V1,V2 is given once for each key that varies; 0:5 is 0, 1, 2, 3, 4;
  --vary config=A,B are arguments of the config file, as after its colon.  The
  grid of all values is trained, each point as `mrpo train` in
  DIR/<key=value,...>/, with DIR/store for the scores of references; DIR/logs
  has what each run says.  All configs are checked before the first run starts.

  Killed at any moment, the same command goes on; more values of the same keys
  join the sweep.  --part=i/n trains the i-th of n shares, i from 0: n commands,
  on any machines that share DIR, divide the work.  --dry-run lists the runs and
  where each stands.  At the end the report of DIR is written; see mrpo report.
  """
  import jax

  from mrpo_jax.cli.flags import changed_values
  from mrpo_jax.sweeps.sweep import checked, listed
  from mrpo_jax.sweeps.train import train

  jax.config.update("jax_platforms", "cpu")  # the devices are for the runs
  found = checked(
    given.vary,
    given.workdir,
    config=given.config,
    keys=given.rest,
    part=given.part,
    values_of=changed_values,
  )
  if given.dry_run:
    print(listed(found))
  else:
    train(found)


def report(given):
  """Compare the evaluated runs of a folder: a table, JSON and a page.

  The folder is one run, or holds runs at any depth; results.json and
  report.html come into it.  Seeds of one config stand together, below their
  mean; differences are of the same held-out pairs, and what cannot be compared
  is said.  The page fetches nothing; its plots need matplotlib (pip install
  'mrpo-jax[plot]').
  """
  from mrpo_jax.reports.report import report

  print(report(given.workdir))


def export(given):
  """Write a checkpoint of a run as a Hugging Face folder.

  --step takes the newest one (the default), the best one by the run's
  config.checkpoints.best, or the one of a step that is kept.

  A run that trained an adapter gives a folder of PEFT; --merge-adapters adds
  it to its base and gives a whole model.  The folder has the tokenizer, the
  chat template that was trained with and the source's generation_config.json.
  --dtype is that of the weights; unless given, they stay as trained.
  --discriminator writes the reward model of an online run in its place.

  A run that trained a denoiser gives its config.json and safetensors.

  --push=ORG/NAME uploads the folder to the Hugging Face hub, too, as one commit
  to a repository that is made if there is none: private, or with --public one
  that everybody may read.  Its card has the config, with the paths in it.
  Where that was stopped, or the hub refused, the same command sends it again.
  """
  from mrpo_jax.hub import push

  if given.public and not given.push:
    raise InputError("--public is of --push=ORG/NAME; give that, too")
  if given.discriminator and given.merge_adapters:
    raise InputError(
      "--merge-adapters: a discriminator has none; it is whole as it is"
    )
  if given.push and is_bucket(given.to):
    raise InputError(
      f"--push={given.push} uploads a folder of a disk, and --to={given.to} is "
      "none; export to a disk, or without --push"
    )
  if given.push:
    push.check(given.push)
  if given.push and push.is_filled(given.to):
    push.refuse_other(given.to, functools.partial(_export, given))
  else:
    print(f"{_export(given, given.to)} is now {given.to}")
  if given.push:
    message = f"{given.step} checkpoint of {given.workdir}, by mrpo_jax"
    push.push(given.to, given.push, public=given.public, message=message)


def _export(given, to):
  """Writes the folder; says of what it is."""
  from mrpo_jax.runs.diffusion import export as denoisers
  from mrpo_jax.runs.export import export, export_discriminator

  if (config := denoisers.config_of(given.workdir)) is not None:
    denoisers.refuse_language(given)
    step = denoisers.export(given.workdir, to, step=given.step, config=config)
    return f"step {step} of {given.workdir}"

  about = dict(step=given.step, dtype=given.dtype)
  if given.discriminator:
    step = export_discriminator(given.workdir, to, **about)
    return f"the discriminator of step {step} of {given.workdir}"
  step = export(given.workdir, to, merge=given.merge_adapters, **about)
  return f"step {step} of {given.workdir}"


def bench(given):
  """Time the train step of a config on its data.

  Says pairs, tokens and useful operations per second.  Nothing is trained,
  evaluated or saved.  References in mode "scored" are scored first, into
  --store=DIR where it is given.
  """
  config = _of_models(given, "to time")
  from mrpo_jax.performance import bench

  with tempfile.TemporaryDirectory() as workdir:
    bench.run(
      config,
      workdir,
      steps=given.steps,
      warmup=given.warmup,
      store=given.store,
      to=given.json,
      trace=given.trace,
    )


def plan(given):
  """Compile the steps of a config for devices that need not be here.

  Prints memory, operations, exchanges between devices and the least time of a
  step on a topology: a TPU slice (v5p:4x4x4; needs libtpu), NVIDIA GPUs (h100:8
  or, of two nodes, h100:2x8; needs jax's plug-in), cpu:8 or local.
  No weights are loaded and no data is read: models are folders with a
  config.json or names of the hub.
  """
  config = _of_models(given, "to plan")
  from mrpo_jax.performance import plan

  plan.run(
    config,
    given.topology,
    hbm=given.hbm and given.hbm * 2**30,
    lengths=given.lengths,
    fits=given.fit,
    fastest=given.tune,
    to=given.json,
    keep=given.program,
  )


def _config(given):
  """The config of a command, with the keys that its flags change."""
  from mrpo_jax.cli.flags import changed_config

  return changed_config(given.config, given.rest)


def _of_models(given, purpose):
  """The config of a command that wants one with a step."""
  from mrpo_jax.runs.config import Config

  config = _config(given)
  if not isinstance(config, Config):
    raise InputError(
      f"--config {given.config} trains no language model, so there is nothing "
      f"{purpose}"
    )
  return config
