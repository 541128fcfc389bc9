# SPDX-License-Identifier: Apache-2.0
"""What both players of benchmarks/harness.py do with a job's requests.

Imports the harness alone beside the standard library: workers import it in
their environments.
"""

import time

from lm_eval.api.instance import Instance

from benchmarks import turns


def answered(lm, job):
  """An LM's answers to the requests of a job by kind, and its seconds."""
  reply = {"memory": turns.resident(), "answers": {}, "took": {}}
  for kind, arguments in job["requests"].items():
    requests = [
      Instance(request_type=kind, doc={}, arguments=tuple(one), idx=i)
      for i, one in enumerate(arguments)
    ]
    started = time.perf_counter()
    reply["answers"][kind] = getattr(lm, kind)(requests)
    reply["took"][kind] = time.perf_counter() - started
  reply["seconds"] = sum(reply["took"].values())
  reply["memory"] = turns.resident()
  return reply
