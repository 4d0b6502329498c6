// The ruler on Prompt Timeline. The text stays what counts; Python reads it, and lines "2.5s: prompt" are written.
import { app } from "/scripts/app.js";
import {
  after, ask, asOneChange, growToFit, isLinked, known, make, onWidgetChange, placeElement, setWidgets, showWidget, t,
  valuesOf, writeWidgets,
} from "./common.js";
import { TimelineRuler, colour } from "./timeline_ruler.js";
import "./style.js";

const TEXT_SHOWN = "diagdistill_text"; // a property of the node, so that it is saved and undone with it
const SIZE = [440, 430];
// In the text a ";" that a time follows begins an entry, and one at the end is dropped, unless it is written "\;".
const oneLine = (prompt) =>
  prompt.replace(/\s*\n\s*/g, " ").trim().replace(/;(?=\s*\d[\d.]*\s*[a-z]*\s*:)/gi, "\\;");

class TimelineEditor {
  constructor(node) {
    Object.assign(this, { node, entries: [], chosen: 0 });
    this.ruler = new TimelineRuler({
      onChoose: (index, focus) => this.choose(index, focus),
      onAdd: (seconds) => this.add(seconds),
      onMoved: () => this.write(),
      onMoving: () => this.label(),
    });
    this.total = make("strong", { class: "ddx-grow" });
    this.plus = make("button", { class: "ddx-button", type: "button", title: t("addPrompt"), text: "+" });
    this.plus.addEventListener("click", () => this.add(this.ruler.freeAfter(this.chosen)));
    this.toggle = make("button", { class: "ddx-button", type: "button", title: t("showTextHelp"), text: t("showText") });
    this.toggle.addEventListener("click", () => this.toggleText());
    this.rows = make("div", { class: "ddx-rows ddx-scroll" });
    this.message = make("div", { class: "ddx-error" });
    this.body = make("div", { class: "ddx-body" }, this.ruler.element, this.rows);
    this.element = make(
      "div",
      { class: "ddx", tabindex: "0" },
      make("div", { class: "ddx-bar" }, this.total, this.plus, this.toggle),
      this.body,
      this.message,
    );
    this.element.addEventListener("keydown", (event) => this.pressed(event));
    placeElement(node, "timeline_editor", this.element, { minHeight: () => 190, onDraw: () => this.refresh() });
    onWidgetChange(node, ["text", "fps"], () => this.refresh());
    after(node, "onConfigure", () => this.refresh(true));
    after(node, "onConnectionsChange", () => this.refresh(true));
    after(node, "onRemoved", () => this.remove());
    this.refresh(true);
  }

  remove() {
    this.removed = true;
    this.ruler.remove();
  }

  /** Reads the text anew if it has changed since, whoever changed it. */
  refresh(always = false) {
    const values = valuesOf(this.node, ["text", "fps"]);
    const key = JSON.stringify(values);
    if (this.removed || (key === this.key && !always)) return;
    this.key = key;
    this.showText();
    if (isLinked(this.node, "text")) return this.fail(t("linked"), true);
    const answer = known("timeline", values);
    if (answer) return this.show(answer, values);
    ask("timeline", values).then((later) => {
      if (this.key === key && !this.removed) this.show(later, values);
    });
  }

  show(answer, { text, fps }) {
    // What is being typed is not taken away: the rows say the same already, or what is wrong is told below them.
    const own = text === this.written;
    if (answer.error) {
      const place = answer.line == null || own ? "" : `${answer.line}:${answer.column}  `;
      return this.fail(place + answer.error, !own);
    }
    this.failed = false;
    this.message.textContent = "";
    this.body.classList.remove("ddx-off");
    this.written = text;
    const typing = this.rows.contains(document.activeElement);
    const same = this.entries.length === answer.entries.length;
    this.entries = answer.entries.map((entry, i) => ({
      ...entry, // answers are kept for later, and the entries are edited
      prompt: typing && same ? this.entries[i].prompt : entry.prompt,
    }));
    this.chosen = Math.min(this.chosen, this.entries.length - 1);
    this.ruler.set(this.entries, fps, this.chosen);
    if (typing && same) this.label();
    else this.build();
    this.showText();
  }

  /** `elsewhere`: the fault is not one of an edit made here, so the rows say nothing of the text. */
  fail(message, elsewhere) {
    this.failed = elsewhere;
    this.message.textContent = message;
    this.message.className = message === t("linked") ? "ddx-dim" : "ddx-error";
    this.body.classList.toggle("ddx-off", elsewhere);
    this.showText();
  }

  /** The row of each prompt: its time, its words, and a button that removes it. */
  build() {
    const rows = this.entries.map((entry, index) => {
      const time = make("input", { class: "ddx-mono", title: t("timeHelp"), spellcheck: "false" });
      const prompt = make("textarea", { placeholder: t("noPrompt"), rows: "1", spellcheck: "false" });
      const away = make("button", { class: "ddx-button", type: "button", title: t("removePrompt"), text: "×" });
      time.disabled = index === 0;
      away.style.visibility = index ? "visible" : "hidden";
      prompt.value = entry.prompt;
      time.addEventListener("change", () => this.retime(index, time.value));
      time.addEventListener("keydown", (event) => event.key === "Enter" && !event.isComposing && time.blur());
      prompt.addEventListener("input", () => {
        this.entries[index].prompt = prompt.value;
        this.written = this.text();
        setWidgets(this.node, { text: this.written }); // counts at once; undone as a whole when the field is left
        this.ruler.render();
      });
      prompt.addEventListener("change", () => this.write());
      prompt.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" || event.isComposing || event.ctrlKey || event.metaKey) return;
        event.preventDefault(); // a prompt is one line
        prompt.blur();
      });
      away.addEventListener("click", () => this.take(index));
      const row = make("div", { class: "ddx-row" }, make("i"), time, prompt, away);
      row.addEventListener("focusin", () => this.choose(index));
      row.firstChild.style.background = colour(index);
      return row;
    });
    this.rows.replaceChildren(...rows);
    this.label();
  }

  label() {
    const n = this.entries.length;
    this.total.textContent = n === 1 ? t("prompt") : t("prompts", { n });
    [...this.rows.children].forEach((row, index) => {
      const time = row.querySelector("input");
      if (time !== document.activeElement) time.value = this.entries[index]?.label ?? "";
      row.classList.toggle("ddx-chosen", index === this.chosen);
    });
  }

  choose(index, focus = false) {
    this.chosen = index;
    this.ruler.choose(index);
    this.label();
    const field = this.rows.children[index]?.querySelector("textarea");
    if (!focus || !field) return;
    this.rows.scrollTop = field.parentElement.offsetTop - this.rows.offsetTop; // scrollIntoView would move the graph too
    field.focus({ preventScroll: true });
    field.select();
  }

  /** A new switch begins with the words before it, so that the text is a timeline at any moment. */
  add(seconds) {
    if (seconds == null || this.failed || !this.entries.length) return;
    const index = this.entries.filter((entry) => entry.seconds < seconds).length;
    const prompt = this.entries[index - 1].prompt;
    this.entries.splice(index, 0, { label: this.ruler.labelOf(seconds), seconds, prompt });
    this.changed(index);
    this.choose(index, true);
  }

  take(index) {
    if (!index || this.failed) return; // the first prompt is where the video begins
    this.entries.splice(index, 1);
    this.changed(index - 1);
  }

  changed(chosen) {
    this.chosen = chosen;
    this.ruler.set(this.entries, this.ruler.fps, chosen);
    this.build();
    this.write();
  }

  /** A time written by hand; whether it is one, and in order, is Python's to say. */
  retime(index, label) {
    this.entries[index].label = label.trim();
    this.write();
  }

  text() {
    return this.entries.map((entry) => `${entry.label}: ${oneLine(entry.prompt)}`).join("\n");
  }

  write() {
    this.written = this.text();
    writeWidgets(this.node, { text: this.written });
    this.refresh(true);
  }

  pressed(event) {
    if (event.key !== "Delete" && event.key !== "Backspace") return;
    event.stopPropagation(); // would remove the node
    if (event.target !== this.element) return;
    event.preventDefault();
    this.take(this.chosen);
  }

  toggleText() {
    asOneChange(() => {
      this.node.properties[TEXT_SHOWN] = !this.node.properties[TEXT_SHOWN];
      this.showText();
    });
  }

  /** The text is hidden behind the rows unless it is asked for, connected, or faulty. */
  showText() {
    const wanted = !!this.node.properties?.[TEXT_SHOWN];
    const shown = wanted || !!this.failed || isLinked(this.node, "text");
    this.toggle.classList.toggle("ddx-on", wanted);
    if (shown === this.shown) return;
    this.shown = shown;
    showWidget(this.node, "text", shown);
    growToFit(this.node);
  }
}

app.registerExtension({
  name: "DiagDistill.TimelineEditor",
  nodeCreated(node) {
    if (node.comfyClass !== "DiagDistillPromptTimeline" || !node.addDOMWidget) return;
    const text = node.widgets?.find((widget) => widget.name === "text");
    if (!text) return;
    if (text.options) text.options.getMaxHeight = () => 90; // what room there is belongs to the editor
    new TimelineEditor(node);
    node.setSize([Math.max(node.size[0], SIZE[0]), Math.max(node.computeSize()[1], SIZE[1])]);
  },
});
