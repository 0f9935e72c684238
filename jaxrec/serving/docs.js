/* The page of a service: what it answers, and a place to try it. DATA is its OpenAPI document. */
const schemas = DATA.components.schemas;
const named = (content) => content['application/json'].schema.$ref.split('/').at(-1);

function typeOf(schema) {
  if (schema.$ref) return schema.$ref.split('/').at(-1);
  if (schema.anyOf) return [...new Set(schema.anyOf.map(typeOf))].join(' or ');
  if (schema.type === 'array') return `list of ${typeOf(schema.items || {})}`;
  if (schema.type === 'object') return schema.additionalProperties?.type || schema.additionalProperties?.anyOf
    ? `object of ${typeOf(schema.additionalProperties)}` : 'object';
  return schema.type || 'any';
}

function fields(name) {
  const { properties, required = [] } = schemas[name];
  const limits = (s) => [['minimum', '≥'], ['maximum', '≤'], ['maxItems', 'at most']]
    .filter(([key]) => s[key] !== undefined).map(([key, sign]) => `${sign} ${s[key]}`).join(', ');
  const told = (s, key) => [s.description, limits(s), required.includes(key) ? 'required'
    : s.default !== undefined ? `default ${JSON.stringify(s.default)}` : ''].filter(Boolean).join('; ');
  return make('div', { class: 'scroll left' }, make('table', {}, make('tbody', {},
    ...Object.entries(properties).map(([key, s]) => make('tr', {}, make('th', { scope: 'row' }, key),
      make('td', {}, typeOf(s)), make('td', {}, told(s, key)))))));
}

function attempt(path, method, example) {
  const shown = make('pre', { 'aria-live': 'polite', id: `answer${path.replaceAll('/', '-')}` });
  const body = example && make('textarea', { 'aria-label': `body of ${path}`, rows: 4 });
  if (body) body.value = example;
  const send = async () => {
    shown.textContent = '..';
    const started = performance.now();
    const options = body ? { method, body: body.value, headers: { 'Content-Type': 'application/json' } } : {};
    const answer = await fetch(path.slice(1), options), text = await answer.text();
    let pretty = text;
    try { pretty = JSON.stringify(JSON.parse(text), null, 1); } catch { /* as it is */ }
    shown.textContent = `${answer.status} in ${(performance.now() - started).toFixed(0)} ms\n${pretty}`;
  };
  return [body, make('p', {}, make('button', { class: 'pill', onclick: send }, `send ${method} ${path}`)), shown];
}

function endpoint(path, method, told) {
  const parts = [make('h2', {}, `${method.toUpperCase()} ${path}`), make('p', { class: 'lead' }, told.summary)];
  if (!told.requestBody) return [...parts, ...attempt(path, 'GET', '')];
  const asked = named(told.requestBody.content);
  const example = asked === 'Recommend' ? '{"histories": [[]], "k": 5}' : '{"rows": [{"user": null, "item": null}]}';
  const codes = Object.entries(told.responses).map(([code, one]) => [code, one.description]);
  return [...parts, make('h3', {}, 'Body'), fields(asked), make('h3', {}, 'Answer'),
    fields(named(told.responses['200'].content)), facts(codes), ...attempt(path, 'POST', example)];
}

document.getElementById('page').append(
  make('header', {}, make('h1', {}, DATA.info.title), make('button', { class: 'pill theme', onclick: theme }, 'light / dark')),
  make('p', { class: 'lead' }, DATA.info.description, '; ', make('a', { href: 'openapi.json' }, 'openapi.json')),
  ...Object.entries(DATA.paths).flatMap(([path, methods]) =>
    Object.entries(methods).flatMap(([method, told]) => endpoint(path, method, told))));
