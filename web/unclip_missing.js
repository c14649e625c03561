// A workflow that names a public model which is not on this computer says so when it is opened, with where to get
// it: the loaders tell (nodes/loaders.py, the option unclip_sources of their input).
import { app } from "../../scripts/app.js";

const INPUTS = ["bundle", "with_bundle", "file"];
const LIFE = 30000; // ms

const missing = new Map(); // by what is said of the model: the names of its files in the workflow
const ends = new Map(); // by message: when it goes from the page

function show() {
  const now = Date.now();
  for (const [text, names] of missing) {
    const detail = `${[...names].join(", ")}: ${text}`;
    if (ends.get(detail) > now) continue; // the workflow before named it too, and it is still in sight
    ends.set(detail, now + LIFE);
    app.extensionManager?.toast?.add?.({ severity: "warn", summary: "unCLIP", detail, life: LIFE });
  }
  missing.clear();
}

const OFF = [2, 4]; // the modes of nodes that are muted or bypassed
let isQuiet = false; // while the page opens again what was open, as by undo

// What is said of each file that a node names. A download that brings all of them stands for those of its parts.
function missingOf(node) {
  const { required, optional } = node.constructor?.nodeData?.input ?? {};
  const declared = { ...required, ...optional };
  const found = [];
  for (const name of INPUTS) {
    const sources = declared[name]?.[1]?.unclip_sources;
    const value = node.widgets?.find((widget) => widget.name === name)?.value;
    if (!sources || typeof value !== "string") continue;
    const text = sources[value.split("/")[0]];
    if (text) found.push([text, value]);
  }
  const brings = (text, value) => text.includes(value.split("/").pop());
  const whole = found.find(([text]) => found.every(([, value]) => brings(text, value)));
  return whole ? found.map(([, value]) => [whole[0], value]) : found;
}

app.registerExtension({
  name: "unclip.missing",
  init() {
    const load = app.loadGraphData?.bind(app);
    if (!load) return;
    app.loadGraphData = async (graph, clean, view, workflow, options, ...others) => {
      isQuiet = options?.silentAssetErrors === true;
      try {
        return await load(graph, clean, view, workflow, options, ...others);
      } finally {
        isQuiet = false;
      }
    };
  },
  loadedGraphNode(node) {
    if (isQuiet || OFF.includes(node.mode)) return;
    for (const [text, name] of missingOf(node)) {
      if (missing.size === 0) setTimeout(show, 0); // once for each model, however many nodes name it
      if (!missing.has(text)) missing.set(text, new Set());
      missing.get(text).add(name);
    }
  },
});
