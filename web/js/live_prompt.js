// The live prompt on Diagonal Sampler and Diagonal Stream: what is typed while the video is sampled.
import { app } from "/scripts/app.js";
import { api } from "/scripts/api.js";
import { after, askAnew, everyNode, growToFit, make, placeElement, send, showWidget, t, widgetOf } from "./common.js";
import "./sampler_settings.js"; // its lines stand above the live prompt, whichever file arrives first
import "./style.js";

const NODES = ["DiagDistillSampler", "DiagDistillStream"];
const BAR = 24;
const GAPS = 14; // between input, slots and what was told
let running = null; // { prompt_id, workflow, node, slots } of the node that takes prompts now

function hasClip(node) {
  return node.inputs?.some((input) => input.name === "clip" && input.link != null);
}

/** The node with an execution id: 10:4 is node 4 inside of subgraph node 10. */
function nodeOf(executionId) {
  let node = null;
  let graph = app.graph;
  for (const id of String(executionId).split(":")) {
    node = graph?.getNodeById?.(id);
    graph = node?.subgraph;
  }
  return node ?? null;
}

/** Whether the workflow with an id is the one on the canvas: nodes of another one may have the same numbers. Whoever
 * queued it need not have sent an id. */
function isShown(workflow) {
  return !workflow || workflow === app.graph.id;
}

class LivePrompt {
  constructor(node) {
    this.node = node;
    this.input = make("input", { type: "text", "aria-label": t("live") });
    this.button = make("button", { class: "ddx-button", text: t("liveSend"), onclick: () => this.say(this.input.value) });
    this.slots = make("div", { class: "ddx-bar ddx-slots" });
    this.told = make("div", { class: "ddx-dim ddx-grow" });
    this.element = make("div", { class: "ddx ddx-live" }, make("div", { class: "ddx-bar" }, this.input, this.button), this.slots, this.told);
    this.input.addEventListener("keydown", (event) => {
      event.stopPropagation(); // the front end's shortcuts are letters too
      if (event.key === "Enter" && !event.isComposing) this.say(this.input.value);
    });
    this.widget = placeElement(node, "diagdistill_live", this.element, { minHeight: () => this.height() });
    this.widget.options.getMaxHeight = () => this.height();
    after(node, "onConfigure", () => this.show());
    after(node, "onConnectionsChange", () => this.show());
    this.show();
  }

  /** The number of lines of slots is not known before they are drawn; a button a line is enough room. */
  height() {
    return hasClip(this.node) ? 2 * BAR + GAPS + BAR * this.slots.childElementCount : -4;
  }

  get mine() {
    return running && isShown(running.workflow) && nodeOf(running.node) === this.node ? running : null;
  }

  show() {
    const shown = hasClip(this.node);
    this.element.style.display = shown ? "" : "none";
    this.widget.hidden = !shown;
    showWidget(this.node, "live_prompts", shown);
    const listening = this.mine;
    this.input.disabled = this.button.disabled = !listening;
    this.input.placeholder = t(listening ? "liveReady" : "liveIdle");
    this.slots.replaceChildren(
      ...(listening?.slots ?? []).map((prompt, index) =>
        make("button", { class: "ddx-button", text: `${index + 1}  ${prompt}`, title: prompt, onclick: () => this.say(prompt) }),
      ),
    );
    if (shown) growToFit(this.node);
  }

  async say(prompt) {
    if (!this.mine || !prompt.trim()) return;
    const { prompt_id, node } = running;
    this.tell(t("liveSent", { prompt: prompt.trim() })); // before the answer: a fast model switches before that comes
    const answer = await send("live", { prompt_id, node_id: String(node), prompt });
    if (answer.error) this.tell(answer.error, true);
    else if (this.input.value === prompt) this.input.value = ""; // a slot's button leaves what is being typed
  }

  tell(text, failed = false) {
    this.told.textContent = this.told.title = text;
    this.told.className = failed ? "ddx-error ddx-grow" : "ddx-dim ddx-grow";
  }

  hear(event) {
    if (event.state === "switched") {
      const values = { at: event.seconds.toFixed(2), wait: event.waited.toFixed(1), prompt: event.prompt };
      this.tell(t("liveShown", values));
    } else if (event.state === "failed") {
      this.tell(event.error, true);
    } else {
      if (event.state === "listening") this.tell("");
      this.show();
    }
  }
}

api.addEventListener("diagdistill.live", ({ detail }) => {
  const of = running; // what follows a "listening" event says no workflow
  if (detail.state === "listening") running = detail;
  if (detail.state === "ended") running = null;
  if (isShown((running ?? of)?.workflow)) nodeOf(detail.node)?.diagdistillLive?.hear(detail);
});

/** A page that is opened, or finds the server again, while a video is being sampled has missed the event. */
async function catchUp() {
  const answer = await askAnew("live");
  if (answer.error) return;
  running = answer.running[0] ?? null;
  for (const node of everyNode(app.graph)) node.diagdistillLive?.show();
}

api.addEventListener("reconnected", catchUp);

app.registerExtension({
  name: "DiagDistill.LivePrompt",
  init() {
    catchUp(); // not awaited: a slow server must not hold up the front end
  },
  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass) || !node.addDOMWidget || !widgetOf(node, "preset")) return;
    node.diagdistillLive = new LivePrompt(node);
  },
});
