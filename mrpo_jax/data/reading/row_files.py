# SPDX-License-Identifier: Apache-2.0
"""Rows of JSON lines, JSON and Parquet files, each with its place in words."""

import contextlib
import gzip
import io
import json
import zlib

from mrpo_jax import files
from mrpo_jax.data.reading import values
from mrpo_jax.errors import InputError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
BOM = b"\xef\xbb\xbf"
LONGEST = 2**28  # bytes of one line, and of what always may be unpacked
RATIO = 100  # unpacked bytes for each byte of a file; text has 3 to 20
# What turns are made of in Parquet: other fields of theirs are not read.
PLAIN = {"STRING", "JSON", "ENUM", "NONE", "INT", "UNKNOWN"}
STORED = {"BYTE_ARRAY", "BOOLEAN", "INT32", "INT64", "FLOAT", "DOUBLE"}
NUMBERS = {"DECIMAL", "FLOAT16"}


def rows_of(path, known=(), prompts=()):
  """Iterates over (place in words, row) of a file; places are checked at once.

  Args:
    path: of a regular file with one of SUFFIXES.
    known: names of columns that mean something.  Of a Parquet file only these
      are read; every other one is null in its rows.
    prompts: those of them that hold prompts.  Where a Parquet file has none of
      them, the texts of all other columns are read too.

  Raises:
    InputError: there is no such file, or it is none that can be read; while
      iterating: it is damaged, unpacks to far more than text would, or a row
      is not one.
  """
  path = files.path_of(path)
  if not path.name.lower().endswith(SUFFIXES):
    suffixes = ", ".join(SUFFIXES)
    raise InputError(f"{path}: unknown file type; the known are {suffixes}")
  check_file(path)
  if path.name.lower().endswith(".parquet"):
    return _parquet_rows(path, known, prompts)
  return _json_rows(path)


def check_file(path):
  """InputError where a path is no file whose end can be read."""
  try:
    files.refuse_endless(path)
  except FileNotFoundError:
    raise InputError(f"{path}: no such file; check the path") from None
  except OSError as error:
    raise unreadable(path, error) from None
  if files.path_of(path).is_dir():
    raise InputError(f"{path}: is a directory; name a file in it")


# JSON.


def _json_rows(path):
  name = path.name.lower()
  most = max(LONGEST, RATIO * files.size_of(path))
  try:
    with _opened(path) as file:
      if name.endswith((".json", ".json.gz")):
        whole = file.read(most + 1)
        _refuse_bomb(path, len(whole), most)
        if whole.removeprefix(BOM).lstrip().startswith(b"["):
          for i, row in enumerate(_parsed(whole, path), 1):
            values.refuse_deep(row, f"{path} row {i}")
            yield f"{path} row {i}", row
          return
        # The hub is full of .json files that hold JSON lines.
        file = io.BytesIO(whole)
      # Bytes, because a str would also be split at U+2028.
      lines = iter(lambda: file.readline(LONGEST + 1), b"")
      for i, line in enumerate(lines, 1):
        _refuse_bomb(path, file.tell(), most)
        if len(line) > LONGEST:
          raise long_line(path, i)
        if line.strip():
          yield json_row(line, path, i)
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise _damaged(path, "gzip", error) from None
  except OSError as error:
    raise unreadable(path, error) from None


def json_row(line, path, number):
  """(place in words, row) of the bytes of one line of JSON lines."""
  row, where = _parsed(line.rstrip(), path, number), f"{path} line {number}"
  values.refuse_deep(row, where)
  return where, row


@contextlib.contextmanager
def _opened(path):
  """The bytes of a file of rows, unpacked."""
  with files.opened(path) as file:
    if path.name.lower().endswith(".gz"):
      with gzip.open(file) as unpacked:
        yield unpacked
    else:
      yield file


def _refuse_bomb(path, unpacked, most):
  if unpacked > most:
    raise InputError(
      f"{path}: unpacks to more than {most} bytes, {RATIO} times its size, "
      "which text does not; unpack it yourself if it is meant so"
    )


def _parsed(text, path, line=1):
  try:
    return json.loads(text.decode("utf-8-sig"), object_pairs_hook=files.once)
  except UnicodeDecodeError as error:
    line += error.object[: error.start].count(b"\n")
    problem = "is not UTF-8; save the file as UTF-8"
  except json.JSONDecodeError as error:
    line += error.lineno - 1
    problem = f"is not JSON ({error.msg}, column {error.colno}); want one "
    problem += "object per line, or in a .json file a list of objects"
  except (ValueError, RecursionError) as error:
    problem = f"is not usable JSON ({error}); remove it"
  raise InputError(f"{path} line {line}: {problem}")


def _twice(names):
  return next(name for i, name in enumerate(names) if name in names[:i])


# Parquet.


def _parquet_rows(path, known, prompts):
  import pyarrow.parquet

  number = 0
  with blames_parquet(path, lambda: f"{path} after row {number}"):
    with (
      files.opened(path) as file,
      pyarrow.parquet.ParquetFile(file) as table,
    ):
      columns = parquet_columns(path, table, known, prompts)
      names = table.schema_arrow.names
      for batch in table.iter_batches(batch_size=1024, columns=columns):
        for row in batch.to_pylist(maps_as_pydicts="strict"):
          number += 1
          where = f"{path} row {number}"
          yield where, parquet_row(row, names, where)


def parquet_row(row, names, where):
  """A row as JSON would have given it; columns that were not read are null."""
  values.refuse_deep(row, where)
  return dict.fromkeys(names) | values.as_in_json(row)


@contextlib.contextmanager
def blames_parquet(path, where):
  """InputError where a Parquet file is damaged, or a column cannot be read.

  Args:
    path: of the file.
    where: () -> the place in words that was reached.
  """
  import pyarrow

  try:
    yield
  except InputError:
    raise
  except UnicodeDecodeError:
    raise InputError(f"{where()}: a text is not UTF-8; write it anew") from None
  except (pyarrow.ArrowException, OSError) as error:
    raise _damaged(path, "Parquet", error) from None
  except (ValueError, TypeError, OverflowError, LookupError) as error:
    reason = " ".join(str(error).split())
    raise InputError(
      f"{where()}: a column cannot be read ({reason}); leave it out of the file"
    ) from None


def parquet_columns(path, table, known, prompts):
  """Paths of the leaves to read; refuses a name that stands twice."""
  names = table.schema_arrow.names
  _refuse_twice(path, "", table.schema_arrow)
  some_text = not set(prompts).intersection(names)
  metadata, found = table.metadata, []
  unpacked = 0
  for j in range(metadata.num_columns):
    leaf = metadata.schema.column(j)
    name = max(
      (name for name in names if f"{leaf.path}.".startswith(f"{name}.")),
      key=len,
    )
    kind = leaf.logical_type.type
    if name in known:
      taken = (
        leaf.path == name
        or kind in PLAIN
        and leaf.physical_type in STORED
        or kind in NUMBERS
        or name == "tools"
        or ".tool_calls." in leaf.path
      )
    else:
      taken = some_text and kind == "STRING"
    if taken:
      found.append(leaf.path)
      unpacked += sum(
        metadata.row_group(i).column(j).total_uncompressed_size
        for i in range(metadata.num_row_groups)
      )
  _refuse_bomb(path, unpacked, max(LONGEST, RATIO * files.size_of(path)))
  return found


def _refuse_twice(path, where, fields):
  """InputError where two columns, or two fields of one, have one name."""
  import pyarrow

  names = [field.name for field in fields]
  if len(set(names)) < len(names):
    raise InputError(
      f"{path}: the column {where + _twice(names)!r} is twice; keep one"
    )
  for field in fields:
    kind = field.type
    while pyarrow.types.is_nested(kind) and hasattr(kind, "value_type"):
      kind = kind.value_type
    if pyarrow.types.is_struct(kind):
      _refuse_twice(path, f"{where}{field.name}.", kind)


# Refusals.


def long_line(path, number):
  """The InputError of a line that is longer than LONGEST."""
  return InputError(f"{path} line {number}: more than {LONGEST} bytes")


def unreadable(path, error):
  return InputError(f"{path}: cannot be read: {error.strerror or error}")


def _damaged(path, kind, error):
  reason = " ".join(str(error).split())
  return InputError(f"{path}: damaged {kind} file ({reason}); copy it again")
