// How the editors look. All colours come from the front end's theme, light or dark.
const STYLE = `
.ddx {
  --ddx-accent: var(--p-primary-color, #3b82f6);
  --ddx-text: var(--input-text, #ddd);
  --ddx-dim: var(--descrip-text, #999);
  --ddx-line: color-mix(in srgb, var(--ddx-text) 16%, transparent);
  --ddx-faint: color-mix(in srgb, var(--ddx-text) 5%, transparent);
  --ddx-error: var(--error-text, #ff4444);
  display: flex; flex-direction: column; gap: 4px; box-sizing: border-box; overflow: hidden;
  color: var(--ddx-text); font: 11px/1.35 Inter, system-ui, sans-serif; user-select: none; outline: none;
}
.ddx-bar { display: flex; align-items: baseline; gap: 6px; flex: none; min-height: 16px; white-space: nowrap; }
.ddx-bar strong { font-size: 13px; font-weight: 600; }
.ddx-dim { color: var(--ddx-dim); }
.ddx-grow { flex: 1; min-width: 0; overflow: hidden; text-overflow: ellipsis; }
.ddx-right { text-align: right; }
.ddx-mono { font-family: ui-monospace, Menlo, Consolas, monospace; }
.ddx-error { color: var(--ddx-error); white-space: normal; max-height: 4.1em; overflow: auto; user-select: text; }
.ddx-frame {
  flex: 1; min-height: 0; overflow: auto hidden; border-radius: 6px; background: var(--comfy-input-bg, #222);
  border: 1px solid var(--border-color, #4e4e4e); scrollbar-width: thin;
}
.ddx:focus-visible .ddx-frame { border-color: var(--ddx-accent); }
.ddx-off { opacity: 0.45; pointer-events: none; }
.ddx-body { display: flex; flex-direction: column; gap: 6px; flex: 1; min-height: 0; }
.ddx-button {
  border: 1px solid var(--border-color, #4e4e4e); border-radius: 4px; padding: 0 6px; line-height: 15px; flex: none;
  font: inherit; font-size: 10px; cursor: pointer; color: var(--ddx-dim); background: var(--comfy-input-bg, #222);
}
.ddx-button:hover, .ddx-button.ddx-on { color: var(--ddx-text); border-color: var(--ddx-accent); }
.ddx svg { display: block; font: inherit; touch-action: none; }
.ddx svg text { fill: var(--ddx-dim); font-size: 9px; pointer-events: none; }
.ddx svg text.ddx-strong { fill: var(--ddx-text); font-size: 11px; font-weight: 600; }
.ddx svg text.ddx-value { fill: var(--ddx-text); }
.ddx-level { stroke: var(--ddx-line); stroke-width: 1; }
.ddx-column { fill: var(--ddx-faint); }
.ddx-column.ddx-hover { fill: color-mix(in srgb, var(--ddx-text) 10%, transparent); }
.ddx-stairs { fill: color-mix(in srgb, var(--ddx-accent) 22%, transparent); }
.ddx-edge { fill: none; stroke: var(--ddx-accent); stroke-width: 1.5; stroke-linejoin: round; }
.ddx-ghost .ddx-stairs { fill: color-mix(in srgb, var(--ddx-text) 9%, transparent); }
.ddx-ghost .ddx-edge { stroke: var(--ddx-dim); stroke-dasharray: 2 2; }
.ddx-handle { fill: var(--ddx-accent); stroke: var(--comfy-input-bg, #222); stroke-width: 1.5; cursor: ns-resize; }
.ddx-ghost .ddx-handle { fill: var(--ddx-dim); }
.ddx-handle.ddx-hover, .ddx-handle.ddx-chosen { stroke: var(--ddx-text); }
.ddx-new { fill: none; stroke: var(--ddx-accent); stroke-dasharray: 2 2; pointer-events: none; }
.ddx-more { fill: transparent; stroke: var(--ddx-line); stroke-dasharray: 3 3; cursor: pointer; }
.ddx-more:hover { stroke: var(--ddx-accent); fill: var(--ddx-faint); }
.ddx svg text.ddx-sign { font-size: 13px; text-anchor: middle; }
.ddx-ruler { flex: none; height: 58px; overflow: hidden; cursor: copy; }
.ddx-tick { stroke: var(--ddx-line); }
.ddx-block { stroke: none; opacity: 0.35; }
.ddx-block.ddx-chosen { opacity: 0.6; }
.ddx-marker { cursor: ew-resize; stroke: var(--comfy-input-bg, #222); stroke-width: 1.5; }
.ddx-marker.ddx-fixed { cursor: pointer; }
.ddx-marker.ddx-chosen { stroke: var(--ddx-text); }
.ddx-rows { flex: 1; min-height: 0; overflow: hidden auto; display: flex; flex-direction: column; gap: 4px; scrollbar-width: thin; }
.ddx-row { display: flex; align-items: stretch; gap: 4px; flex: 1 0 34px; max-height: 64px; }
.ddx-row > i { flex: none; width: 4px; border-radius: 2px; opacity: 0.75; }
.ddx-row.ddx-chosen > i { opacity: 1; }
.ddx-row input, .ddx-row textarea {
  box-sizing: border-box; border: 1px solid transparent; border-radius: 4px; padding: 3px 6px; font: inherit; resize: none;
  color: var(--ddx-text); background: var(--comfy-input-bg, #222); outline: none; min-width: 0;
}
.ddx-row input { width: 54px; flex: none; text-align: right; }
.ddx-row textarea { flex: 1; scrollbar-width: thin; }
.ddx-row.ddx-chosen textarea, .ddx-row.ddx-chosen input { border-color: var(--border-color, #4e4e4e); }
.ddx-row input:focus, .ddx-row textarea:focus { border-color: var(--ddx-accent); }
.ddx-row input:disabled { opacity: 0.6; }
.ddx-row .ddx-button { padding: 0 5px; border-color: transparent; font-size: 12px; }
.ddx-status { gap: 0; line-height: 16px; font-size: 11px; color: var(--ddx-dim); user-select: text; }
.ddx-status div { flex: none; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.ddx-status .ddx-result { color: var(--ddx-text); white-space: normal; flex: 0 1 auto; overflow: hidden auto; }
.ddx-live input {
  flex: 1; min-width: 0; box-sizing: border-box; border: 1px solid var(--border-color, #4e4e4e); border-radius: 4px;
  padding: 3px 6px; font: inherit; color: var(--ddx-text); background: var(--comfy-input-bg, #222); outline: none;
}
.ddx-live input:focus { border-color: var(--ddx-accent); }
.ddx-live input:disabled { opacity: 0.6; }
.ddx-live .ddx-bar { align-items: center; }
.ddx-live .ddx-slots { flex-wrap: wrap; }
.ddx-live .ddx-slots .ddx-button { max-width: 100%; overflow: hidden; text-overflow: ellipsis; }
`;

const element = document.createElement("style");
element.textContent = STYLE;
document.head.append(element);
