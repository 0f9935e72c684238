/* As much of a browser as our pages use, for node: runs page scripts and clicks.
   node page_stub.js PAGE.html ACTIONS.json prints the text of #page after each action. */
const fs = require('fs');
const html = fs.readFileSync(process.argv[2], 'utf8');
const actions = JSON.parse(fs.readFileSync(process.argv[3], 'utf8'));

class Node {
  constructor(tag) { Object.assign(this, { tag, children: [], attributes: {}, listeners: {}, dataset: {}, own: '' }); }
  append(...parts) { for (const part of parts.flat()) this.children.push(typeof part === 'object' ? part : String(part)); }
  replaceChildren(...parts) { this.children = []; this.append(...parts); }
  setAttribute(name, value) {
    if (/undefined|NaN/.test(String(value))) throw new Error(`${this.tag} ${name}=${value}`);
    this.attributes[name] = String(value);
    if (name === 'value') this.value = String(value);
  }
  addEventListener(name, call) { this.listeners[name] = call; }
  getContext() { return new Proxy({}, { get: () => () => {}, set: () => true }); }
  getBoundingClientRect() { return { left: 0, top: 0 }; }
  get textContent() { return this.own + this.children.map((c) => c.textContent ?? c).join(' '); }
  set textContent(text) { this.children = [String(text)]; }
  all() { return [this, ...this.children.filter((c) => c instanceof Node).flatMap((c) => c.all())]; }
}
const root = new Node('html'), page = new Node('main'), data = new Node('script');
page.attributes.id = 'page';
data.attributes.id = 'data';
data.own = html.match(/id="data">([^]*?)<\/script>/)[1];
root.append(page, data);
const byId = (id) => root.all().find((one) => one.attributes.id === id) || null;
globalThis.document = {
  documentElement: root, getElementById: byId, createElement: (tag) => new Node(tag),
  createElementNS: (_, tag) => new Node(tag), createTextNode: String,
};
globalThis.matchMedia = () => ({ matches: false });
globalThis.devicePixelRatio = 1;
globalThis.getComputedStyle = () => ({ getPropertyValue: () => '#000' });
(0, eval)(html.slice(html.lastIndexOf('<script>') + 8, html.lastIndexOf('</script>')));

const texts = [page.textContent];
for (const { id, button, value, event = 'click', ...rest } of actions) {
  const target = id ? byId(id) : page.all().find((one) => one.tag === 'button' && one.textContent === button);
  if (!target) throw new Error(`nothing to ${event}: ${id || button}`);
  if (value !== undefined) target.value = value;
  target.listeners[event]({ target, currentTarget: target, preventDefault() {}, ...rest });
  texts.push(page.textContent);
}
console.log(JSON.stringify({ texts, tags: page.all().map((one) => [one.tag, one.attributes.id || '']) }));
