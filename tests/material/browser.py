# SPDX-License-Identifier: Apache-2.0
"""A headless browser that looks at a page, without a network."""

import html
import json
import re
import shutil
import subprocess

import PIL.Image
import pytest

NAMES = (
  "chromium",
  "chromium-browser",
  "google-chrome",
  "google-chrome-stable",
)
FLAGS = (
  *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
  *("--disable-dev-shm-usage", "--force-device-scale-factor=1"),
  "--host-resolver-rules=MAP * ~NOTFOUND",
)
# No window is as narrow as a phone: the page stands in a frame.
FRAME = """<!doctype html>
<body style="margin: 0"><iframe src="{page}" style="border: 0; display: block;
  width: {width}px; height: {height}px"></iframe><pre id="probe"></pre>
<script>
addEventListener("message", (said) => {{
  document.getElementById("probe").textContent = said.data;
}});
</script></body>"""
# Run in a copy of the page: its policy forbids scripts.
PROBE = """
<script>
addEventListener("load", () => {
  const box = (one) => {
    const b = one.getBoundingClientRect();
    return [b.left + scrollX, b.top + scrollY, b.width, b.height];
  };
  const root = document.documentElement;
  const found = {
    width: innerWidth,
    page: [root.scrollWidth, root.scrollHeight],
    plots: [...document.querySelectorAll("figure svg")].map(box),
    titles: [...document.querySelectorAll("figure svg > title")].map(
      (one) => one.textContent),
    text: [...document.querySelectorAll("figure svg text")].map(
      (one) => one.getBoundingClientRect().height),
    // Of the box of each table: how wide it is, and what is in it.
    tables: [...document.querySelectorAll(".scroll")].map(
      (one) => [one.textContent.slice(0, 40), one.clientWidth,
        one.scrollWidth]),
    loaded: performance.getEntriesByType("resource").map((one) => one.name),
    scripts: document.scripts.length - 1,
  };
  parent.postMessage(JSON.stringify(found), "*");
});
</script></body>"""


def browser():
  """The path of a browser; without one the test is skipped."""
  paths = [path for name in NAMES if (path := shutil.which(name))]
  if not paths:
    pytest.skip("no chromium here; apt-get install chromium")
  return paths[0]


def _run(folder, *argv):
  command = [browser(), *FLAGS, f"--user-data-dir={folder / 'profile'}", *argv]
  return subprocess.run(command, capture_output=True, text=True, timeout=300)


def _framed(path, width, height):
  """A page with `path` in a frame of that size, beside it."""
  frame = path.with_name(f"frame-{path.stem}-{width}.html")
  text = FRAME.format(page=path.name, width=width, height=height)
  frame.write_text(text, encoding="utf-8")
  return frame


def screenshot(path, to, width, height, *flags):
  """Writes a PNG of the top of a page; `path` and `to` are pathlib.Paths."""
  frame = _framed(path, width, height)
  size = f"--window-size={max(width, 500)},{height}"
  done = _run(to.parent, size, *flags, f"--screenshot={to}", frame.as_uri())
  assert to.exists(), done.stderr
  with PIL.Image.open(to) as image:
    image.crop((0, 0, width, height)).save(to)


def probed(path, width):
  """What a page says of its layout at some width: see PROBE."""
  text = path.read_text(encoding="utf-8")
  text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
  copy = path.with_name("probe.html")
  copy.write_text(text.replace("</body>", PROBE), encoding="utf-8")
  frame = _framed(copy, width, 900)
  size = f"--window-size={max(width, 500)},900"
  done = _run(path.parent, size, "--dump-dom", frame.as_uri())
  found = re.search(r'<pre id="probe">(.+?)</pre>', done.stdout, re.DOTALL)
  assert found, done.stderr
  return json.loads(html.unescape(found[1]))
