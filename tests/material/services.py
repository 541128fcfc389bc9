# SPDX-License-Identifier: Apache-2.0
"""Services of objects on this machine, and a proxy before them with faults.

gs:// is gcp-storage-emulator, s3:// is moto; each is a process of its own, all
in memory.  The proxy adds what Google does and the emulator leaves out:
ifGenerationMatch; the generation in the headers of a content, without which
TensorStore does not read it; and the answer to the end of an upload that is
sent again.
"""

import contextlib
import http.client
import http.server
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

BUCKET = "bucket-of-tests"
# What must never be said.
SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"
PACKAGES = {
  "gs": ("gcsfs", "gcp_storage_emulator"),
  "s3": ("s3fs", "moto", "flask", "flask_cors"),
}


def missing(kind):
  """Packages that its tests need and that are not installed."""
  return [one for one in PACKAGES[kind] if not importlib.util.find_spec(one)]


def _free_port():
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    return one.getsockname()[1]


def _command(kind, port):
  if kind == "s3":
    return [sys.executable, "-m", "moto.server", "-H127.0.0.1", f"-p{port}"]
  return [
    *(sys.executable, "-m", "gcp_storage_emulator", "start"),
    *("--host=127.0.0.1", f"--port={port}", "--in-memory"),
    f"--default-bucket={BUCKET}",
  ]


def environment(kind, port):
  """What clients need to find the service."""
  url = f"http://127.0.0.1:{port}"
  if kind == "gs":
    return {
      "STORAGE_EMULATOR_HOST": url,
      "TENSORSTORE_GCS_HTTP_URL": url,
      "GOOGLE_CLOUD_PROJECT": "tests",
      # Which asks Google what kind of a bucket it is.
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
  return {
    "AWS_ENDPOINT_URL": url,
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
  }


class Faults:
  """What goes wrong with requests: of each `every`-th one of these."""

  def __init__(self):
    self.kinds, self.every = (), 3
    self._asked, self._lock, self.done = 0, threading.Lock(), []
    self._left = self._kill = None
    self._after = False

  @contextlib.contextmanager
  def of(self, *kinds, every=3):
    """Inside, of "unavailable", "slow", "cut", "lost", "403" each in turn."""
    self.kinds, self.every, self.done = kinds, every, []
    try:
      yield self.done
    finally:
      self.kinds = ()

  def kill_at(self, count, after=False, kill=None):
    """Calls `kill` at the count-th request from now; None: at none.

    Before the service has that request, or `after`, when it has done it.
    """
    with self._lock:
      self._left, self._after, self._kill = count, after, kill

  def killed(self):
    """(before, after) of this request: functions that kill, or None."""
    with self._lock:
      if self._left is None:
        return None, None
      self._left -= 1
      if self._left:
        return None, None
      self._left = None
      return (None, self._kill) if self._after else (self._kill, None)

  def next(self):
    with self._lock:
      self._asked += 1
      if not self.kinds or self._asked % self.every:
        return None
      kind = self.kinds[self._asked // self.every % len(self.kinds)]
      self.done.append(kind)
      return kind


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def log_message(self, *_):
    pass

  def _handle(self):
    size = int(self.headers.get("Content-Length") or 0)
    body = self._chunked() if self._is_chunked() else self.rfile.read(size)
    fault = self.server.faults.next()
    before, after = self.server.faults.killed()
    if before is not None:
      before()
      self.close_connection = True
      return
    if fault == "slow":
      time.sleep(0.5)
    if fault == "unavailable":
      self._answer(503, {}, b"try again")
      return
    if fault is not None and fault.isdigit():
      self._answer(int(fault), {}, b"{}")
      return
    with self._alone() as passes:
      status, headers, content = (
        self._forward(body) if passes(body) else (412, {}, b"{}")
      )
    if after is not None:
      after()
    if (
      fault == "lost" or after is not None
    ):  # it was done, and nobody hears of it
      self.close_connection = True
      return
    self._answer(status, headers, content, cut=fault == "cut")

  def _is_chunked(self):
    return self.headers.get("Transfer-Encoding", "").lower() == "chunked"

  def _chunked(self):
    parts = []
    while size := int(self.rfile.readline().split(b";")[0], 16):
      parts.append(self.rfile.read(size))
      self.rfile.readline()
    self.rfile.readline()
    return b"".join(parts)

  @contextlib.contextmanager
  def _alone(self):
    url = urllib.parse.urlsplit(self.path)
    asked = dict(urllib.parse.parse_qsl(url.query))
    wanted = asked.get("ifGenerationMatch")

    def passes(body):
      name = (
        asked.get("name")
        or json.loads(
          body.split(b"\r\n\r\n" if b"\r\n\r\n" in body else b"\n\n", 1)[
            1
          ].split(b"--==0==")[0]
        )["name"]
      )
      path = url.path.removeprefix("/upload") + "/"
      path += urllib.parse.quote(name, safe="")
      status, _, content = self._ask("GET", path, b"", {})
      there = json.loads(content)["generation"] if status == 200 else "0"
      return there == wanted

    if wanted is None:
      yield lambda body: True
    else:
      with self.server.lock:
        yield passes

  def _forward(self, body):
    if not self.server.is_google:
      # A GET beside a PUT of one object may find nothing in it in moto.
      with self.server.lock:
        return self._ask(self.command, self.path, body, self._given(body))
    headers = self._given(body)
    uploads = self.server.uploads
    upload = "upload_id=" in self.path and self.path
    if upload in uploads:
      return uploads[upload]
    status, found, content = self._ask(self.command, self.path, body, headers)
    if upload and status == 200:
      uploads[upload] = status, found, content
    url = urllib.parse.urlsplit(self.path)
    if status in (200, 206) and "alt=media" in url.query:
      path = url.path.removeprefix("/download")
      about = json.loads(self._ask("GET", path, b"", {})[2])
      found["x-goog-generation"] = about["generation"]
    return status, found, content

  def _given(self, body):
    left_out = ("connection", "transfer-encoding", "expect", "content-length")
    given = self.headers.items()
    kept = {name: one for name, one in given if name.lower() not in left_out}
    return kept | {"Content-Length": str(len(body))}

  def _ask(self, method, path, body, headers, again=5):
    to = http.client.HTTPConnection("127.0.0.1", self.server.behind)
    try:
      to.request(method, path, body, headers)
      answer = to.getresponse()
      return answer.status, dict(answer.getheaders()), answer.read()
    except OSError as error:
      # The emulator has one thread, and resets what comes when it is busy.
      if not again or method not in ("GET", "HEAD"):
        raise RuntimeError(f"{method} {path}: {error!r}") from None
    finally:
      to.close()
    time.sleep(0.1)
    return self._ask(method, path, body, headers, again - 1)

  def _answer(self, status, headers, content, cut=False):
    self.send_response_only(status)
    length = len(content)
    for name, value in headers.items():
      if name.lower() == "content-length" and self.command == "HEAD":
        length = value
      elif name.lower() not in (
        *("connection", "transfer-encoding", "content-length"),
      ):
        self.send_header(name, value)
    self.send_header("Content-Length", str(length))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(content[: len(content) // 2] if cut else content)
    if cut:
      self.close_connection = True

  do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _handle


class _Proxy(http.server.ThreadingHTTPServer):
  daemon_threads = True
  request_queue_size = 128

  def __init__(self, behind, is_google):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.is_google = is_google
    self.behind, self.faults = behind, Faults()
    self.lock, self.uploads = threading.Lock(), {}

  def handle_error(self, *given):
    if not isinstance(sys.exception(), ConnectionError):  # of killed clients
      super().handle_error(*given)


@contextlib.contextmanager
def service(kind):
  """(environment of its clients, Faults) of a service with a bucket."""
  _forget_clients()
  port = _free_port()
  process = subprocess.Popen(
    _command(kind, port),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    env={**os.environ, **environment(kind, port)},
  )
  proxy = _Proxy(port, kind == "gs")
  threading.Thread(target=proxy.serve_forever, daemon=True).start()
  try:
    _wait(port, process)
    if kind == "s3":
      to = http.client.HTTPConnection("127.0.0.1", port)
      to.request("PUT", f"/{BUCKET}")
      to.getresponse().read()
    yield environment(kind, proxy.server_address[1]), proxy.faults
  finally:
    proxy.shutdown()
    process.kill()
    process.wait()


def _forget_clients():
  """Of the service before, to whose port fsspec and etils would keep on."""
  import fsspec
  from etils.epath import backend

  backend.fsspec_backend._get_filesystem.cache_clear()
  for protocol in ("gcs", "s3"):
    with contextlib.suppress(ImportError):  # one that is not installed
      fsspec.get_filesystem_class(protocol).clear_instance_cache()


def _wait(port, process):
  end = time.monotonic() + 60
  while time.monotonic() < end and process.poll() is None:
    with contextlib.suppress(OSError):
      socket.create_connection(("127.0.0.1", port), 1).close()
      return
    time.sleep(0.1)
  raise RuntimeError("the service of the test does not start")
