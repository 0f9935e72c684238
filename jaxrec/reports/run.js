const shownAs = (name) => name.replaceAll('_', ' ');
const M = DATA.measured, X = DATA.explorer;

/* ---- what it is worth ---- */
function metrics() {
  if (!M) return [make('p', { class: 'lead' }, `No metrics: ${DATA.missing}`)];
  const scorers = { model: M.metrics, ...M.references }, names = Object.keys(scorers);
  const head = make('tr', {}, make('th', { class: 'corner' }, ''), ...names.map((n) => make('th', {}, shownAs(n))));
  const body = Object.keys(M.metrics).map((metric) => make('tr', {}, make('th', { scope: 'row' }, metric),
    ...names.map((name) => {
      const value = scorers[name][metric], half = (M.half[name] || {})[metric];
      return make('td', {}, make('span', { class: name === 'model' && metric === M.main_metric ? 'best' : null },
        number(value)), half === undefined ? '' : make('span', { class: 'half' }, `± ${number(half)}`));
    })));
  return [make('p', { class: 'lead' }, `${M.split} split, ${M.examples.toLocaleString('en')} ${M.unit}s; ± half of ` +
    `the 95 % interval over ${M.unit}s`),
    make('div', { class: 'scroll' }, make('table', { id: 'metrics' }, make('thead', {}, head), make('tbody', {}, ...body)))];
}

/* Metrics that the groups of a grouping share, one of which is chosen. */
function groups(kind) {
  const found = Object.entries(M.groups[kind]), names = found.map(([name]) => name);
  const metric = [ofGroups(M.main_metric), ...Object.keys(M.metrics)].find((m) => found.some(([, g]) => g[m] !== undefined));
  if (!metric) return empty();
  const values = found.map(([, group]) => group[metric] ?? 0), ys = ticks(0, Math.max(...values, 1e-4));
  const y = scale(0, Math.max(ys.at(-1), ...values), H - PAD.bottom, PAD.top);
  const width = (W - PAD.left - PAD.right) / names.length;
  const middle = (i) => PAD.left + width * (i + .5);
  const labels = found.map(([name, group]) => `${name}: ${group.examples.toLocaleString('en')}`);
  const svg = frame(middle, y, names.map((_, i) => i), ys, kind, labels);
  values.forEach((value, i) => svg.append(make('rect', { x: middle(i) - Math.min(40, width / 3), rx: 2, y: y(value),
    width: 2 * Math.min(40, width / 3), height: Math.max(y(0) - y(value), 0), fill: 'var(--c0)' },
    make('title', {}, `${names[i]}: ${number(value)}`))));
  return figure(`by-${kind.replaceAll(' ', '-')}`, `${metric} by ${kind}`, 'and how many examples each has', svg);
}

function atK(kind) {
  const scorers = Object.entries({ model: M.metrics, ...M.references });
  const series = scorers.map(([name, values], i) => ({ name: shownAs(name), color: i ? 'var(--faint)' : 'var(--c0)',
    dash: i ? '3 3' : null, label: i > 0, points: byCutoff(values, kind) }));
  return lines(series.filter((s) => s.points.length), 'k', { log: true, zero: true });
}

function figure(id, title, about, picture) {
  return make('figure', { id }, make('figcaption', {}, title, make('small', {}, about ? ` ${about}` : '')), picture);
}

function charts() {
  const found = [];
  const kinds = M ? [...new Set(Object.keys(M.metrics).filter((m) => m.includes('@')).map((m) => m.split('@')[0]))] : [];
  const main = (name) => M && name === `valid/${M.main_metric}`;
  const curves = Object.entries(DATA.curves).filter(([, points]) => points.length);
  const ordered = curves.filter(([n]) => main(n) || n === 'loss').concat(
    curves.filter(([n]) => !main(n) && n !== 'loss' && !n.startsWith('valid/')));
  ordered.forEach(([name, points], i) => found.push(figure(`curve-${i}`, shownAs(name), '',
    lines([{ name, points, color: `var(--c${i % 10})` }], 'step'))));
  if (M) Object.keys(M.groups).forEach((kind) => found.push(groups(kind)));
  kinds.forEach((kind) => found.push(figure(`at-k-${kind.toLowerCase()}`, `${kind} at k`,
    'dashed grey: without learning', atK(kind))));
  return make('div', { class: 'charts', id: 'charts' }, ...found);
}

/* ---- what it says ---- */
const label = (n) => X.names[n] ? X.names[n][1] || String(X.names[n][0]) : '';
const itemOf = X && Object.fromEntries(X.items.map((one, i) => [one.number, i]));

function items(rows, what, value) {
  if (!rows.length) return make('p', { class: 'none' }, 'nothing');
  return make('ol', { class: 'items', 'aria-label': what }, ...rows.map(([n, ...rest]) => make('li', {},
    n in itemOf ? make('button', { title: 'look at this item', onclick: () => lookAt(n) }, label(n)) : label(n),
    make('small', {}, ` ${value(...rest)}`))));
}

function column(title, ...parts) { return make('section', {}, make('h3', {}, title), ...parts); }

function listed(rows) {
  const score = (s, i) => X.interests > 1 ? `${short(s)}, interest ${i}` : short(s);
  const parts = [column('Recommended', items(rows, 'recommended', score))];
  if (X.interests > 1) for (let i = 1; i <= X.interests; i++) {
    const own = rows.filter((row) => row[2] === i);
    parts.push(column(`Interest ${i}: ${own.length} of ${rows.length}`, items(own, `interest ${i}`, (s) => short(s))));
  }
  return parts;
}

const unique = (numbers) => [...new Set(numbers)];
const MAP = X && X.map && itemMap(X.map, label, (n) => lookAt(n));

/* Of a list on the map: one group for each interest. */
function found(rows) {
  if (X.interests === 1) return [{ name: 'recommended', color: '--c0', numbers: rows.map(([n]) => n) }];
  return Array.from({ length: X.interests }, (_, i) => ({ name: `found by interest ${i + 1}`, color: `--c${[0, 2, 3, 5, 7, 8, 9, 4][i % 8]}`,
    numbers: rows.filter((row) => row[2] === i + 1).map(([n]) => n) }));
}

function lookAtUser(i) {
  const user = X.users[i];
  if (!user) return;
  MAP?.mark([{ name: 'history', color: '--c1', numbers: unique(user.history) }, ...found(user.list)]);
  document.getElementById('of').replaceChildren(
    column(`User ${user.id}`, make('p', { class: 'half' }, `${user.events.toLocaleString('en')} events, newest first`),
      items([...user.history].reverse().map((n) => [n]), 'history', () => '')), ...listed(user.list));
}

function lookAt(n) {
  const item = X.items[itemOf[n]];
  document.getElementById('item').value = label(n);
  if (!item) {
    MAP?.mark([{ name: label(n), color: '--c1', numbers: [n], large: true }]);
    document.getElementById('of').replaceChildren(column(label(n), make('p', { class: 'half' }, `id ${X.names[n][0]}`)));
    document.getElementById('said').textContent = `${label(n)}: this page has no list for it (see --items)`;
    return;
  }
  MAP?.mark([{ name: 'nearest', color: '--c2', numbers: item.near.map(([m]) => m) }, ...found(item.list),
    { name: label(n), color: '--c1', numbers: [n], large: true }]);
  document.getElementById('of').replaceChildren(
    column(label(n), make('p', { class: 'half' }, `id ${X.names[n][0]}`), make('h3', {}, 'Nearest items'),
      items(item.near, 'nearest', (c) => `cosine ${short(c)}`)),
    ...listed(item.list));
  document.getElementById('said').textContent = `${label(n)}: the list after a history of this item alone`;
}

/* An item by its title or id, as it was typed; the first that contains it where none is the same. */
function find(text) {
  const wanted = text.trim().toLowerCase();
  const numbers = unique([...X.items.map((one) => one.number), ...(X.map ? X.map.number : [])]);
  const names = numbers.map((n) => [n, X.names[n].map((s) => String(s).toLowerCase())]);
  return (names.find(([, n]) => n.includes(wanted)) || names.find(([, n]) => wanted && n.some((s) => s.includes(wanted))) || [null])[0];
}

function explorer() {
  if (!X) return [];
  const typed = (event) => {
    const found = find(event.target.value);
    if (found === null) document.getElementById('said').textContent = `no item here is called ${event.target.value}`;
    else lookAt(found);
  };
  const users = make('select', { id: 'user', onchange: (event) => {
    document.getElementById('said').textContent = 'what the model recommends after all events of this user';
    lookAtUser(Number(event.target.value));
  } }, ...X.users.map((user, i) => make('option', { value: String(i) }, `${user.id} (${user.events} events)`)));
  return [make('h2', {}, 'What it says'),
    make('div', { class: 'controls', id: 'explorer' },
      ...(X.users.length ? [make('label', { for: 'user' }, 'User'), users] : []),
      make('label', { for: 'item' }, 'Item'),
      make('input', { id: 'item', list: 'items', placeholder: 'title or id', autocomplete: 'off', onchange: typed }),
      make('datalist', { id: 'items' }, ...X.items.slice(0, 500).map((one) => make('option', { value: label(one.number) })))),
    make('p', { id: 'said', class: 'lead', 'aria-live': 'polite' },
      `${X.users.length} users and ${X.items.length.toLocaleString('en')} of ${X.num_items.toLocaleString('en')} items are in this page`),
    make('div', { id: 'of', class: 'columns' }), ...(MAP ? [MAP.node] : [])];
}

/* ---- where it comes from ---- */
function provenance() {
  const told = (value) => value === null || value === undefined ? 'unknown' : typeof value === 'object' ? JSON.stringify(value) : String(value);
  const pairs = (object) => facts(Object.entries(object || {}).map(([k, v]) => [k, told(v)]));
  const part = (title, object) => make('details', {}, make('summary', {}, title), pairs(object));
  return [make('h2', {}, 'Where it comes from'),
    ...(M && Object.keys(M.details).length ? [part('Details of the evaluation', M.details)] : []),
    ...(M ? [part('Protocol', { ...M.protocol, 'data hash': M.data_hash, seed: M.seed })] : []),
    part('Run', DATA.session), part('Config', DATA.config)];
}

document.getElementById('page').append(
  make('header', {}, make('h1', {}, DATA.title), make('button', { class: 'pill theme', onclick: () => { theme(); MAP?.draw(); } }, 'light / dark')),
  make('p', { class: 'lead' }, `${DATA.about}; ${DATA.checkpoint}`),
  ...metrics(), charts(), ...explorer(), ...provenance());
if (X && X.users.length) lookAtUser(0); else if (X && X.items.length) lookAt(X.items[0].number);
