// The grid of a schedule: one column a chunk, noise downwards, each step a handle. Knows neither nodes nor notation.
import { draw, make, pointIn, short, t, trueTimestep } from "./common.js";

const AXIS = 30; // left of the first column, for the noise levels
const HEADING = 18;
const FOOT = 30; // step counts and chunk numbers
const GAP = 10; // between parts
const MORE = 20; // the strip with + and -
const HEADED = 48; // a part's heading needs some room, even over a single narrow column
const NARROWEST = 22;
const WIDEST = 90;
const GHOSTS = 24; // repeated columns beyond this many are not drawn
const REACH = 10; // how near a handle the mouse counts as on it
const COARSE = 10; // a drag moves in steps of 10 on the scale of 1000; with Shift, of 1
const PARTS = [
  ["chunks", "chunks", "chunk"],
  ["cycle", "cycle", "cycleChunk"],
  ["after_switch", "afterSwitch", "switchChunk"],
];

const copy = (lists) => Object.fromEntries(PARTS.map(([part]) => [part, lists[part].map((steps) => [...steps])]));

export class ScheduleGrid {
  /**
   * @param onEdit called with ({chunks, cycle, after_switch}, count) when an edit is done
   * @param onHover called with the words about what is under the mouse, or ""
   */
  constructor({ onEdit, onHover }) {
    Object.assign(this, { onEdit, onHover, lists: null, shown: [], shift: 5, count: 0, chosen: null, hover: null });
    this.svg = draw("svg");
    this.element = make("div", { class: "ddx-frame" }, this.svg);
    this.element.title = t("help");
    this.observer = new ResizeObserver(() => this.render());
    this.observer.observe(this.element);
    const svg = this.svg;
    svg.addEventListener("pointerdown", (event) => this.down(event));
    svg.addEventListener("pointermove", (event) => this.move(event));
    svg.addEventListener("pointerup", (event) => this.up(event));
    svg.addEventListener("pointercancel", () => this.cancel());
    svg.addEventListener("pointerleave", () => this.drag || this.look(null));
    svg.addEventListener("contextmenu", (event) => {
      event.preventDefault(); // the right button removes
      event.stopPropagation();
    });
  }

  remove() {
    this.observer.disconnect();
  }

  /** Shows {chunks, cycle, after_switch, shown} as the server told them, and `count` chunks. */
  set(answer, shift, count) {
    if (this.drag) return;
    Object.assign(this, { lists: copy(answer), shown: answer.shown, shift, count });
    if (this.chosen && !this.steps(this.chosen)?.[this.chosen.step]) this.chosen = null;
    this.render();
  }

  steps({ part, column }) {
    return this.lists[part][column] ?? (part === "chunks" ? this.shown[column] : undefined);
  }

  /** A repeated column becomes one of its own as soon as it is edited, and those after it go on as they were. */
  own(place) {
    const { chunks } = this.lists;
    if (place.part !== "chunks" || place.column < chunks.length) return;
    const last = Math.min(place.column + 1, this.count - 1);
    while (chunks.length <= Math.max(place.column, last)) chunks.push([...chunks.at(-1)]);
  }

  layout() {
    const own = this.lists.chunks.length;
    const goesOn = !this.lists.cycle.length; // with a cycle, that is what goes on
    const drawn = goesOn ? Math.max(own, Math.min(this.count, Math.max(GHOSTS, own + 2))) : own;
    const sizes = { chunks: drawn, cycle: this.lists.cycle.length, after_switch: this.lists.after_switch.length };
    const room = this.element.clientWidth - AXIS - PARTS.length * MORE - (PARTS.length - 1) * GAP - 6;
    const width = this.columnWidth(Object.values(sizes).filter((size) => size), room);
    this.top = HEADING + 6;
    this.bottom = Math.max(this.top + 40, this.element.clientHeight - FOOT);
    let x = AXIS;
    this.parts = PARTS.map(([part, title, name]) => {
      const result = { part, title, name, x, width, columns: sizes[part], end: x + sizes[part] * width };
      if (sizes[part]) result.end = Math.max(result.end, x + HEADED);
      x = result.end + MORE + GAP;
      return result;
    });
    return x - GAP + 6;
  }

  /** The width at which parts of these sizes fill the room, where small ones take what their heading needs. */
  columnWidth(sizes, room) {
    let wide = sizes;
    let width = 0;
    for (;;) {
      const columns = wide.reduce((sum, size) => sum + size, 0);
      width = (room - (sizes.length - wide.length) * HEADED) / Math.max(1, columns);
      const still = wide.filter((size) => size * width >= HEADED);
      if (still.length === wide.length || !still.length) break;
      wide = still;
    }
    return Math.min(WIDEST, Math.max(NARROWEST, width));
  }

  y(step) {
    return this.top + (1 - step / 1000) * (this.bottom - this.top);
  }

  stepAt(y, fine) {
    const grain = fine ? 1 : COARSE;
    const exact = 1000 * (1 - (y - this.top) / (this.bottom - this.top));
    return Math.min(1000, Math.max(grain, Math.round(exact / grain) * grain));
  }

  render() {
    if (!this.lists || !this.element.clientWidth) return;
    const width = this.layout();
    const height = this.element.clientHeight - (width > this.element.clientWidth ? 6 : 0);
    this.svg.setAttribute("width", Math.max(width, this.element.clientWidth));
    this.svg.setAttribute("height", height);
    const end = this.parts.at(-1).end + MORE;
    const shapes = [1000, 750, 500, 250, 0].flatMap((level) => [
      draw("line", { class: "ddx-level", x1: AXIS - 3, x2: end, y1: this.y(level), y2: this.y(level) }),
      draw("text", { x: AXIS - 6, y: this.y(level) + 3, "text-anchor": "end", text: level }),
    ]);
    for (const part of this.parts) shapes.push(...this.drawPart(part));
    this.svg.replaceChildren(...shapes);
  }

  drawPart(part) {
    const shapes = [];
    if (part.columns) shapes.push(draw("text", { x: part.x + 1, y: 12, text: t(part.title) }));
    for (let column = 0; column < part.columns; column++) shapes.push(this.drawColumn(part, column));
    const middle = (this.top + this.bottom) / 2;
    const x = part.end + 3;
    const strip = (y1, y2, act, help) => {
      const box = draw("rect", { class: "ddx-more", x, y: y1, width: MORE - 4, height: y2 - y1, rx: 4 });
      box.append(draw("title", { text: t(help) }));
      box.dataset.act = act;
      box.dataset.part = part.part;
      return box;
    };
    const sign = (y, text) => draw("text", { class: "ddx-sign", x: x + MORE / 2 - 2, y, text });
    if (part.columns) {
      shapes.push(strip(this.top, middle - 2, "add", "addColumn"), sign((this.top + middle) / 2 + 4, "+"));
      shapes.push(strip(middle + 2, this.bottom, "remove", "removeColumn"), sign((middle + this.bottom) / 2 + 4, "−"));
    } else {
      const [tx, ty] = [x + MORE / 2 + 1, this.top + 26];
      const turned = { x: tx, y: ty, transform: `rotate(90 ${tx} ${ty})`, dy: 0, text: t(part.title) };
      shapes.push(strip(this.top, this.bottom, "add", "addColumn"), sign(this.top + 15, "+"), draw("text", turned));
    }
    return shapes;
  }

  drawColumn({ part, x: left, width }, column) {
    const steps = this.steps({ part, column }) ?? [];
    const ghost = part === "chunks" && column >= this.lists.chunks.length;
    const x = left + column * width;
    const here = (place) => place && place.part === part && place.column === column;
    const hovered = here(this.hover);
    const group = draw("g", ghost ? { class: "ddx-ghost" } : {});
    const box = { x: x + 1, y: this.top, width: width - 2, height: this.bottom - this.top, rx: 3 };
    group.append(draw("rect", { class: hovered ? "ddx-column ddx-hover" : "ddx-column", ...box }));
    const tread = (width - 4) / (steps.length || 1);
    const at = (index) => x + 2 + index * tread;
    const edge = steps.map((step, i) => `${i ? "L" : "M"}${at(i)} ${this.y(step)}H${at(i + 1)}`).join("");
    if (edge) {
      group.append(draw("path", { class: "ddx-stairs", d: `${edge}V${this.bottom}H${at(0)}Z` }));
      group.append(draw("path", { class: "ddx-edge", d: edge }));
    }
    if (hovered && this.hover.fresh != null) {
      group.append(draw("circle", { class: "ddx-new", cx: x + width / 2, cy: this.y(this.hover.fresh), r: 4.5 }));
    }
    const roomy = tread >= 21;
    steps.forEach((step, i) => {
      const [isHover, isChosen] = [hovered && this.hover.step === i, here(this.chosen) && this.chosen.step === i];
      const state = (isHover ? " ddx-hover" : "") + (isChosen ? " ddx-chosen" : "");
      const [cx, cy] = [at(i + 0.5), this.y(step)];
      group.append(draw("circle", { class: "ddx-handle" + state, cx, cy, r: isHover || isChosen ? 5.5 : 4.5 }));
      if (!roomy && !isHover) return;
      const place = { x: cx, y: cy < this.top + 14 ? cy + 15 : cy - 8, "text-anchor": "middle" };
      group.append(draw("text", { class: isHover ? "ddx-value" : "", ...place, text: short(step) }));
    });
    const foot = { x: x + width / 2, "text-anchor": "middle" };
    group.append(draw("text", { class: ghost ? "" : "ddx-strong", ...foot, y: this.bottom + 13, text: steps.length }));
    if (width >= 26 || column % 5 === 4 || !column) {
      group.append(draw("text", { ...foot, y: this.bottom + 25, text: column + 1 }));
    }
    return group;
  }

  /** What is at the mouse: {part, column, step} with step undefined beside the handles; null outside the columns. */
  placeAt(event) {
    const [x, y] = pointIn(this.svg, event);
    const part = this.parts?.find((each) => x >= each.x && x < each.x + each.columns * each.width);
    if (!part || y < this.top - REACH || y > this.bottom + REACH) return null;
    const column = Math.floor((x - part.x) / part.width);
    const place = { part: part.part, column, y };
    const steps = this.steps(place) ?? [];
    const tread = (part.width - 4) / (steps.length || 1);
    const distance = (step, i) =>
      Math.hypot(this.y(step) - y, (part.x + column * part.width + 2 + (i + 0.5) * tread - x) * 0.8);
    const distances = steps.map(distance);
    const nearest = distances.indexOf(Math.min(...distances));
    if (distances[nearest] <= REACH) place.step = nearest;
    return place;
  }

  look(place, event) {
    this.hover = place;
    if (!place) {
      this.onHover("");
    } else {
      const steps = this.steps(place) ?? [];
      if (place.step === undefined) place.fresh = this.free(steps, this.stepAt(place.y, event.shiftKey));
      const step = place.step === undefined ? place.fresh : steps[place.step];
      const name = PARTS.find(([part]) => part === place.part)[2];
      const words = [t(name, { n: place.column + 1 })];
      if (place.step !== undefined) words.push(t("step", { n: place.step + 1 }));
      if (step != null) words.push(`${short(step)} → ${t("true", { n: short(trueTimestep(step, this.shift)) })}`);
      this.onHover(words.join(" · "));
    }
    this.render();
  }

  /** `step`, or null where the column has it already. */
  free(steps, step) {
    return steps.includes(step) ? null : step;
  }

  down(event) {
    if (event.button !== 0 && event.button !== 2) return;
    event.stopPropagation();
    this.svg.closest(".ddx")?.focus({ preventScroll: true });
    const act = event.target.dataset?.act;
    if (act) return event.button === 0 && this.resize(event.target.dataset.part, act);
    const place = this.placeAt(event);
    if (!place || !this.lists) return;
    if (event.button === 2) return this.removeStep(place);
    this.before = copy(this.lists);
    this.own(place);
    const steps = this.steps(place);
    if (place.step === undefined) {
      const step = this.free(steps, this.stepAt(place.y, event.shiftKey));
      if (step == null) return;
      steps.push(step);
      steps.sort((a, b) => b - a);
      place.step = steps.indexOf(step);
    }
    this.chosen = place;
    this.drag = place;
    this.svg.setPointerCapture(event.pointerId);
    this.look(place, event);
  }

  move(event) {
    if (!this.lists) return;
    if (!this.drag) return this.look(this.placeAt(event), event);
    const grain = event.shiftKey ? 1 : COARSE;
    this.shiftStep(this.drag, this.stepAt(pointIn(this.svg, event)[1], event.shiftKey), grain);
    this.look(this.drag, event);
  }

  /** Steps stay strictly descending, so a step stops before its neighbours. */
  shiftStep({ part, column, step }, value, grain) {
    const steps = this.lists[part][column];
    const above = step ? steps[step - 1] - 1 : 1000;
    const below = step + 1 < steps.length ? steps[step + 1] + 1 : 1;
    const roundAbove = step ? Math.ceil(steps[step - 1] / grain) * grain - grain : 1000;
    const roundBelow = step + 1 < steps.length ? Math.floor(steps[step + 1] / grain) * grain + grain : grain;
    const [low, high] = roundBelow <= roundAbove ? [roundBelow, roundAbove] : [below, above];
    if (low <= high) steps[step] = Math.min(high, Math.max(low, value));
  }

  up() {
    if (!this.drag) return;
    this.drag = null;
    this.done();
  }

  cancel() {
    if (!this.drag) return;
    this.drag = this.hover = null;
    this.lists = this.before;
    this.render();
  }

  done() {
    this.render();
    if (JSON.stringify(this.lists) !== JSON.stringify(this.before)) this.onEdit(copy(this.lists), this.count);
  }

  removeStep(place) {
    this.before = copy(this.lists);
    if (place.step === undefined || this.steps(place).length < 2) return;
    this.own(place);
    this.steps(place).splice(place.step, 1);
    this.chosen = this.hover = null;
    this.done();
  }

  resize(part, act) {
    const lists = this.lists[part];
    this.before = copy(this.lists);
    if (act === "add") {
      lists.push([...(lists.at(-1) ?? this.lists.chunks.at(-1) ?? this.shown.at(-1))]);
      if (part === "chunks") this.count = Math.max(this.count, lists.length);
    } else {
      if (part === "chunks" && lists.length < 2 && !this.lists.cycle.length) return;
      // The last column goes out of sight too, where it was the last one shown.
      if (part === "chunks" && this.count === lists.length) this.count = Math.max(1, this.count - 1);
      lists.pop();
    }
    this.chosen = this.hover = null;
    this.done();
  }

  /** Delete removes the chosen step, arrows move it or choose another one. Whether the key was one of these. */
  key(event) {
    const place = this.chosen;
    if (!place || !this.lists || event.ctrlKey || event.metaKey || event.altKey) return false;
    const steps = this.steps(place);
    const grain = event.shiftKey ? 1 : COARSE;
    if (event.key === "Delete" || event.key === "Backspace") {
      this.removeStep(place);
    } else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      this.before = copy(this.lists);
      this.own(place);
      this.shiftStep(place, steps[place.step] + (event.key === "ArrowUp" ? grain : -grain), grain);
      this.done();
    } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      place.step = Math.min(steps.length - 1, Math.max(0, place.step + (event.key === "ArrowRight" ? 1 : -1)));
      this.render();
    } else return false;
    return true;
  }
}
