// Diagonal Sampler, its Select and Diagonal Stream: which settings count, what they are, and what the last run did.
import { app } from "/scripts/app.js";
import {
  after, ask, everyNode, isLinked, make, onWidgetChange, placeElement, setWidgets, short, t, trueTimestep, valuesOf, widgetOf,
} from "./common.js";
import "./style.js";

const NODES = ["DiagDistillSampler", "DiagDistillSamplerSelect", "DiagDistillStream"];
const SETTINGS = ["shift", "kv_noise", "reuse_last_step", "window", "sink", "positions", "chunk_frames", "step", "cfg"];
const [FROM_MODEL, CUSTOM] = ["from model", "custom"];
const TAKEN = "diagdistill_schedule"; // a property of the node: the schedule that "custom" took from a preset
const LINE = 16;
let presets = {};

/**
 * A disabled widget shows no value in this front end; what a preset brings is to be read, though, and where the
 * checkpoint decides, that the number is for one that says nothing.
 */
function showValue(node, widget) {
  if (!("_displayValue" in widget)) return; // a front end that draws widgets in another way
  Object.defineProperty(widget, "_displayValue", {
    configurable: true,
    get() {
      if (isLinked(node, this.name)) return "";
      const value = typeof this.value === "number" ? this.value.toFixed(this.options?.precision ?? 3) : String(this.value);
      return widgetOf(node, "preset")?.value === FROM_MODEL ? t("modelOrElse", { value }) : value;
    },
  });
}

class SamplerSettings {
  constructor(node) {
    this.node = node;
    this.source = make("div");
    this.noise = make("div");
    this.result = make("div", { class: "ddx-result" });
    this.element = make("div", { class: "ddx ddx-status" }, this.source, this.noise, this.result);
    for (const name of SETTINGS) if (widgetOf(node, name)) showValue(node, widgetOf(node, name));
    this.widget = placeElement(node, "diagdistill_status", this.element, {
      minHeight: () => this.height(),
      onDraw: () => this.tell(),
    });
    // Anything that grows would take the room that the preview below needs.
    this.widget.options.getMaxHeight = () => this.height();
    onWidgetChange(node, ["preset"], () => {
      this.begin(this.preset, widgetOf(node, "preset").value);
      this.choose();
    });
    onWidgetChange(node, ["kv_noise", "shift"], () => this.tell());
    after(node, "onConfigure", () => this.choose());
    after(node, "onExecuted", (output) => this.report(output));
    this.choose();
  }

  height() {
    return 20 + (this.lines ?? 2) * LINE;
  }

  /**
   * "custom" begins with all of the preset before it, or with what the checkpoint said of itself in the last run; what
   * is typed as schedule is the user's and stays.
   */
  begin(before, now) {
    const { properties } = this.node;
    if (now === CUSTOM && before === FROM_MODEL && this.own) setWidgets(this.node, this.own);
    const text = (widgetOf(this.node, "schedule_text")?.value ?? "").trim();
    if (now === CUSTOM && !text && presets[before]) {
      properties[TAKEN] = presets[before].schedule;
      setWidgets(this.node, { schedule_text: properties[TAKEN] });
    } else if (now !== CUSTOM && TAKEN in properties) {
      // It would go before the schedule of the preset that is chosen now.
      if (text === properties[TAKEN]) setWidgets(this.node, { schedule_text: "" });
      delete properties[TAKEN];
    }
  }

  /** The settings of a named preset are shown, and can be changed with "custom" only. */
  choose() {
    const preset = widgetOf(this.node, "preset")?.value;
    const settings = presets[preset];
    this.preset = preset;
    for (const name of SETTINGS) {
      const widget = widgetOf(this.node, name);
      if (!widget) continue;
      if (settings && name in settings && widget.value !== settings[name]) widget.value = settings[name];
      widget.disabled = preset !== CUSTOM;
    }
    this.tell();
    this.node.graph?.setDirtyCanvas?.(true, true);
  }

  tell() {
    const { preset, kv_noise: noise, shift } = valuesOf(this.node, ["preset", "kv_noise", "shift"]);
    const key = `${preset} ${noise} ${shift}`;
    if (key === this.key) return;
    this.key = key;
    this.source.textContent = this.source.title =
      preset === FROM_MODEL ? t("fromModel") : preset === CUSTOM ? t("custom") : t("fromPreset", { name: preset });
    // What the checkpoint says is not known before a run; the result tells it.
    const level = { n: short(noise ?? 0), m: short(trueTimestep(noise ?? 0, shift ?? 5)) };
    this.noise.textContent = preset === FROM_MODEL ? "" : t("kvNoise", level);
  }

  report(output) {
    const text = output?.diagdistill?.[0];
    this.own = output?.diagdistill_model?.[0];
    if (typeof text !== "string") return;
    this.result.textContent = this.result.title = text;
    // Room for it: the lines are counted at the node's width, and the node grows by what is missing.
    const perLine = Math.max(20, (this.node.size[0] - 24) / 5.6);
    const lines = 2 + Math.min(3, Math.ceil(text.length / perLine));
    const missing = (lines - (this.lines ?? 2)) * LINE;
    this.lines = Math.max(lines, this.lines ?? 2);
    if (missing > 0) this.node.setSize([this.node.size[0], this.node.size[1] + missing]);
    this.node.graph?.setDirtyCanvas?.(true, true);
  }
}

app.registerExtension({
  name: "DiagDistill.SamplerSettings",
  init() {
    // Not awaited: a slow server must not hold up the front end; nodes that are there by then are told.
    ask("presets").then((answer) => {
      if (answer.error) return;
      presets = answer;
      for (const node of everyNode(app.graph)) node.diagdistillSettings?.choose();
    });
  },
  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass) || !node.addDOMWidget || !widgetOf(node, "preset")) return;
    node.diagdistillSettings = new SamplerSettings(node);
    const needed = node.computeSize();
    node.setSize([Math.max(node.size[0], needed[0], 340), Math.max(node.size[1], needed[1])]);
  },
});
