# SPDX-License-Identifier: Apache-2.0
"""The style sheet of the page: one column, light and dark, and in print."""

STYLE = """
:root {
  --paper: #fbfbf9; --card: #ffffff; --ink: #23262b; --soft: #5d646e;
  --line: #dfe1e4; --mark: #fff3c4; --good: #0c6b45; --bad: #a4262c;
  --c0: #1260a8; --c1: #c24e00; --c2: #0f7a55; --c3: #8038a3;
  --c4: #b3203a; --c5: #6b6200; --c6: #00748f; --c7: #555a60;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a; --card: #1d2024; --ink: #e8e9eb; --soft: #a3a9b2;
    --line: #363b42; --mark: #4a3f12; --good: #6fd6a6; --bad: #ff9393;
    --c0: #74b5f2; --c1: #ffa368; --c2: #63d3a8; --c3: #d7a3ee;
    --c4: #ff8a9a; --c5: #dacb5c; --c6: #5fd2e6; --c7: #c3c8ce;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
    "Liberation Sans", sans-serif;
}
header, main, footer { max-width: 72rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 2.5rem; }
h1 {
  font-size: clamp(1.7rem, 5vw, 2.6rem); line-height: 1.15; margin: 0.1rem 0;
  letter-spacing: -0.02em; overflow-wrap: anywhere;
}
h2 {
  font-size: 1.35rem; margin: 3rem 0 0.8rem; padding-top: 1.2rem;
  border-top: 1px solid var(--line); letter-spacing: -0.01em;
}
h3 { font-size: 1rem; margin: 0 0 0.4rem; overflow-wrap: anywhere; }
.eyebrow {
  margin: 0; color: var(--soft); font-size: 0.8rem; letter-spacing: 0.12em;
  text-transform: uppercase;
}
.size, .note, footer { color: var(--soft); }
.note { font-size: 0.9rem; }
nav { display: flex; flex-wrap: wrap; gap: 0.4rem; margin: 1rem 0 0; }
nav a {
  color: inherit; text-decoration: none; font-size: 0.88rem;
  border: 1px solid var(--line); border-radius: 99px; padding: 0.15rem 0.8rem;
  background: var(--card);
}
nav a:hover, nav a:focus-visible { border-color: var(--ink); }
footer { padding: 3rem 1rem 2rem; font-size: 0.85rem; }
.cards {
  list-style: none; margin: 0; padding: 0; display: grid; gap: 0.8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr));
}
.cards li {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1rem;
}
.cards p { margin: 0; font-size: 0.95rem; }
.cards .big { font-size: 1.9rem; letter-spacing: -0.02em; }
.cards .verdict {
  color: var(--soft); margin-top: 0.5rem; font-size: 0.85rem;
}
b { font-weight: 650; }
.table {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  margin: 0.8rem 0; overflow: hidden;
}
.scroll { overflow-x: auto; }
table {
  border-collapse: collapse; width: 100%; font-size: 0.88rem;
  font-variant-numeric: tabular-nums;
}
.caption {
  color: var(--soft); font-size: 0.8rem; line-height: 1.45; margin: 0;
  padding: 0.6rem 0.8rem 0.8rem; border-top: 1px solid var(--line);
}
th, td {
  padding: 0.42rem 0.8rem; text-align: left; white-space: nowrap;
  vertical-align: baseline;
}
thead th {
  color: var(--soft); font-weight: 550; font-size: 0.8rem; white-space: normal;
  border-bottom: 1px solid var(--line);
}
tbody th {
  font-weight: 550; position: sticky; left: 0; background: var(--card);
  white-space: normal; min-width: 9rem; overflow-wrap: anywhere;
}
tbody tr + tr > * { border-top: 1px solid var(--line); }
.number { text-align: right; }
tr.seed > * { color: var(--soft); border-top: 0 !important; font-weight: 400; }
tr.seed th { padding-left: 2.2rem; }
small { color: var(--soft); font-size: 0.86em; }
.better b { color: var(--good); } .better b::after { content: " \\25b2"; }
.worse b { color: var(--bad); } .worse b::after { content: " \\25bc"; }
.better b::after, .worse b::after { font-size: 0.7em; vertical-align: 0.1em; }
.changed code { background: var(--mark); outline: 1px solid var(--soft); }
code { padding: 0.05em 0.3em; border-radius: 4px; }
code, pre { font: 0.86em/1.5 ui-monospace, "SF Mono", Menlo, monospace; }
td code { white-space: pre-wrap; overflow-wrap: anywhere; }
.plots {
  display: grid; gap: 0.8rem; margin: 0.8rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20.5rem), 1fr));
}
.plot {
  margin: 0; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: 0.8rem; display: flex; flex-direction: column;
}
.plot svg { margin-top: auto; }
.plot img { max-width: 100%; align-self: center; image-rendering: pixelated; }
figcaption { line-height: 1.35; margin-bottom: 0.4rem; }
figcaption strong {
  display: block; font-size: 0.95rem; font-weight: 600; overflow-wrap: anywhere;
}
figcaption span { color: var(--soft); font-size: 0.8rem; }
svg { display: block; width: 100%; height: auto; color: var(--ink); }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: inherit; }
.swatch { display: inline-block; width: 2.3rem; vertical-align: -0.12em; }
.legend {
  list-style: none; display: flex; flex-wrap: wrap; gap: 0.2rem 1.4rem;
  margin: 0; padding: 0.5rem 0; font-size: 0.9rem;
}
.legend span { overflow-wrap: anywhere; }
.warnings { padding-left: 1.2rem; margin: 0; }
.warnings li { margin: 0.25rem 0; overflow-wrap: anywhere; }
.sample {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 0.9rem 1rem; margin: 0.8rem 0;
}
.sample p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.sample .prompt { margin-bottom: 0.6rem; }
.sample .prompt b, .who { color: var(--soft); font-size: 0.78rem; }
.said {
  border-left: 3px dotted var(--line); margin: 0.5rem 0;
  padding: 0.1rem 0 0.1rem 0.8rem;
}
.said.after { border-left: 3px solid var(--c0); }
details { margin: 0.4rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
pre {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 0.8rem 1rem; overflow-x: auto;
}
@media (max-width: 40rem) {
  table, tbody, tr, tbody th, td { display: block; width: auto; }
  thead {  /* read aloud, and not seen: each cell has its title */
    position: absolute; width: 1px; height: 1px; overflow: hidden;
    clip-path: inset(50%);
  }
  tbody tr { padding: 0.5rem 0.7rem; }
  tbody tr + tr { border-top: 1px solid var(--line); }
  tbody tr + tr > * { border-top: 0; }
  th, td { padding: 0.1rem 0; white-space: normal; }
  tbody th { position: static; }
  td, .number { display: flex; gap: 1rem; text-align: right; }
  td > div { overflow-wrap: anywhere; }
  td::before {
    content: attr(data-title); color: var(--soft); margin-right: auto;
    text-align: left;
  }
  tr.seed { padding-left: 1.6rem; }
  tr.seed th { padding-left: 0; }
  td br { display: none; }
  h2 { margin-top: 2.2rem; }
}
@media print {
  :root { --paper: #fff; --card: #fff; }
  nav { display: none; }
  .plot, .cards li, .sample, tr { break-inside: avoid; }
  .scroll { overflow: visible; }
}
"""
