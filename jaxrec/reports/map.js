/* Items in a plane. Drag or arrows move, wheel, buttons or + and - zoom, a click or Enter picks. */
function itemMap(map, label, pick) {
  const SIDE = 10000, REACH = 14, count = map.number.length;
  const view = { x: .5, y: .5, zoom: 1 };
  let marks = [], under = -1, dragged = null;
  const said = make('p', { class: 'half', 'aria-live': 'polite', id: 'map-said' }, 'nothing under the pointer');
  const canvas = make('canvas', { id: 'map', tabindex: '0', role: 'application', 'aria-describedby': 'map-said',
    'aria-label': 'Map of items. Arrows move, plus and minus zoom, Enter looks at the item in the middle, 0 shows all.' });
  const legend = make('p', { class: 'legend', id: 'map-legend' });
  const place = new Map(map.number.map((n, i) => [n, i]));
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name) || '#888';

  const size = () => ({ w: canvas.clientWidth || 600, h: canvas.clientHeight || 400 });
  function frameOf() {
    const { w, h } = size(), unit = Math.min(w, h) * .94 * view.zoom / SIDE;
    return { w, h, unit, left: w / 2 - view.x * SIDE * unit, top: h / 2 - (1 - view.y) * SIDE * unit };
  }
  const at = (f, i) => [f.left + map.x[i] * f.unit, f.top + (SIDE - map.y[i]) * f.unit];

  function draw() {
    const f = frameOf(), dense = devicePixelRatio || 1, pen = canvas.getContext('2d');
    if (canvas.width !== Math.round(f.w * dense)) canvas.width = Math.round(f.w * dense);
    if (canvas.height !== Math.round(f.h * dense)) canvas.height = Math.round(f.h * dense);
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    pen.clearRect(0, 0, f.w, f.h);
    pen.fillStyle = css('--faint');
    pen.globalAlpha = count > 5000 ? .45 : .8;
    const dot = Math.min(5, Math.max(1, 60 / Math.sqrt(count) * Math.sqrt(view.zoom)));
    for (let i = 0; i < count; i++) {
      const x = f.left + map.x[i] * f.unit, y = f.top + (SIDE - map.y[i]) * f.unit;
      if (x > -5 && y > -5 && x < f.w + 5 && y < f.h + 5) pen.fillRect(x - dot / 2, y - dot / 2, dot, dot);
    }
    pen.globalAlpha = 1;
    for (const { color, numbers, large } of marks) for (const n of numbers) if (place.has(n)) {
      const [x, y] = at(f, place.get(n));
      pen.beginPath();
      pen.arc(x, y, large ? 7 : 5, 0, 7);
      pen.fillStyle = css(color);
      pen.fill();
      pen.lineWidth = 1.5;
      pen.strokeStyle = css('--panel');
      pen.stroke();
    }
    if (under >= 0) {
      const [x, y] = at(f, under);
      pen.beginPath();
      pen.arc(x, y, 9, 0, 7);
      pen.lineWidth = 2;
      pen.strokeStyle = css('--accent');
      pen.stroke();
    }
  }

  /* The item nearest to a point of the canvas, -1 where none is within reach. */
  function nearest(px, py, reach) {
    const f = frameOf();
    let best = -1, least = reach * reach;
    for (let i = 0; i < count; i++) {
      const dx = f.left + map.x[i] * f.unit - px, dy = f.top + (SIDE - map.y[i]) * f.unit - py;
      if (dx * dx + dy * dy < least) { best = i; least = dx * dx + dy * dy; }
    }
    return best;
  }
  function point(i) {
    under = i;
    said.textContent = i < 0 ? 'nothing under the pointer' : label(map.number[i]);
    draw();
  }
  function zoom(by, px, py) {
    const f = frameOf(), was = view.zoom;
    view.zoom = Math.min(400, Math.max(1, view.zoom * by));
    const grown = view.zoom / was - 1, unit = f.unit * SIDE * view.zoom / was;
    view.x += (px - f.w / 2) / unit * grown;
    view.y -= (py - f.h / 2) / unit * grown;
    draw();
  }
  const middle = () => { const { w, h } = size(); return [w / 2, h / 2]; };
  const all = () => { Object.assign(view, { x: .5, y: .5, zoom: 1 }); point(-1); };
  const where = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };

  const keys = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  const acts = { '+': () => zoom(1.5, ...middle()), '=': () => zoom(1.5, ...middle()), '-': () => zoom(1 / 1.5, ...middle()),
    0: all, Enter: () => { if (under >= 0) pick(map.number[under]); } };
  canvas.addEventListener('keydown', (event) => {
    if (keys[event.key]) {
      view.x += keys[event.key][0] * .08 / view.zoom;
      view.y += keys[event.key][1] * .08 / view.zoom;
    } else if (acts[event.key]) acts[event.key]();
    else return;
    event.preventDefault();
    if (event.key !== 'Enter' && event.key !== '0') point(nearest(...middle(), Infinity));
  });
  canvas.addEventListener('pointerdown', (event) => {
    canvas.setPointerCapture?.(event.pointerId);
    dragged = { from: where(event), x: view.x, y: view.y, far: false };
  });
  canvas.addEventListener('pointermove', (event) => {
    const [px, py] = where(event);
    if (!dragged) { point(nearest(px, py, REACH)); return; }
    const dx = px - dragged.from[0], dy = py - dragged.from[1], unit = frameOf().unit * SIDE;
    if (Math.hypot(dx, dy) > 4) dragged.far = true;
    if (dragged.far) { view.x = dragged.x - dx / unit; view.y = dragged.y + dy / unit; draw(); }
  });
  canvas.addEventListener('pointerup', (event) => {
    const still = dragged && !dragged.far;
    dragged = null;
    if (!still) return;
    point(nearest(...where(event), 2 * REACH));
    if (under >= 0) pick(map.number[under]);
  });
  canvas.addEventListener('pointercancel', () => { dragged = null; });
  canvas.addEventListener('wheel', (event) => { event.preventDefault(); zoom(event.deltaY < 0 ? 1.25 : .8, ...where(event)); });
  matchMedia('(prefers-color-scheme: dark)').addEventListener?.('change', draw);

  const button = (text, name, act) => make('button', { class: 'pill', 'aria-label': name, onclick: act }, text);
  const node = make('figure', { id: 'item-map' },
    make('figcaption', {}, 'Map of the items', make('small', {}, ` ${count.toLocaleString('en')} in the plane in which ` +
      `their vectors differ most: ${Math.round(100 * map.share)} % of the variance`)),
    make('div', { class: 'controls' }, button('+', 'zoom in', acts['+']), button('−', 'zoom out', acts['-']), button('all', 'show all', all)),
    canvas, legend, said);

  /* Groups of items to show: [{ name, color: '--c1', numbers, large }]; those that are not on the map are counted. */
  function mark(groups) {
    marks = groups.filter((g) => g.numbers.length);
    legend.replaceChildren(...marks.map((g) => {
      const there = g.numbers.filter((n) => place.has(n)).length;
      return make('span', {}, make('i', { style: `background: var(${g.color})` }),
        ` ${g.name}${there < g.numbers.length ? ` (${there} of ${g.numbers.length} on the map)` : ''}`);
    }));
    draw();
  }
  globalThis.addEventListener?.('resize', draw);
  return { node, mark, draw };
}
