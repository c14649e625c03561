// A workflow that names a public model which is not on this computer says so when it is opened, with where to get
// it: the loaders tell (nodes/loaders.py, the option unclip_sources of their input).
import { app } from "../../scripts/app.js";
import { filled, tableOf, textIn } from "./unclip_language.js";
import { tell } from "./unclip_toasts.js";

const MISSING = "{names}: {how}"; // web/notices_zh.json has it in Chinese

const missing = new Map(); // by the English text on a model: its sources, and names of its files in the workflow
let notices = []; // that were told: names of their files, and what takes them away

// How to get a model, in the language of a table; in English without one.
function howToGet(table, { text, facts }) {
  if (!table || !facts) return text;
  const { models, how } = table;
  const parts = facts.parts.map(([what, place]) => (place ? filled(how.into, { what, place }) : what));
  const values = { command: facts.command, parts: parts.join(how.between) };
  for (const each of ["title", "size", "licence"]) values[each] = textIn(models, facts[each]);
  return filled(how.about + (facts.command ? how.by_command : how.by_hand) + how.refresh, values);
}

async function show() {
  const found = [...missing.values()];
  missing.clear();
  const table = await tableOf("notices");
  for (const { sources, names } of found) {
    const values = { names: [...names].join(", "), how: howToGet(table, sources) };
    const takeAway = tell("warn", filled(textIn(table?.notices, MISSING), values));
    notices.push({ names: [...names], takeAway });
  }
}

const inputsOf = (definition) => Object.entries({ ...definition?.input?.required, ...definition?.input?.optional });
const sourcesIn = (declared, value) => declared?.[1]?.unclip_sources?.[value.split("/")[0]];
const OFF = [2, 4]; // the modes of nodes that are muted or bypassed
let isQuiet = false; // while the page opens again what was open, as by undo

// What is said of each file that a node names. A download that brings all of them stands for those of its parts.
function missingOf(node) {
  const found = [];
  for (const [name, declared] of inputsOf(node.constructor?.nodeData)) {
    const value = node.widgets?.find((widget) => widget.name === name)?.value;
    const sources = typeof value === "string" && sourcesIn(declared, value);
    if (sources) found.push([sources, value]);
  }
  const brings = (sources, value) => sources.text.includes(value.split("/").pop());
  const whole = found.find(([sources]) => found.every(([, value]) => brings(sources, value)));
  return whole ? found.map(([, value]) => [whole[0], value]) : found;
}

app.registerExtension({
  name: "unclip.missing",
  init() {
    const load = app.loadGraphData?.bind(app);
    if (!load) return;
    // Without await: what awaits another's error stands in its stack, and is blamed for it.
    app.loadGraphData = (graph, clean, ...others) => {
      isQuiet = clean === false;
      if (!isQuiet) notices = []; // all notices go
      return load(graph, clean, ...others).finally(() => (isQuiet = false));
    };
  },
  loadedGraphNode(node) {
    if (isQuiet || OFF.includes(node.mode)) return;
    for (const [sources, name] of missingOf(node)) {
      if (missing.size === 0) setTimeout(show, 0); // once for each model, however many nodes name it
      const key = sources.text;
      if (!missing.has(key)) missing.set(key, { sources, names: new Set() });
      missing.get(key).names.add(name);
    }
  },
  // Key R, after which a model may be there.
  refreshComboInNodes(definitions) {
    const all = Object.values(definitions ?? {}).flatMap(inputsOf);
    const isMissing = (name) => all.some(([, declared]) => sourcesIn(declared, name));
    for (const { names, takeAway } of notices) if (!names.some(isMissing)) takeAway();
    notices = notices.filter(({ names }) => names.some(isMissing));
  },
});
