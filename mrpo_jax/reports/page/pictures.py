# SPDX-License-Identifier: Apache-2.0
"""Pictures of a report: what a denoiser drew, before and after."""

import base64
import re

from mrpo_jax.reports.page.markup import tag
from mrpo_jax.runs.workdir import PICTURES

NAME = re.compile(r"step-(0|[1-9][0-9]{0,9})\.png")
LARGEST = 4_000_000  # bytes of one, in a page
PNG = b"\x89PNG\r\n\x1a\n"


def pictures(series):
  """The first and the last picture of each run, side by side; None of none."""
  found = []
  for run in (run for runs in series.values() for run in runs):
    paths = _steps(run.folder / PICTURES)
    for step in dict.fromkeys(sorted(paths)[:1] + sorted(paths)[-1:]):
      found.append(_figure(run.name, step, paths[step]))
  return tag("div", found, class_="plots") if any(found) else None


def _steps(folder):
  """{step: path} of the pictures that a page can show."""
  found = {}
  for path in sorted(folder.glob("step-*.png")):
    match = NAME.fullmatch(path.name)
    if match and path.is_file() and path.stat().st_size <= LARGEST:
      found[int(match[1])] = path
  return found


def _figure(name, step, path):
  """The picture as an element that fetches nothing; "" where it is no PNG."""
  content = path.read_bytes()
  if not content.startswith(PNG):
    return ""
  title = f"{name}, step {step}"
  about = "what it draws: a row for each class, always of the same noises"
  source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
  caption = tag("figcaption", tag("strong", title), tag("span", about))
  picture = tag("img", src=source, alt=f"{title}: {about}")
  return tag("figure", caption, picture, class_="plot")
