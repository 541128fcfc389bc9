# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face hub on loopback: repositories of files, by its protocol."""

import base64
import hashlib
import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import threading

ROOT = pathlib.Path(__file__).parents[2]
TOKEN = "hf_of_a_test"
GATED = "org/gated"
SIGNED = "Signature=secret"  # of the address of an upload


class Hub(http.server.ThreadingHTTPServer):
  """Repositories that are read and written by whoever has TOKEN.

  Attributes:
    repositories: {ORG/NAME: {file: bytes}}; GATED is one that nobody may read.
    private: names of those that are.
    commits: (ORG/NAME, message) of each that was made.
    asked: paths of the requests.
    tokens: that came with them.
    fails: a part of a path; requests with it get code 503.
    answers: {a part of a path: (code, bytes)} that requests with it get.
    kills: (a part of a path, "before" or "after" it is done): a request with it
      gets no answer, and who asks is killed.
  """

  daemon_threads = True

  def __init__(self, **repositories):
    super().__init__(("127.0.0.1", 0), Answer)
    self.repositories = dict(repositories)
    self.private, self.commits, self.objects = set(), [], {}
    self.asked, self.tokens, self.fails = [], set(), None
    self.answers, self.kills, self.running = {}, None, None
    threading.Thread(target=self.serve_forever, daemon=True).start()

  @property
  def address(self):
    return f"http://127.0.0.1:{self.server_port}"

  def commit_of(self, name):
    """The hash that names what a repository holds now."""
    files = sorted(self.repositories[name].items())
    return _sha(repr(files).encode())

  def run(self, home, *command, **settings):
    """The CompletedProcess of a Python command whose hub this is."""
    env = {
      **os.environ,
      "PYTHONPATH": str(ROOT),
      "HF_HOME": str(home),
      "HF_ENDPOINT": self.address,
      "HF_HUB_OFFLINE": "0",
      "HF_HUB_DISABLE_XET": "1",
      "HF_TOKEN": TOKEN,
      **settings,
    }
    words, pipe = [sys.executable, *command], subprocess.PIPE
    with subprocess.Popen(
      words, cwd=home, env=env, stdout=pipe, stderr=pipe, text=True
    ) as self.running:
      said = self.running.communicate()
    assert TOKEN not in "".join(said) and SIGNED not in "".join(said)
    return subprocess.CompletedProcess(words, self.running.returncode, *said)


class Answer(http.server.BaseHTTPRequestHandler):
  def log_message(self, *_):
    pass

  def do_HEAD(self):
    self._answer(self._found, body=False)

  def do_GET(self):
    self._answer(self._found)

  def do_POST(self):
    self._answer(self._taken)

  def do_PUT(self):
    self._answer(self._stored)

  def _answer(self, found, body=True):
    self.server.asked.append(self.path)
    self.server.tokens.add(self.headers.get("Authorization"))
    fails, answers = self.server.fails, self.server.answers
    given = [one for part, one in answers.items() if part in self.path]
    part, when = self.server.kills or ("", "")
    if part and part in self.path:
      if when == "after":
        found()
      self.server.running.kill()
      return
    if fails and fails in self.path:
      code, headers, content = 503, {}, b""
    elif given:
      self._content()
      (code, content), headers = given[0], {}
    else:
      code, headers, content = found()
    if isinstance(content, dict | list):
      content = json.dumps(content).encode()
    self.send_response(code)
    for name, value in headers.items():
      self.send_header(name, value)
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    if body:
      self.wfile.write(content)

  def _content(self):
    return self.rfile.read(int(self.headers["Content-Length"] or 0))

  def _is_known(self):
    return self.headers.get("Authorization") == f"Bearer {TOKEN}"

  def _found(self):
    if self.path.startswith("/api/whoami-v2"):
      if not self._is_known():
        return 401, {}, b""
      return 200, {}, {"name": "one", "orgs": [], "type": "user"}
    if GATED in self.path:
      return 403, {"X-Error-Code": "GatedRepo"}, b""
    for name, files in self.server.repositories.items():
      commit = self.server.commit_of(name)
      api, raw = f"/api/models/{name}", f"/{name}/resolve/{commit}/"
      if self.path.startswith(f"{api}/tree/"):
        found = [
          {"type": "file", "path": path, "size": len(one), "oid": _sha(one)}
          for path, one in files.items()
        ]
        return 200, {}, found
      if self.path.startswith(f"{api}/revision/"):
        if not self.path.endswith(("/main", commit)):
          return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        names = [{"rfilename": path} for path in files]
        return 200, {}, {"id": name, "sha": commit, "siblings": names}
      if self.path.startswith(raw):
        content = files[self.path.removeprefix(raw)]
        about = {"ETag": f'"{_sha(content)}"', "X-Repo-Commit": commit}
        return 200, about, content
    return 404, {"X-Error-Code": "RepoNotFound"}, b""

  def _taken(self):
    content = self._content()
    if not self._is_known():
      return 401, {}, b""
    if self.path == "/api/repos/create":
      return self._created(json.loads(content))
    if self.path == "/api/validate-yaml":
      return 200, {}, {"errors": [], "warnings": []}
    if found := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
      return self._asked_how(json.loads(content))
    if found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", self.path):
      return self._asked_where(json.loads(content))
    if found := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
      return self._committed(found[1], content)
    return 404, {}, b""

  def _created(self, given):
    organization = given.get("organization")
    name = f"{organization}/{given['name']}"
    if organization == "others":
      return 403, {}, {"error": "You don't have the rights to create it"}
    if name in self.server.repositories:
      where = f"{self.server.address}/{name}"
      return 409, {}, {"error": "You already created it", "url": where}
    self.server.repositories[name] = {}
    if given.get("private") or given.get("visibility") == "private":
      self.server.private.add(name)
    return 200, {}, {"url": f"{self.server.address}/{name}", "name": name}

  def _asked_how(self, given):
    ways = [
      {
        "path": one["path"],
        "uploadMode": "lfs" if one["path"].endswith("tensors") else "regular",
        "shouldIgnore": False,
      }
      for one in given["files"]
    ]
    return 200, {}, {"files": ways}

  def _asked_where(self, given):
    found = [
      {
        "oid": one["oid"],
        "size": one["size"],
        "authenticated": True,
        "actions": {
          "upload": {
            "href": f"{self.server.address}/object/{one['oid']}?{SIGNED}"
          }
        },
      }
      for one in given["objects"]
    ]
    about = {"Content-Type": "application/vnd.git-lfs+json"}
    return 200, about, {"transfer": "basic", "objects": found}

  def _stored(self):
    content = self._content()
    path = f"/object/{hashlib.sha256(content).hexdigest()}"
    assert self.path == f"{path}?{SIGNED}"
    self.server.objects[path] = content
    return 200, {}, b""

  def _committed(self, name, content):
    files = dict(self.server.repositories[name])
    for line in map(json.loads, content.splitlines()):
      one = line["value"]
      if line["key"] == "header":
        self.server.commits.append((name, one["summary"]))
      elif line["key"] == "deletedFile":
        del files[one["path"]]
      elif line["key"] == "lfsFile":
        files[one["path"]] = self.server.objects[f"/object/{one['oid']}"]
      else:
        files[one["path"]] = base64.b64decode(one["content"])
    self.server.repositories[name] = files
    commit = self.server.commit_of(name)
    where = f"{self.server.address}/{name}/commit/{commit}"
    return 200, {}, {"commitOid": commit, "commitUrl": where, "success": True}


def _sha(content):
  return hashlib.sha1(content).hexdigest()
