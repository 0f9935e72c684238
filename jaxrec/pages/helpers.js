'use strict';
const DATA = JSON.parse(document.getElementById('data').textContent);
const SVG = 'http://www.w3.org/2000/svg';

/* ---- small helpers ---- */
function make(tag, attributes = {}, ...children) {
  const svg = make.svg.has(tag);
  const node = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== ''));
  return node;
}
make.svg = new Set(['svg', 'g', 'line', 'path', 'circle', 'rect', 'text', 'title']);
const number = (x, digits = 4) => (x === null || x === undefined) ? '–'
  : x.toFixed(digits).replace(/^(-?)0\./, '$1.');
const signed = (x) => (x > 0 ? '+' : '') + number(x);
const pvalue = (p) => p < 1e-4 ? '< .0001' : number(p);
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
/* [k, value] of the metrics `kind@k`, ascending; means over domains, `kind@k macro`, are none of them. */
const byCutoff = (metrics, kind) => Object.entries(metrics).map(([name, value]) => [name.split('@'), value])
  .filter(([[name, k]]) => name === kind && !isNaN(k)).map(([[, k], value]) => [+k, value]).sort((a, b) => a[0] - b[0]);

/* A metric as groups have it: none of them is a mean over domains. */
const ofGroups = (metric) => metric.replace(/ macro$/, '');

function ticks(low, high, count = 5) {
  const span = high - low || Math.abs(high) || 1;
  const raw = span / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * .999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}
const short = (x) => Math.abs(x) >= 1000 ? `${+(x / 1000).toFixed(1)}k`
  : String(+x.toFixed(4)).replace(/^(-?)0\./, '$1.');

/* ---- charts ---- */
const W = 520, H = 270, PAD = { left: 46, right: 12, top: 10, bottom: 34 };

function frame(x, y, xs, ys, xname, labels = null, height = H) {
  const svg = make('svg', { viewBox: `0 0 ${W} ${height}`, role: 'img' });
  for (const t of ys) svg.append(
    make('line', { class: 'grid', x1: PAD.left, x2: W - PAD.right, y1: y(t), y2: y(t) }),
    make('text', { x: PAD.left - 6, y: y(t) + 4, 'text-anchor': 'end' }, short(t)));
  xs.forEach((t, i) => svg.append(make('text', { x: x(t), y: height - PAD.bottom + 16,
    'text-anchor': 'middle' }, labels ? labels[i] : short(t))));
  svg.append(make('line', { class: 'axis', x1: PAD.left, x2: W - PAD.right, y1: height - PAD.bottom,
    y2: height - PAD.bottom }));
  svg.append(make('text', { x: (PAD.left + W - PAD.right) / 2, y: height - 3,
    'text-anchor': 'middle' }, xname));
  return svg;
}

const scale = (from, to, a, b) => (v) => a + (from === to ? .5 : (v - from) / (to - from)) * (b - a);

function lines(series, xname, { log = false, zero = false } = {}) {
  const points = series.flatMap((s) => s.points);
  if (!points.length) return empty();
  const at = (v) => log ? Math.log(v) : v;
  const xvalues = points.map((p) => at(p[0])), yvalues = points.map((p) => p[1]);
  const high = Math.max(...yvalues), low = zero ? 0 : Math.min(...yvalues);
  const ys = ticks(low, high);
  const y = scale(Math.min(low, ys[0] ?? low), Math.max(high, ys.at(-1) ?? high), H - PAD.bottom, PAD.top);
  const raw = scale(Math.min(...xvalues), Math.max(...xvalues), PAD.left + 8, W - PAD.right - 8);
  const x = (v) => raw(at(v));
  const distinct = [...new Set(points.map((p) => p[0]))].sort((a, b) => a - b);
  const xs = log ? distinct : ticks(distinct[0], distinct.at(-1), 6);
  const svg = frame(x, y, xs, ys, xname);
  for (const s of series) {
    const path = s.points.map((p, i) => `${i ? 'L' : 'M'}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`);
    svg.append(make('path', { d: path.join(''), fill: 'none', stroke: s.color,
      'stroke-width': s.thin ? 1 : 2, opacity: s.thin ? .3 : 1, 'stroke-dasharray': s.dash || null }));
    if (!s.thin && (log || s.points.length < 40)) for (const p of s.points) {
      svg.append(make('circle', { cx: x(p[0]), cy: y(p[1]), r: 3, fill: s.color },
        make('title', {}, `${s.name}: ${number(p[1])} at ${p[0]}`)));
    }
    if (s.label) {
      const [k, v] = s.points.at(-1);
      const above = y(v) - 7 > PAD.top + 8;
      svg.append(make('text', { x: x(k) - 8, y: y(v) + (above ? -7 : 16), 'text-anchor': 'end' }, s.name));
    }
  }
  return svg;
}

const empty = () => make('p', { class: 'none' }, 'nothing to show');

/* ---- page ---- */
function facts(pairs) {
  return make('dl', {}, ...pairs.flatMap(([k, v]) => [make('dt', {}, k), make('dd', {}, String(v))]));
}

function theme() {
  const dark = matchMedia('(prefers-color-scheme: dark)').matches;
  const now = document.documentElement.dataset.theme || (dark ? 'dark' : 'light');
  document.documentElement.dataset.theme = now === 'dark' ? 'light' : 'dark';
}
