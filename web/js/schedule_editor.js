// The grid on Diagonal Schedule. The texts of the node's fields stay what counts; Python reads and writes them.
import { app } from "/scripts/app.js";
import {
  after, ask, asOneChange, growToFit, isLinked, known, make, onWidgetChange, placeElement, send, showWidget, t, valuesOf,
  writeWidgets,
} from "./common.js";
import { ScheduleGrid } from "./schedule_grid.js";
import "./style.js";

const FIELDS = ["preset", "steps", "cycle", "after_switch", "shift", "chunks"];
const TEXTS = ["steps", "cycle", "after_switch"];
const TEXT_SHOWN = "diagdistill_text"; // a property of the node, so that it is saved and undone with it
const SIZE = [440, 440];

class ScheduleEditor {
  constructor(node) {
    this.node = node;
    this.grid = new ScheduleGrid({
      onEdit: (lists, count) => this.write(lists, count),
      onHover: (words) => (this.hovered.textContent = words),
    });
    this.total = make("strong");
    this.inChunks = make("span", { class: "ddx-dim" });
    this.hovered = make("span", { class: "ddx-grow ddx-right" });
    this.text = make("span", { class: "ddx-dim ddx-mono ddx-grow" });
    this.toggle = make("button", { class: "ddx-button", type: "button", title: t("showTextHelp"), text: t("showText") });
    this.toggle.addEventListener("click", () => this.toggleText());
    this.element = make(
      "div",
      { class: "ddx", tabindex: "0" },
      make("div", { class: "ddx-bar" }, this.total, this.inChunks, this.hovered),
      this.grid.element,
      make("div", { class: "ddx-bar" }, this.text, this.toggle),
    );
    this.element.addEventListener("keydown", (event) => {
      if (event.key === "Delete" || event.key === "Backspace") event.stopPropagation(); // would remove the node
      if (!this.grid.key(event)) return;
      event.preventDefault();
      event.stopPropagation();
    });
    placeElement(node, "schedule_editor", this.element, { minHeight: () => 210, onDraw: () => this.refresh() });
    onWidgetChange(node, FIELDS, () => this.refresh());
    after(node, "onConfigure", () => this.refresh(true));
    after(node, "onConnectionsChange", () => this.refresh(true));
    after(node, "onRemoved", () => this.remove());
    this.refresh(true);
  }

  remove() {
    this.removed = true;
    this.grid.remove();
  }

  /** Reads the fields anew if they have changed since, whoever changed them. */
  refresh(always = false) {
    const values = valuesOf(this.node, FIELDS);
    const key = JSON.stringify(values);
    if (this.removed || (key === this.key && !always)) return;
    this.key = key;
    this.showTexts();
    if (["preset", ...TEXTS].some((name) => isLinked(this.node, name))) return this.fail(t("linked"), false);
    const answer = known("schedule", values);
    if (answer) return this.show(answer, values);
    ask("schedule", values).then((later) => {
      if (this.key === key && !this.removed) this.show(later, values);
    });
  }

  show(answer, values) {
    if (answer.error) return this.fail(answer.error, true);
    this.total.textContent = t("forwards", { n: answer.forwards });
    this.inChunks.textContent = t("inChunks", { n: values.chunks });
    this.say(answer.text, false);
    this.grid.element.classList.remove("ddx-off");
    this.grid.set(answer, values.shift, values.chunks);
    this.answer = answer;
  }

  /** Without a schedule there is nothing to edit; the last one stays, faded. */
  fail(message, isError) {
    this.total.textContent = this.inChunks.textContent = this.hovered.textContent = "";
    this.say(message, isError);
    this.grid.element.classList.add("ddx-off");
    this.failed = isError;
    this.showTexts();
  }

  say(message, isError) {
    this.failed = isError;
    this.text.textContent = this.text.title = message;
    this.text.className = isError ? "ddx-error ddx-grow" : "ddx-dim ddx-mono ddx-grow";
    this.showTexts();
  }

  async write(lists, count) {
    const { shift, chunks } = valuesOf(this.node, ["shift", "chunks"]);
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const texts = await send("schedule", { ...lists, shift });
    if (turn !== this.turn || this.removed) return; // a later edit holds this one too
    if (texts.error) {
      if (this.answer) this.grid.set(this.answer, shift, chunks);
      this.say(texts.error, true);
      return;
    }
    writeWidgets(this.node, {
      preset: "custom", steps: texts.steps, cycle: texts.cycle, after_switch: texts.after_switch, chunks: count,
    }); // prettier-ignore
    this.refresh(true);
  }

  toggleText() {
    asOneChange(() => {
      this.node.properties[TEXT_SHOWN] = !this.node.properties[TEXT_SHOWN];
      this.showTexts();
    });
  }

  /** The fields are hidden behind the grid unless they are asked for, connected, or faulty. */
  showTexts() {
    const wanted = !!this.node.properties?.[TEXT_SHOWN];
    const shown = TEXTS.map((name) => wanted || !!this.failed || isLinked(this.node, name));
    this.toggle.classList.toggle("ddx-on", wanted);
    if (JSON.stringify(shown) === this.shown) return;
    this.shown = JSON.stringify(shown);
    TEXTS.forEach((name, i) => showWidget(this.node, name, shown[i]));
    growToFit(this.node);
  }
}

app.registerExtension({
  name: "DiagDistill.ScheduleEditor",
  nodeCreated(node) {
    if (node.comfyClass !== "DiagDistillSchedule" || !node.addDOMWidget) return;
    const steps = node.widgets?.find((widget) => widget.name === "steps");
    if (!steps) return;
    // The text is short; what room there is belongs to the grid.
    if (steps.options) steps.options.getMaxHeight = () => 64;
    new ScheduleEditor(node);
    node.setSize([Math.max(node.size[0], SIZE[0]), Math.max(node.computeSize()[1], SIZE[1])]);
  },
});
