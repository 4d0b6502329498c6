// What the editors share: access to a node's widgets, undo, the pack's routes, words, and placing an element on a node.
import { app } from "/scripts/app.js";
import { api } from "/scripts/api.js";

const MAX_URL = 7000; // the server refuses request lines beyond 8190 bytes
const MAX_ANSWERS = 200;
const answers = new Map();
const orphans = new Map(); // elements of removed nodes, and whose place they had

export function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

/** The nodes of a graph and of its subgraphs. */
export function* everyNode(graph) {
  for (const node of graph?.nodes ?? []) {
    yield node;
    if (node.subgraph) yield* everyNode(node.subgraph);
  }
}

/** Values of the widgets, by name; a widget that is missing gives undefined. */
export function valuesOf(node, names) {
  return Object.fromEntries(names.map((name) => [name, widgetOf(node, name)?.value]));
}

/** Whether another node brings the widget's value, which nobody knows before it has run. */
export function isLinked(node, name) {
  return !!node.inputs?.some((input) => input.widget?.name === name && input.link != null);
}

/** One step of undo: front ends take a snapshot where the outermost change ends. */
export function asOneChange(edit) {
  const canvas = app.canvas;
  canvas?.emitBeforeChange?.();
  try {
    edit();
  } finally {
    // A click brings a node to the front, which changes the order of nodes, and front ends number them by it at the next
    // load only. Undo would find other numbers than it restored, take that for a change and forget what to redo.
    canvas?.graph?.updateExecutionOrder?.();
    canvas?.emitAfterChange?.();
    if (!canvas?.emitAfterChange) app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
  }
}

/** Sets widgets without a snapshot, for typing; `writeWidgets` takes one. */
export function setWidgets(node, values) {
  for (const [name, value] of Object.entries(values)) {
    const widget = widgetOf(node, name);
    if (!widget || widget.value === value || isLinked(node, name)) continue;
    widget.value = value;
    widget.callback?.(value, app.canvas, node);
  }
  node.graph?.setDirtyCanvas?.(true, true);
}

export function writeWidgets(node, values) {
  asOneChange(() => setWidgets(node, values));
}

/** Calls `then` after the user, or anything that tells the widget so, has changed one of the widgets. */
export function onWidgetChange(node, names, then) {
  for (const name of names) {
    const widget = widgetOf(node, name);
    if (!widget) continue;
    const before = widget.callback;
    widget.callback = function (...args) {
      const result = before?.apply(this, args);
      then(name);
      return result;
    };
  }
}

export function after(node, method, then) {
  const before = node[method];
  node[method] = function (...args) {
    const result = before?.apply(this, args);
    then.apply(this, args);
    return result;
  };
}

function url(path, query) {
  return `/diagdistill/${path}?${new URLSearchParams(query)}`;
}

/** The answer of an earlier `ask` of the same, or undefined: undo builds nodes anew, and they should not flicker. */
export function known(path, query) {
  return answers.get(url(path, query));
}

/** What the pack says to `query`: JSON, or {error} in words. Never throws. */
export async function ask(path, query = {}) {
  const address = url(path, query);
  if (answers.has(address)) return answers.get(address);
  if (address.length > MAX_URL) return { error: t("tooLong") };
  const answer = await fetched(address);
  if (!answer.offline) {
    answers.set(address, answer);
    if (answers.size > MAX_ANSWERS) answers.delete(answers.keys().next().value);
  }
  return answer;
}

/** The same of what changes by itself: never from memory. */
export async function askAnew(path) {
  return fetched(`/diagdistill/${path}`);
}

export async function send(path, body) {
  return fetched(`/diagdistill/${path}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
}

async function fetched(address, options) {
  try {
    const response = await api.fetchApi(address, options);
    const answer = await response.json();
    return response.ok || answer.error ? answer : { error: t("offline"), offline: true };
  } catch {
    return { error: t("offline"), offline: true };
  }
}

/**
 * Puts `element` on the node as its last widget. It has no value of its own, so that what is saved stays as it is
 * without the scripts.
 */
export function placeElement(node, name, element, { minHeight, onDraw }) {
  const widget = node.addDOMWidget(name, "diagdistill_editor", element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: minHeight,
    getValue: () => "",
    setValue: () => {},
    onDraw,
  });
  widget.serialize = false; // options.serialize speaks of the prompt, this of the saved workflow
  passToCanvas(element);
  keepInPlace(node, name, element);
  return widget;
}

/**
 * Where nodes are HTML themselves ("Nodes 2.0"), an element is put in its place once, and the one of a node that undo
 * or another workflow has replaced would stay there. So the new node's takes its place.
 */
function keepInPlace(node, name, element) {
  const key = () => `${node.id} ${name}`;
  const settle = () => {
    for (const old of orphans.keys()) if (!old.isConnected) orphans.delete(old);
    if (element.isConnected || !node.graph || node.graph !== app.canvas?.graph) return;
    for (const [old, place] of orphans) if (place === key()) old.replaceWith(element);
  };
  after(node, "onRemoved", () => orphans.set(element, key()));
  after(node, "onAdded", () => {
    orphans.delete(element);
    for (const delay of [0, 100, 500]) setTimeout(settle, delay); // how soon the nodes are drawn is not told
  });
}

/** Zooming with the wheel and panning with the middle button go on over an editor. */
function passToCanvas(element) {
  element.addEventListener(
    "wheel",
    (event) => {
      const scrolls = event.target.closest?.(".ddx-scroll");
      const room = scrolls && scrolls.scrollHeight > scrolls.clientHeight + 1;
      if (room && !event.ctrlKey && element.contains(document.activeElement)) return event.stopPropagation();
      event.preventDefault();
      event.stopPropagation();
      app.canvas.processMouseWheel(event);
    },
    { passive: false },
  );
  for (const [type, method] of [
    ["pointerdown", "processMouseDown"],
    ["pointermove", "processMouseMove"],
    ["pointerup", "processMouseUp"],
  ]) {
    element.addEventListener(type, (event) => {
      if (event.button === 1 || (type === "pointermove" && event.buttons & 4)) app.canvas[method](event);
    });
  }
}

/** Hides or shows a widget; its value is saved and sent in either case. */
export function showWidget(node, name, shown) {
  const widget = widgetOf(node, name);
  if (!widget || !!widget.hidden === !shown) return;
  widget.hidden = !shown;
  if (widget.options) widget.options.hidden = !shown; // what nodes of HTML look at, in some front ends
  const place = { configurable: true, enumerable: true };
  if (shown) {
    delete widget.computeSize;
    Object.defineProperty(widget, "y", { ...place, value: 0, writable: true }); // until the next layout
  } else {
    // The layout keeps room for hidden widgets unless they say that they need none (it adds 4 to each), and their
    // sockets would catch the links meant for the next widget unless they are out of reach.
    widget.computeSize = () => [0, -4];
    Object.defineProperty(widget, "y", { ...place, get: () => -10_000, set: () => {} });
  }
}

/** Makes room for what the node shows now, and never takes any away. */
export function growToFit(node) {
  const needed = node.computeSize();
  const size = [Math.max(node.size[0], needed[0]), Math.max(node.size[1], needed[1])];
  if (size[0] !== node.size[0] || size[1] !== node.size[1]) node.setSize(size);
  node.graph?.setDirtyCanvas?.(true, true);
}

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "class") element.className = value;
    else if (key === "text") element.textContent = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") element.textContent = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

/** A mouse position inside `element` in its own pixels, at any zoom of the graph. */
export function pointIn(element, event) {
  const box = element.getBoundingClientRect();
  const scale = box.width / (element.clientWidth || element.getAttribute("width") || box.width) || 1;
  return [(event.clientX - box.left) / scale, (event.clientY - box.top) / scale];
}

/** A number as people write it: at most `digits` decimals, none that are 0. */
export function short(value, digits = 1) {
  return String(Number(value.toFixed(digits)));
}

export const trueTimestep = (t, shift) => (1000 * shift * (t / 1000)) / (1 + (shift - 1) * (t / 1000));

export { t } from "./words.js";
import { t } from "./words.js";
