# SPDX-License-Identifier: Apache-2.0
"""Plots as SVG that stands in a page: its fonts, and colours by CSS."""

import contextlib
import io
import re
from typing import NamedTuple

from mrpo_jax.reports.page.markup import Html, escaped, tag

SIZE = (4.1, 2.5)  # inches; 295 points are about the width of a phone
COLOURS = 8  # --c0 to --c7 of the page
DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
MARKERS = "osD^vXP*"
# Colours that matplotlib is given, each replaced by a variable of CSS.
INK, GRID = "#0a0c01", "#0a0c02"
VARIABLES = {INK: "ink", GRID: "line"} | {
  f"#0a0d0{n}": f"c{n}" for n in range(COLOURS)
}
SETTINGS = {
  "svg.fonttype": "none",  # text stays text: small, and read aloud
  "text.parse_math": False,  # a name may hold a dollar
  "font.size": 9,
  "axes.edgecolor": INK,
  "axes.labelcolor": INK,
  "axes.titlesize": 9,
  "axes.linewidth": 0.6,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": GRID,
  "grid.linewidth": 0.6,
  "text.color": INK,
  "xtick.color": INK,
  "ytick.color": INK,
  "xtick.major.size": 2.5,
  "ytick.major.size": 0,
  "xtick.major.width": 0.6,
  "legend.frameon": False,
  "legend.fontsize": 8.5,
  "lines.linewidth": 1.6,
  "lines.markersize": 4.5,
}


class Style(NamedTuple):
  """How a line looks, in colour and without."""

  colour: str
  dashes: object
  marker: str

  def of_line(self, points=1):
    """Keywords of `Axes.plot`, with about eight markers."""
    return dict(
      color=self.colour,
      linestyle=self.dashes,
      marker=self.marker,
      markevery=max(points // 8, 1),
    )


def style_of(n):
  """The Style of the n-th thing; 32 differ without colour."""
  return Style(
    f"#0a0d0{n % COLOURS}",
    DASHES[n % len(DASHES)],
    MARKERS[(n + n // COLOURS) % len(MARKERS)],
  )


def plot(name, title, about, draw, *, size=SIZE):
  """A plot of the page, below its caption.

  Args:
    name: of the plot, unlike all others of the page.
    title: what it shows, in a few words.
    about: how to read it, in a sentence.
    draw: called with the axes.
    size: inches.
  """
  caption = tag("figcaption", tag("strong", title), " ", tag("span", about))
  drawn = svg(name, title, about, draw, size=size)
  return tag("figure", caption, drawn, class_="plot")


def svg(name, title, about, draw, *, size=SIZE, bare=False):
  """SVG text of a plot, with a title that is read aloud."""
  import matplotlib
  from matplotlib.backends.backend_svg import FigureCanvasSVG
  from matplotlib.figure import Figure

  with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": name}):
    whole = Figure(size, layout="constrained", facecolor="none")
    FigureCanvasSVG(whole)
    axes = whole.add_subplot(facecolor="none")
    axes.grid(visible=not bare, axis="y")
    if bare:
      axes.set_axis_off()
    draw(axes)
    file = io.StringIO()
    with contextlib.redirect_stderr(io.StringIO()):
      whole.savefig(
        file, format="svg", metadata={"Date": None, "Creator": None}
      )
  return _inline(file.getvalue(), name, title, about)


def _inline(text, name, title, about):
  """The SVG of matplotlib as a part of a page."""
  text = text[text.index("<svg") :]
  box = re.search(r'viewBox="([^"]+)"', text)[1]
  text = text[text.index(">") + 1 : text.rindex("</svg>")]
  text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
  text = re.sub(r"<style .*?</style>", "", text, flags=re.DOTALL)
  text = re.sub(r'<g id="[^"]*"', "<g", text)  # of which pages have many alike
  text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
  text = text.replace("xlink:href", "href")
  text = re.sub(r"\s*\n\s*", " ", text)
  text = re.sub(r'\b(d|x|y|transform)="[^"]*"', _shorter, text)
  for colour, variable in VARIABLES.items():
    text = text.replace(colour, f"var(--{variable})")
  heads = tag("title", title, id=f"{name}-t") + tag(
    "desc", about, id=f"{name}-d"
  )
  return Html(
    f'<svg viewBox="{box}" role="img" aria-labelledby="{escaped(name)}-t '
    f'{escaped(name)}-d">{heads}{text}</svg>'
  )


def _shorter(found):
  """An attribute with its places to a hundredth of a point; text stays."""

  def rounded(number):
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")

  return re.sub(r"-?\d+\.\d{3,}", rounded, found[0])


def swatch(n, where):
  """A short piece of the n-th line, beside its name; once at each place."""

  def draw(axes):
    axes.plot(
      [0, 1, 2], [0, 0, 0], **style_of(n).of_line() | {"markevery": [1]}
    )
    axes.set_xlim(-0.1, 2.1)

  name = f"swatch-{where}-{n}"
  drawn = svg(name, "", "", draw, size=(0.5, 0.2), bare=True)
  return tag("span", drawn, class_="swatch", aria_hidden="true")
