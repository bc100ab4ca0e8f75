"""How pages on evaluations look, and what moves on them."""

from __future__ import annotations

STYLE = """
:root { --first: #2563eb; --second: #d97706; --third: #64748b; --good: #15803d; --bad: #c2410c;
  --tint: #dbe6fd; }
@media (prefers-color-scheme: dark) { :root { --first: #74a4ff; --second: #f5a742; --third: #93a1b5;
  --good: #4cc38a; --bad: #ff8a5c; --tint: #22355e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 0 1.2rem 4rem; max-width: 76rem; }
header { padding: 1.6rem 0 .6rem; } h1 { margin: 0 0 .3rem; font-size: 1.6rem; overflow-wrap: anywhere; }
h2 { margin: 0 0 .3rem; font-size: 1.25rem; } h3 { margin: 1.4rem 0 .5rem; font-size: 1rem; }
p { margin: .2rem 0 .8rem; } .soft, small { color: var(--soft); } small { font-size: .8rem; }
nav { position: sticky; top: 0; z-index: 2; background: var(--paper); border-bottom: 1px solid var(--line); }
nav { display: flex; gap: 1.1rem; overflow-x: auto; white-space: nowrap; padding: .6rem 0; }
nav a { text-decoration: none; } section { padding-top: 2rem; scroll-margin-top: 2rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(4.9rem, 1fr)); gap: .5rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile b { white-space: nowrap; }
.tile.main { background: var(--accent); border-color: var(--accent); color: var(--paper); }
.tile.main small { color: inherit; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--accent); }
pre, .wide { overflow-x: auto; } pre { font-size: .8rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.columns { gap: 1.6rem 2.5rem; } .columns > * { min-width: 0; }
.bars { display: grid; grid-template-columns: minmax(6.5rem, auto) 1fr auto; gap: .5rem .8rem; }
.bars { align-items: center; margin: .4rem 0 1rem; }
.bar-name small { display: block; max-width: 17rem; line-height: 1.25; }
.bar { display: block; height: .95rem; border-radius: .25rem; background: var(--first); min-width: 2px; }
.bar.second { background: var(--second); } .bar.third { background: var(--third); }
.bar-value { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.chart { width: 100%; max-width: 34rem; height: auto; display: block; } .grid { stroke: var(--line); }
.line { fill: none; stroke-width: 2.2; stroke: var(--first); stroke-linejoin: round; }
.line.second { stroke: var(--second); } .line.third { stroke: var(--third); }
.line.dashed { stroke: var(--soft); stroke-dasharray: 4 4; stroke-width: 1.3; }
.column { fill: var(--first); opacity: .3; } .column.third { fill: var(--third); opacity: .55; }
.chart text.small { font-size: 9px; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .82rem; margin: .3rem 0; }
.legend span::before { content: ''; display: inline-block; width: 1rem; height: .2rem; margin-right: .35rem;
  vertical-align: middle; background: var(--first); }
.legend .second::before { background: var(--second); } .legend .third::before { background: var(--third); }
.legend .dashed::before { background: none; height: 0; border-top: 2px dashed var(--soft); }
.classes { width: 100%; font-size: .88rem; } .classes th { white-space: nowrap; vertical-align: bottom; }
.classes td, .classes th { padding: .28rem .5rem; } .classes th button { all: unset; cursor: pointer; }
.classes th button:focus-visible { outline: 2px solid var(--accent); }
.classes th[aria-sort=ascending] button::after { content: ' ▲'; font-size: .7em; }
.classes th[aria-sort=descending] button::after { content: ' ▼'; font-size: .7em; }
.classes tbody tr:hover { background: var(--card); } .classes td:first-child { min-width: 6.5rem; }
.classes td:first-child, .classes th:first-child { position: sticky; left: 0; background: var(--paper); }
td.number, .classes td:last-child { white-space: nowrap; }
td.ap { background: linear-gradient(var(--tint), var(--tint)) no-repeat 0 / var(--share) 84%; }
td.ap { min-width: 6rem; }
.better { color: var(--good); } .worse { color: var(--bad); }
.matrix { display: block; width: 100%; max-width: var(--size); min-width: min(var(--size), 40rem); }
.matrix text { font-size: 10px; } .matrix.roomy text { font-size: 12.5px; }
.matrix .right { fill: var(--first); } .matrix .wrong { fill: var(--second); }
.matrix .frame { fill: none; stroke: var(--line); } .matrix .number { font-weight: 600; }
.beside { display: grid; grid-template-columns: minmax(0, 2.2fr) minmax(0, 1fr); gap: 1rem 2rem; }
.beside table { font-size: .88rem; } .beside td, .beside th { padding: .25rem .45rem; }
.beside td:not(.number) { overflow-wrap: anywhere; } .beside .number { white-space: nowrap; }
.control { display: none; } .live .control { display: flex; } .control label { white-space: nowrap; }
.control { flex-wrap: wrap; gap: .5rem 1.1rem; align-items: center; margin: .5rem 0 .8rem; font-size: .9rem; }
select, input[type=search] { font: inherit; color: inherit; background: var(--card); max-width: 14rem;
  border: 1px solid var(--line); border-radius: .4rem; padding: .2rem .4rem; }
input[type=range] { vertical-align: middle; width: 9rem; accent-color: var(--accent); }
.of-kind > summary { color: inherit; padding: .5rem 0; border-top: 1px solid var(--line); }
.of-kind > summary h3 { display: inline; margin: 0; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(46%, 15rem), 1fr)); }
.gallery { gap: .8rem; margin: .6rem 0 1.4rem; }
.case { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; }
.case svg { display: block; width: 100%; aspect-ratio: 4 / 3; background: #101418; cursor: zoom-in; }
.case.large { grid-column: 1 / -1; } .case.large svg { max-height: 80vh; cursor: zoom-out; }
.case figcaption { padding: .45rem .65rem .55rem; line-height: 1.4; } .case .where { color: var(--soft); }
.gone { aspect-ratio: 4 / 3; display: grid; place-items: center; color: var(--soft); }
.case rect { fill: none; vector-effect: non-scaling-stroke; stroke-width: 2.5px; }
.case rect.halo { stroke: #000; stroke-width: 5px; opacity: .55; }
.case rect.found { stroke: #ff8c2e; } .case rect.truth { stroke: #43e07d; }
.case rect.other { stroke-width: 1.3px; stroke-dasharray: 5 3; opacity: .85; }
b.found, b.truth { display: inline-block; } .case b { margin-right: .35rem; }
b.found::before, b.truth::before { content: ''; display: inline-block; width: .7rem; height: .7rem;
  border: 3px solid #ff8c2e; margin-right: .3rem; } b.truth::before { border-color: #43c06d; }
.hide-found rect.found, .hide-truth rect.truth, .hide-found rect.halo.of-found,
.hide-truth rect.halo.of-truth, [hidden] { display: none !important; }
@media (max-width: 46rem) { .beside { grid-template-columns: minmax(0, 1fr); } body { padding: 0 .9rem 3rem; }
  .bars { grid-template-columns: minmax(5.5rem, 8.5rem) 1fr auto; } .chart text { font-size: 13px; } }
@media print { nav, .control { display: none !important; } }
"""

# Controls that would do nothing without it are hidden until it runs.
TABLE_SCRIPT = """
'use strict';
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const one = (selector, within = document) => within.querySelector(selector);
document.documentElement.classList.add('live');

function sortBy(header) {
  const table = header.closest('table'), column = header.cellIndex;
  const rises = header.getAttribute('aria-sort') === 'descending';
  const value = (row) => {
    const cell = row.cells[column].dataset.value;
    return column ? (cell === '' ? -Infinity : Number(cell)) : cell;
  };
  const compare = (a, b) => column ? value(a) - value(b) : value(b).localeCompare(value(a));
  const rows = [...table.tBodies[0].rows].sort((a, b) => rises ? compare(a, b) : compare(b, a));
  all('th', table).forEach((other) => other.removeAttribute('aria-sort'));
  header.setAttribute('aria-sort', rises ? 'ascending' : 'descending');
  table.tBodies[0].append(...rows);
}

all('.classes th button').forEach((button) =>
  button.addEventListener('click', () => sortBy(button.closest('th'))));
all('input.search').forEach((search) => search.addEventListener('input', () => {
  const wanted = search.value.toLowerCase();
  all('.classes tbody tr').forEach((row) => {
    row.hidden = !row.cells[0].dataset.value.toLowerCase().includes(wanted);
  });
}));
"""

# Runs behind TABLE_SCRIPT.
SCRIPT = """
const figures = JSON.parse(one('#figures').textContent);
const chosen = {label: '', score: 0};

function drawCurves() {
  const curves = chosen.label === '' ? figures.curves : figures.classes[chosen.label].curves;
  const {left, top, width, height} = figures.chart;
  all('#curves polyline.line').forEach((line, number) => {
    const values = Object.values(curves)[number] || [];
    line.setAttribute('points', values.map((precision, i) =>
      (left + width * i / (values.length - 1)).toFixed(1) + ',' +
      (top + height * (1 - precision)).toFixed(1)).join(' '));
  });
  one('#curves-of').textContent =
    chosen.label === '' ? 'mean over the classes' : figures.classes[chosen.label].name;
}

function isShown(figure) {
  const {classes, score} = figure.dataset;
  return (chosen.label === '' || classes.split(' ').includes(chosen.label))
    && (score === '' || Number(score) >= chosen.score);
}

function filterGalleries() {
  for (const group of all('.of-kind')) {
    const cases = all('.case', group);
    cases.forEach((figure) => { figure.hidden = !isShown(figure); });
    const shown = cases.filter((figure) => !figure.hidden).length;
    one('.count', group).textContent = shown === cases.length ? shown : `${shown} of ${cases.length}`;
  }
}

function chooseClass(label) {
  chosen.label = label;
  all('.pick-class').forEach((select) => { select.value = label; });
  drawCurves();
  filterGalleries();
}

all('.pick-class').forEach((select) => select.addEventListener('change', () => chooseClass(select.value)));
all('a[data-label]').forEach((link) => link.addEventListener('click', () => chooseClass(link.dataset.label)));
all('.case svg').forEach((picture) => picture.addEventListener('click', () =>
  picture.closest('.case').classList.toggle('large')));
one('#score').addEventListener('input', (event) => {
  chosen.score = Number(event.target.value);
  one('#score-value').textContent = chosen.score.toFixed(2);
  filterGalleries();
});
for (const sort of ['found', 'truth']) one(`#show-${sort}`).addEventListener('change', (event) =>
  one('#galleries').classList.toggle(`hide-${sort}`, !event.target.checked));
one('#confusion-score').addEventListener('change', (event) => all('.confusion').forEach((block) => {
  block.hidden = block.dataset.score !== event.target.value;
}));
filterGalleries();
"""
