const ours = DATA.lines.filter((line) => !line.published);
const color = (line) => `var(--c${ours.indexOf(line) % 10})`;
const dashed = (line) => ours.indexOf(line) >= 10 ? '5 3' : null;
const cellOf = (line, column) => DATA.cells[line.cells[column]];

/* ---- table ---- */
function table() {
  const top = make('tr', {}, make('th', { class: 'corner' }));
  const second = make('tr', {}, make('th', { class: 'corner' }));
  for (const column of DATA.columns) {
    top.append(make('th', { class: 'group', colspan: column.metrics.length }, column.name));
    column.metrics.forEach((m, i) => second.append(make('th', { class: i ? null : 'first' }, m)));
  }
  const body = make('tbody');
  for (const line of DATA.lines) {
    const head = make('th', { scope: 'row' }, line.name);
    if (line.published) {
      head.append(make('sup', {}, make('a', { href: `#source${line.number}` }, ` ${line.number}`)));
      if (line.doubts.length) {
        head.append(make('span', { class: 'flag', title: line.doubts.join('\n') }, ' ⚠'));
      }
    }
    const row = make('tr', { class: line.published ? 'published' : null }, head);
    for (const column of DATA.columns) column.metrics.forEach((metric, i) => {
      const value = line.values[`${column.name} ${metric}`];
      const doubt = (line.problems[column.name] || []).join('\n');
      const cell = make('td', { class: [i ? '' : 'first', doubt ? 'doubt' : ''].join(' ').trim() || null,
        title: doubt || null });
      if (!value) cell.append(make('span', { class: 'none' }, '–'));
      else if (line.published) cell.append(number(value.mean));
      else cell.append(make('button', { 'data-cell': value.cell, title: 'where it comes from',
        onclick: (event) => show(line, column.name, event.currentTarget) }, ...shown(value)));
      row.append(cell);
    });
    body.append(row);
  }
  return make('div', { class: 'scroll' }, make('table', { id: 'table' },
    make('thead', {}, top, second), body));
}

function shown(value) {
  const parts = [make('span', { class: value.mark || null }, number(value.mean))];
  if (value.half !== null) parts.push(make('span', { class: 'half' }, `± ${number(value.half)}`));
  if (value.star) {
    parts.push(make('span', { class: value.star === '+' ? 'up' : 'down' }, value.star === '+' ? '▲' : '▼'));
  }
  return parts;
}

/* ---- charts ---- */
const state = { column: DATA.columns[0].name, metric: DATA.columns[0].metrics[0], off: new Set() };
const visible = () => ours.filter((l) => !state.off.has(l.name) && cellOf(l, state.column));

function curves() {
  const series = [];
  for (const line of visible()) {
    const seeds = Object.values(cellOf(line, state.column).seeds);
    const all = seeds.map((s) => s.curve.points);
    if (all.length > 1) all.forEach((points) => series.push({ points, color: color(line), thin: true }));
    const length = Math.min(...all.map((p) => p.length));
    const average = all[0].slice(0, length).map((p, i) => [p[0], mean(all.map((q) => q[i][1]))]);
    series.push({ name: line.name, points: average, color: color(line), dash: dashed(line) });
  }
  return lines(series, 'step');
}

function atK(kind) {
  const series = [];
  const take = (name, metrics, style) => series.push({ name, points: byCutoff(metrics, kind), ...style });
  const average = (all) => Object.fromEntries(Object.keys(all[0]).map((n) => [n, mean(all.map((one) => one[n]))]));
  const rows = visible();
  if (rows.length) {
    const cell = cellOf(rows[0], state.column), seeds = Object.values(cell.seeds);
    for (const [name, metrics] of Object.entries(cell.references)) {
      const all = seeds.map((s) => (s.references || { [name]: metrics })[name]);
      take(name.replaceAll('_', ' '), average(all), { color: 'var(--faint)', dash: '3 3', label: true });
    }
  }
  for (const line of rows) {
    const seeds = Object.values(cellOf(line, state.column).seeds).map((s) => s.metrics);
    take(line.name, average(seeds), { color: color(line), dash: dashed(line) });
  }
  return lines(series, 'k', { log: true, zero: true });
}

function significance() {
  const rows = visible().map((line) => [line, (line.values[`${state.column} ${state.metric}`] || {}).versus])
    .filter(([, versus]) => versus);
  if (!rows.length) return empty();
  const left = 170, height = 52 + 30 * rows.length;
  const low = Math.min(0, ...rows.map(([, v]) => v.low)), high = Math.max(0, ...rows.map(([, v]) => v.high));
  const x = scale(low, high, left, W - 64);
  const svg = make('svg', { viewBox: `0 0 ${W} ${height}`, role: 'img' });
  for (const t of ticks(low, high, 4)) svg.append(
    make('line', { class: 'grid', x1: x(t), x2: x(t), y1: 8, y2: height - 38 }),
    make('text', { x: x(t), y: height - 24, 'text-anchor': 'middle' }, short(t)));
  svg.append(make('line', { class: 'zero', x1: x(0), x2: x(0), y1: 6, y2: height - 36 }));
  rows.forEach(([line, v], i) => {
    const y = 24 + 30 * i, certain = v.adjusted < DATA.alpha;
    const name = line.name.length > 25 ? line.name.slice(0, 24) + '…' : line.name;
    svg.append(make('text', { class: 'name', x: left - 12, y: y + 4, 'text-anchor': 'end' }, name,
      make('title', {}, line.name)),
      make('line', { x1: x(v.low), x2: x(v.high), y1: y, y2: y, stroke: color(line), 'stroke-width': 2 }),
      make('circle', { cx: x(v.difference), cy: y, r: 5, fill: certain ? color(line) : 'var(--panel)',
        stroke: color(line), 'stroke-width': 2 },
        make('title', {}, `${signed(v.difference)} [${number(v.low)}, ${number(v.high)}], p ${pvalue(v.adjusted)}`)),
      make('text', { x: W - 4, y: y + 4, 'text-anchor': 'end' }, `p ${pvalue(v.adjusted)}`));
  });
  svg.append(make('text', { x: (left + W - 64) / 2, y: height - 6, 'text-anchor': 'middle' },
    `${state.metric} minus ${DATA.baseline}`));
  return svg;
}

/* The first way in which the shown cells group their examples, '' if they do not. */
function grouping() {
  const rows = visible();
  return rows.length ? Object.keys(Object.values(cellOf(rows[0], state.column).seeds)[0].groups)[0] || '' : '';
}

function groups() {
  const rows = visible(), kind = grouping();
  if (!rows.length || !kind) return empty();
  const examples = Object.values(cellOf(rows[0], state.column).seeds)[0].groups[kind];
  const names = Object.keys(examples);
  const values = rows.map((line) => names.map((bucket) => {
    const found = Object.values(cellOf(line, state.column).seeds)
      .map((s) => s.groups[kind][bucket][ofGroups(state.metric)]);
    return found.every((v) => v !== undefined) ? mean(found) : 0;
  }));
  const ys = ticks(0, Math.max(...values.flat(), 1e-4));
  const y = scale(0, Math.max(ys.at(-1), ...values.flat()), H - PAD.bottom, PAD.top);
  const group = (W - PAD.left - PAD.right) / names.length, bar = Math.min(26, (group - 24) / rows.length);
  const middle = (i) => PAD.left + group * (i + .5);
  const labels = names.map((n) => `${n}: ${examples[n].examples.toLocaleString('en')}`);
  const svg = frame(middle, y, names.map((_, i) => i), ys, kind, labels);
  rows.forEach((line, r) => names.forEach((bucket, i) => svg.append(
    make('rect', { x: middle(i) + (r - rows.length / 2) * bar + 1, width: Math.max(bar - 2, 1), rx: 2,
      y: y(values[r][i]), height: Math.max(y(0) - y(values[r][i]), 0), fill: color(line) },
      make('title', {}, `${line.name}, ${bucket}: ${number(values[r][i])}`)))));
  return svg;
}

function figure(id, title, about, picture) {
  return make('figure', { id }, make('figcaption', {}, title, make('small', {}, about ? ` ${about}` : '')),
    picture);
}

function draw() {
  const column = DATA.columns.find((c) => c.name === state.column);
  if (!column.metrics.includes(state.metric)) state.metric = column.metrics[0];
  const choose = (label, names, key) => [make('span', {}, label), ...names.map((name) => make('button', {
    class: 'pill', 'aria-pressed': String(state[key] === name),
    onclick: () => { state[key] = name; draw(); } }, name))];
  document.getElementById('controls').replaceChildren(
    ...choose('Data', DATA.columns.map((c) => c.name), 'column'),
    ...choose('Metric', column.metrics, 'metric'));
  document.getElementById('legend').replaceChildren(...ours.filter((l) => cellOf(l, state.column)).map((line) =>
    make('button', { class: state.off.has(line.name) ? 'off' : null, title: 'show or hide', onclick: () => {
      if (!state.off.delete(line.name)) state.off.add(line.name);
      draw();
    } }, make('i', { style: `background: ${color(line)}` }), line.name)));
  const first = visible()[0];
  const validated = first ? Object.values(cellOf(first, state.column).seeds)[0].curve.metric : '';
  document.getElementById('charts').replaceChildren(
    figure('curves', 'Learning curves', `validation ${validated}; thin: single seeds`, curves()),
    figure('groups', `${state.metric} by ${grouping() || 'group'}`, 'and how many examples each has', groups()),
    ...[...new Set(column.metrics.filter((m) => m.includes('@')).map((m) => m.split('@')[0]))].map((kind) =>
      figure(`at-k-${kind.toLowerCase()}`, `${kind} at k`, 'dashed grey: scorers without learning', atK(kind))),
    figure('significance', 'Against the baseline', `${DATA.test} over users, 95 % interval, Holm; filled: p < ${short(DATA.alpha)}`, significance()));
}

/* ---- provenance ---- */
function show(line, column, button) {
  const cell = cellOf(line, column), panel = document.getElementById('panel');
  document.querySelectorAll('td button.on').forEach((b) => b.classList.remove('on'));
  button.classList.add('on');
  const seeds = Object.entries(cell.seeds), metrics = DATA.columns.find((c) => c.name === column).metrics;
  const last = seeds[0][1];
  const table = make('table', {}, make('tr', {}, make('th', {}, 'seed'), ...metrics.map((m) => make('th', {}, m)),
    make('th', {}, 'step'), make('th', {}, 'time'), make('th', {}, 'tokens/s')),
    ...seeds.map(([seed, run]) => make('tr', {}, make('td', {}, seed),
      ...metrics.map((m) => make('td', {}, number(run.metrics[m]))), make('td', {}, String(run.best_step)),
      make('td', {}, `${Math.round(run.times.seconds)} s`),
      make('td', {}, run.times.tokens_per_second ? Math.round(run.times.tokens_per_second).toLocaleString('en') : '–'))));
  const tests = metrics.map((m) => [m, (line.values[`${column} ${m}`] || {}).versus]).filter(([, v]) => v);
  const commits = [...new Set(seeds.map(([, r]) => r.git ? r.git.commit.slice(0, 12) + (r.git.dirty ? ' + changes' : '') : 'unknown'))];
  const codes = [...new Set(seeds.map(([, r]) => r.code.slice(0, 12)))];
  panel.replaceChildren(
    make('button', { class: 'close', 'aria-label': 'close', onclick: hide }, '×'),
    make('h3', {}, line.name), make('p', { class: 'lead' }, column),
    table,
    make('h4', {}, 'Command'), make('pre', {}, cell.command.replaceAll(' --', ' \\\n  --')),
    ...(tests.length ? [make('h4', {}, `Against ${DATA.baseline}`), facts(tests.map(([m, v]) =>
      [m, `${signed(v.difference)} [${number(v.low)}, ${number(v.high)}], p ${pvalue(v.p)}, after Holm ${pvalue(v.adjusted)}`]))] : []),
    make('h4', {}, 'Where it comes from'),
    facts([['commit', commits.join(', ')], ['code hash', codes.join(', ')],
      ['config hash', cell.hashes.config.slice(0, 12)], ['data hash', cell.hashes.data],
      [`${cell.unit}s`, cell.examples.toLocaleString('en')],
      ...Object.entries(last.details).filter(([, v]) => typeof v === 'number').map(([k, v]) => [k.replaceAll('_', ' '), short(v)]),
      ['device', `${last.devices.join(', ')} (${last.platform})`],
      ['versions', Object.entries(last.versions).map(([k, v]) => `${k} ${v}`).join(', ')],
      ['started', last.times.started]]),
    make('h4', {}, 'Protocol'), facts([['split', `${cell.split}`], ...Object.entries(cell.protocol)]),
    make('h4', {}, 'Config'), facts(Object.entries(cell.config)));
  panel.hidden = false;
  document.body.classList.add('open');
}

function hide() {
  document.getElementById('panel').hidden = true;
  document.body.classList.remove('open');
  document.querySelectorAll('td button.on').forEach((b) => b.classList.remove('on'));
}

/* ---- page ---- */
function orderings() {
  if (!DATA.verdicts.length) return [];
  const kind = (text) => text === 'confirmed' ? 'confirmed' : text === 'the opposite' ? 'opposite' : 'none';
  return [make('h2', {}, 'Published orderings'), make('div', { class: 'scroll' }, make('table', { class: 'left' },
    make('thead', {}, make('tr', {}, ...DATA.verdict_heads.map((h) => make('th', {}, h)))),
    make('tbody', {}, ...DATA.verdicts.map((row) => make('tr', {}, ...row.map((text, i) =>
      make('td', { class: i === row.length - 1 ? kind(text) : null }, text)))))))];
}

document.getElementById('page').append(
  make('header', {}, make('h1', {}, DATA.title),
    make('button', { class: 'pill theme', onclick: theme }, 'light / dark')),
  make('p', { class: 'lead' }, DATA.caption),
  table(),
  ...DATA.notes.map((note) => make('p', { class: 'lead', style: 'margin: 8px 0; font-size: 13px' }, note)),
  ...orderings(),
  make('h2', {}, 'Behind the numbers'),
  make('div', { class: 'controls', id: 'controls' }), make('div', { class: 'legend', id: 'legend' }),
  make('div', { class: 'charts', id: 'charts' }),
  ...(DATA.sources.length ? [make('h2', {}, 'Published numbers'), make('ol', { class: 'sources' },
    ...DATA.sources.map((s) => make('li', { id: `source${s.number}` }, make('b', {}, s.name), `: ${s.text}`)))] : []));
document.addEventListener('keydown', (event) => { if (event.key === 'Escape') hide(); });
draw();
const wanted = decodeURIComponent(location.hash.slice(1));
if (wanted.startsWith('cell=')) {
  const button = document.querySelector(`[data-cell="${CSS.escape(wanted.slice(5))}"]`);
  if (button) button.click();
}
