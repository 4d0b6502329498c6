// The editors' own words; names and tooltips of the nodes are in locales/.
import { app } from "/scripts/app.js";

const WORDS = {
  en: {
    forwards: "{n} forwards",
    inChunks: "in {n} chunks",
    chunks: "Chunks",
    cycle: "Repeating",
    afterSwitch: "After a switch",
    chunk: "chunk {n}",
    cycleChunk: "repeating {n}",
    switchChunk: "after switch {n}",
    step: "step {n}",
    true: "true {n}",
    addColumn: "Add a chunk",
    removeColumn: "Remove the last chunk",
    help: "Drag a step · click to add one · right click to remove",
    showText: "text",
    showTextHelp: "Show or hide the fields with the text",
    tooLong: "Too long for the editor; edit the text, or use shorter notation such as 2*100.",
    offline: "The editor cannot reach the server. The text counts as it is.",
    linked: "The text comes from a connected node.",
    addPrompt: "Add a switch",
    removePrompt: "Remove this switch",
    timelineHelp: "Double click on the ruler to add a switch · drag to move",
    prompts: "{n} prompts",
    prompt: "1 prompt",
    timeHelp: "When it begins: 2.5s, 40f (pixel frames), 9lf (latent frames), 3c (chunks)",
    noPrompt: "What the video shows from here on",
    fromModel: "The checkpoint's own settings, or else those above.",
    modelOrElse: "the model's, or {value}",
    fromPreset: "Settings of {name}; choose custom to change them.",
    custom: "The settings above count.",
    kvNoise: "KV noise {n}: true timestep {m}",
    live: "Live prompt",
    liveIdle: "Run the graph: what you type then is shown from the next chunk on.",
    liveReady: "What the video shows from the next chunk on",
    liveSend: "Send",
    liveSent: "From the next chunk on: {prompt}",
    liveShown: "From {at} s: {prompt} (after {wait} s)",
  },
  zh: {
    forwards: "{n} 次前向",
    inChunks: "共 {n} 块",
    chunks: "分块",
    cycle: "循环",
    afterSwitch: "切换之后",
    chunk: "第 {n} 块",
    cycleChunk: "循环第 {n} 块",
    switchChunk: "切换后第 {n} 块",
    step: "第 {n} 步",
    true: "真实 {n}",
    addColumn: "添加一块",
    removeColumn: "移除最后一块",
    help: "拖动步骤 · 单击添加 · 右击移除",
    showText: "文本",
    showTextHelp: "显示或隐藏文本字段",
    tooLong: "文本太长，编辑器无法显示；请直接编辑文本，或使用 2*100 之类的简写。",
    offline: "编辑器无法连接服务器，文本内容仍然有效。",
    linked: "文本来自相连的节点。",
    addPrompt: "添加切换点",
    removePrompt: "移除此切换点",
    timelineHelp: "双击标尺添加切换点 · 拖动可移动",
    prompts: "{n} 条提示词",
    prompt: "1 条提示词",
    timeHelp: "开始时间：2.5s、40f（像素帧）、9lf（潜在帧）、3c（块）",
    noPrompt: "从这里开始的画面内容",
    fromModel: "以检查点自带的设置为准；没有时使用上面的值。",
    modelOrElse: "模型的，否则 {value}",
    fromPreset: "{name} 的设置。选择 custom 即可修改。",
    custom: "以上面的设置为准。",
    kvNoise: "KV 噪声 {n}：真实时间步 {m}",
    live: "实时提示词",
    liveIdle: "运行工作流后在此输入，从下一块起生效。",
    liveReady: "从下一块起的画面内容",
    liveSend: "发送",
    liveSent: "从下一块起：{prompt}",
    liveShown: "从 {at} 秒起：{prompt}（等待 {wait} 秒）",
  },
};

function locale() {
  try {
    return String(app.ui.settings.getSettingValue("Comfy.Locale") ?? "en");
  } catch {
    return "en"; // before the settings are there
  }
}

/** The words `key` in the front end's language, with {name}s filled in. */
export function t(key, values = {}) {
  const words = locale().startsWith("zh") ? WORDS.zh : WORDS.en;
  return words[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}
