// A workflow that names a public model which is not on this computer says so when it is opened, with where to get
// it: the loaders tell (nodes/loaders.py, the option unclip_sources of their input).
import { app } from "../../scripts/app.js";

const INPUTS = ["bundle", "file"];
const LIFE = 60000; // ms

const texts = new Set();

function show() {
  for (const detail of texts) {
    app.extensionManager?.toast?.add?.({ severity: "warn", summary: "unCLIP", detail, life: LIFE });
  }
  texts.clear();
}

function textFor(node) {
  const declared = node.constructor?.nodeData?.input?.required ?? {};
  for (const name of INPUTS) {
    const sources = declared[name]?.[1]?.unclip_sources;
    const value = node.widgets?.find((widget) => widget.name === name)?.value;
    if (!sources || typeof value !== "string") continue;
    const text = sources[value.split("/")[0]];
    if (text) return `${value}: ${text}`;
  }
}

app.registerExtension({
  name: "unclip.missing",
  loadedGraphNode(node) {
    const text = textFor(node);
    if (!text) return;
    if (texts.size === 0) setTimeout(show, 0); // once for each model, however many nodes name it
    texts.add(text);
  },
});
