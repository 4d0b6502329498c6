// The ruler of a prompt timeline: seconds across, a block for each prompt, a marker where it begins.
import { draw, make, pointIn, short, t } from "./common.js";

const EDGE = 10; // left and right of the ruler
const GRID = 0.25; // markers snap to quarter seconds
const SHORTEST = 5; // seconds shown at least
const DOUBLE = 400; // milliseconds between the clicks of a double click
const TICKS = 12; // about so many numbers along the ruler
const BAND = { top: 6, bottom: 34 };
const HUES = [212, 152, 32, 282, 352, 182, 62, 322];

/** The colour of a prompt, in its block and its row. Fits light and dark themes. */
export const colour = (index) => `hsl(${HUES[index % HUES.length]} 65% 55%)`;

export class TimelineRuler {
  /**
   * @param onChoose (index, focus) when a prompt is clicked; focus where its words are wanted
   * @param onAdd (seconds) when a switch is wanted there
   * @param onMoving while a marker is dragged, onMoved after; the entries have its new label then
   */
  constructor({ onChoose, onAdd, onMoving, onMoved }) {
    Object.assign(this, { onChoose, onAdd, onMoving, onMoved, entries: [], fps: 16, chosen: 0, end: SHORTEST });
    this.svg = draw("svg");
    this.element = make("div", { class: "ddx-frame ddx-ruler", title: t("timelineHelp") }, this.svg);
    this.observer = new ResizeObserver(() => this.render());
    this.observer.observe(this.element);
    this.svg.addEventListener("pointerdown", (event) => this.down(event));
    this.svg.addEventListener("pointermove", (event) => this.move(event));
    this.svg.addEventListener("pointerup", () => this.up());
    this.svg.addEventListener("pointercancel", () => this.up());
  }

  remove() {
    this.observer.disconnect();
  }

  set(entries, fps, chosen) {
    if (this.drag) return;
    Object.assign(this, { entries, fps, chosen });
    const last = entries.at(-1)?.seconds ?? 0;
    this.end = Math.max(SHORTEST, Math.ceil(last + Math.max(2, last / 4)));
    this.render();
  }

  choose(index) {
    this.chosen = index;
    this.render();
  }

  labelOf(seconds) {
    return `${short(seconds, 2)}s`;
  }

  /** Two switches need a latent frame of 4 pixel frames between them. */
  gap() {
    return Math.max(1, Math.ceil(4 / this.fps / GRID - 1e-9)) * GRID;
  }

  x(seconds) {
    return EDGE + (seconds / this.end) * (this.element.clientWidth - 2 * EDGE);
  }

  secondsAt(x) {
    const seconds = ((x - EDGE) / (this.element.clientWidth - 2 * EDGE)) * this.end;
    return Math.round(Math.min(this.end, Math.max(0, seconds)) / GRID) * GRID;
  }

  /** `seconds` moved so that it keeps its distance from the neighbours; null where they leave no room. */
  between(seconds, before, next) {
    const low = Math.ceil((before + this.gap()) / GRID - 1e-9) * GRID;
    const high = next === undefined ? Infinity : Math.floor((next - this.gap()) / GRID + 1e-9) * GRID;
    return low > high ? null : Math.min(high, Math.max(low, seconds));
  }

  free(seconds) {
    const next = this.entries.findIndex((entry) => entry.seconds > seconds);
    const before = next < 0 ? this.entries.length - 1 : next - 1;
    return this.between(seconds, this.entries[before].seconds, this.entries[before + 1]?.seconds);
  }

  /** Where the + button adds: midway to the next switch, or 2.5 seconds after the last one. */
  freeAfter(index) {
    const [at, next] = [this.entries[index], this.entries[index + 1]];
    if (!at) return null;
    const middle = next ? (at.seconds + next.seconds) / 2 : at.seconds + 2.5;
    return this.between(Math.round(middle / GRID) * GRID, at.seconds, next?.seconds) ?? this.freeAfter(this.entries.length - 1);
  }

  render() {
    const width = this.element.clientWidth;
    if (!width || !this.entries.length) return;
    this.svg.setAttribute("width", width);
    this.svg.setAttribute("height", this.element.clientHeight);
    const shapes = this.ticks();
    this.entries.forEach((entry, index) => shapes.push(...this.block(entry, index)));
    this.entries.forEach((entry, index) => shapes.push(this.marker(entry, index)));
    this.svg.replaceChildren(...shapes);
  }

  ticks() {
    const step = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600].find((each) => this.end / each <= TICKS) ?? 7200;
    const shapes = [];
    for (let seconds = 0; seconds <= this.end + 1e-9; seconds += step) {
      const x = this.x(seconds);
      const anchor = seconds ? (seconds + step > this.end ? "end" : "middle") : "start";
      shapes.push(draw("line", { class: "ddx-tick", x1: x, x2: x, y1: BAND.top, y2: BAND.bottom + 6 }));
      const at = x + (anchor === "end" ? 4 : anchor === "start" ? -4 : 0);
      shapes.push(draw("text", { x: at, y: 52, "text-anchor": anchor, text: `${short(seconds)}s` }));
    }
    return shapes;
  }

  block(entry, index) {
    const left = this.x(entry.seconds);
    const width = Math.max(1, this.x(this.entries[index + 1]?.seconds ?? this.end) - left - 1);
    const height = BAND.bottom - BAND.top;
    const rect = draw("rect", {
      class: index === this.chosen ? "ddx-block ddx-chosen" : "ddx-block", x: left, y: BAND.top, width, height, rx: 3,
      fill: colour(index),
    }); // prettier-ignore
    // An inner svg cuts the words off at the block's end.
    const words = draw("svg", { x: left, y: BAND.top, width: Math.max(0, width - 4), height, overflow: "hidden" });
    words.append(draw("text", { class: "ddx-value", x: 9, y: height / 2 + 3.5, text: entry.prompt }));
    return [rect, words];
  }

  marker(entry, index) {
    const x = this.x(entry.seconds);
    const [top, bottom] = [BAND.top - 3, BAND.bottom + 3];
    const state = (index ? "" : " ddx-fixed") + (index === this.chosen ? " ddx-chosen" : "");
    const shape = draw("path", {
      class: "ddx-marker" + state, fill: colour(index),
      d: `M${x - 5} ${top}H${x + 5}V${bottom - 5}L${x} ${bottom + 2}L${x - 5} ${bottom - 5}Z`,
    }); // prettier-ignore
    shape.append(draw("title", { text: `${entry.label}: ${entry.prompt}` }));
    shape.dataset.index = index;
    return shape;
  }

  indexAt(seconds) {
    return Math.max(0, this.entries.filter((entry) => entry.seconds <= seconds).length - 1);
  }

  down(event) {
    if (event.button !== 0 || !this.entries.length) return;
    event.stopPropagation();
    this.element.closest(".ddx")?.focus({ preventScroll: true });
    const x = pointIn(this.svg, event)[0];
    // No dblclick comes, since the first click draws all shapes anew.
    const double = event.timeStamp - (this.last?.time ?? -Infinity) < DOUBLE && Math.abs(x - this.last.x) < 4;
    this.last = double ? null : { time: event.timeStamp, x };
    if (double && this.double(event, x)) return;
    const marker = event.target.dataset?.index;
    // Blocks are drawn to the snapped grid, but chosen by where the mouse is.
    const index = marker === undefined ? this.indexAt(((x - EDGE) / (this.element.clientWidth - 2 * EDGE)) * this.end) : +marker;
    this.onChoose(index, false);
    if (!(marker > 0)) return;
    this.drag = { index, offset: x - this.x(this.entries[index].seconds), label: this.entries[index].label };
    this.svg.setPointerCapture(event.pointerId);
  }

  move(event) {
    if (!this.drag) return;
    const { index, offset } = this.drag;
    const entry = this.entries[index];
    const wanted = this.secondsAt(pointIn(this.svg, event)[0] - offset);
    const seconds = this.between(wanted, this.entries[index - 1].seconds, this.entries[index + 1]?.seconds);
    if (seconds == null || seconds === entry.seconds) return;
    entry.seconds = seconds;
    entry.label = this.labelOf(seconds);
    this.render();
    this.onMoving();
  }

  up() {
    if (!this.drag) return;
    const { index, label } = this.drag;
    this.drag = null;
    if (this.entries[index].label !== label) this.onMoved();
  }

  /** Whether a switch was wanted here: on a marker there is one. */
  double(event, x) {
    if (this.entries.some((entry) => Math.abs(this.x(entry.seconds) - x) <= 6)) return false;
    const seconds = this.free(this.secondsAt(x));
    event.preventDefault(); // the focus goes to the new prompt
    if (seconds != null) this.onAdd(seconds);
    return true;
  }
}
