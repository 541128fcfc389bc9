# SPDX-License-Identifier: Apache-2.0
"""Buckets, gs://BUCKET/NAME and s3://BUCKET/NAME: what a disk does otherwise.

A path there is an etils.epath.Path, over gcsfs or s3fs.  An object appears
whole or not at all; folders are names with a slash in them.  Credentials are
those that the clients find themselves.  Nobody outside `files` asks whether a
path is one of these, but for what there is no door to.
"""

import functools
import importlib.util
import json
import pathlib
import re
import tempfile

from mrpo_jax.errors import InputError

EXTRAS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # package, extra
URL = re.compile(r"(gs|s3)://([^/]+)(/.*)?", re.DOTALL)
# Whoever reads a folder looks for one of these first: so they come last.
LAST = (
  *("tokenizer_config.json", "adapter_config.json", "round.json"),
  *("config.json", "commit_success.txt"),
)


def is_bucket(path):
  """Does a text or a path name something in a bucket?"""
  return "://" in str(path) and str(path).split("://")[0] in EXTRAS


def path_of(text):
  """The epath.Path of a URL.

  Raises:
    InputError: it names no bucket, or its client is not installed.
  """
  found = URL.fullmatch(str(text))
  if found is None:
    raise InputError(f"{text}: names no bucket; want gs://BUCKET/NAME")
  package, extra = EXTRAS[found[1]]
  if importlib.util.find_spec(package) is None:
    raise InputError(
      f"{text}: {package} is not installed; pip install 'mrpo-jax[{extra}]'"
    )
  _configure()
  from etils import epath

  return epath.Path(str(text).rstrip("/"))


@functools.cache
def _configure():
  """Every client, Orbax's too, sees what others have written meanwhile."""
  import fsspec.config

  for name in ("gs", "gcs", "s3", "s3a"):
    fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False


def system_of(path):
  """(the fsspec file system of a path in a bucket, its name there).

  The name ends with no slash, which would stand between it and those below it.

  Raises:
    InputError: see `path_of`.
  """
  import fsspec

  scheme, name = str(path_of(path)).split("://", 1)
  if scheme == "gs":  # the very one of epath
    return fsspec.filesystem("gcs", finalize_on_close=True), name
  return fsspec.filesystem("s3"), name


def write(path, content):
  """Puts an object, whole."""
  system, name = system_of(path)
  system.pipe_file(name, content)


def create(path, content):
  """Puts an object where there is none; FileExistsError where one is.

  The service decides: ifGenerationMatch=0 at Google, If-None-Match: * at S3.
  """
  system, name = system_of(path)
  try:
    system.pipe_file(name, content, mode="create")
  except FileExistsError:
    # Of a put whose answer was lost, and which was sent again.
    if system.cat_file(name) != content:
      raise


def read_stamped(path):
  """(bytes, stamp) of an object; each time it is put, its stamp is another."""
  system, name = system_of(path)
  about = system.info(name)
  # Of one that is put between the two, the stamp is the older: `touch` fails.
  content = system.cat_file(name)
  if about.get("type") != "file":
    raise FileNotFoundError(str(path))
  return content, (
    about.get("generation"),
    about.get("ETag"),
    str(about.get("LastModified")),
  )


def touch(path, content, stamp):
  """Puts an object again, unless it is another than it was or gone."""
  system, name = system_of(path)
  generation, tag, _ = stamp
  bucket, _, key = name.partition("/")
  if generation is None:
    system.call_s3(
      "put_object", Bucket=bucket, Key=key, Body=content, IfMatch=tag
    )
  else:
    system.call(
      "POST",
      f"{system._location}/upload/storage/v1/b/{bucket}/o",
      uploadType="media",
      name=key,
      ifGenerationMatch=generation,
      data=content,
      json_out=True,
    )


def put_folder(folder, path):
  """Puts the files of a folder here below a path; see LAST for their order."""
  system, name = system_of(path)
  found = [one for one in folder.rglob("*") if one.is_file()]
  for one in sorted(found, key=_place_in_time):
    inside = one.relative_to(folder).as_posix()
    system.put_file(str(one), f"{name}/{inside}")


def put_marked(folder, path, mark):
  """`put_folder`; meanwhile a mark stands there; see `is_half_put`."""
  found = [one for one in folder.rglob("*") if one.is_file()]
  sizes = {
    one.relative_to(folder).as_posix(): one.stat().st_size for one in found
  }
  write(mark, json.dumps(sizes).encode())
  put_folder(folder, path)
  mark.unlink()


def is_half_put(path, mark):
  """Has a command that was killed put a part of a folder's files alone?

  Where it put all that its mark lists, the folder is whole; then the mark goes.
  """
  if not mark.exists():
    return False
  sizes = json.loads(mark.read_bytes() or "null")
  there = {inside: size for inside, size, _ in marks_of(path)}
  if sizes is None or any(there.get(one) != n for one, n in sizes.items()):
    return True
  mark.unlink()
  return False


def _place_in_time(path):
  place = LAST.index(path.name) if path.name in LAST else -1
  # The mark of the whole comes after those of its parts.
  return place, -len(path.parts), str(path)


def _below(path):
  """[(object, its name below a path, what the service says of it)], in order.

  Raises:
    InputError: such a name leads out of a folder, as "../x" does.
  """
  system, name = system_of(path)
  found = [
    (one, one.removeprefix(f"{name}/"), about)
    for one, about in sorted(system.find(name, detail=True).items())
    if one.startswith(f"{name}/") and one != f"{name}/"
  ]
  for _, inside, _ in found:
    # An object may have any name, and who put it may be a stranger.
    if inside.startswith("/") or ".." in inside.split("/"):
      raise InputError(
        f"{path}: its object {inside!r} leaves the folder; remove it"
      )
  return found


def marks_of(path):
  """[name, size, mark] of each object below a path; [] where there is none."""
  return [
    [inside, about["size"], about.get("generation") or about.get("ETag")]
    for _, inside, about in _below(path_of(path))
  ]


def fetch_folder(path, folder):
  """Copies all that stands below a path into a folder here."""
  system, _ = system_of(path)
  for one, inside, _ in _below(path):
    if not inside.endswith("/"):
      to = folder / inside
      to.parent.mkdir(parents=True, exist_ok=True)
      system.get_file(one, str(to))


def move_tree(path, to):
  """Gives all that stands below a path other names: first copies, then ends."""
  system, name = system_of(path)
  _, name_there = system_of(to)
  for one in system.find(name):
    system.cp_file(one, name_there + one.removeprefix(name))
  remove_tree(path)


def remove_tree(path):
  """Removes all that stands below a path: first what says that it is whole."""
  system, name = system_of(path)
  found = system.find(name)
  last = [one for one in found if one.rpartition("/")[2] in LAST]
  for one in sorted(last, key=lambda one: one.count("/")):
    system.rm_file(one)
  if rest := sorted({*found} - {*last}):
    system.rm(rest)


class Staged:
  """A folder in which files grow: itself, or where it is put from as a whole.

  In a bucket nothing can be added to a file.  Its `folder` is one here then,
  and what has changed in it is put at every `sync`.
  """

  def __init__(self, folder):
    self._to = path_of(folder) if is_bucket(folder) else None
    self._there = {}  # name -> size, of what was put
    self.folder = pathlib.Path(folder)
    if self._to is not None:
      self._draft = tempfile.TemporaryDirectory(prefix="mrpo-")
      self.folder = pathlib.Path(self._draft.name)

  def sync(self):
    if self._to is None:
      return
    for path in sorted(self.folder.iterdir()):
      if self._there.get(path.name) != (size := path.stat().st_size):
        write(self._to / path.name, path.read_bytes())
        self._there[path.name] = size

  def close(self):
    if self._to is not None:
      self.sync()
      self._draft.cleanup()
