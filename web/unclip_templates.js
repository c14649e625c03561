// What the template browser shows of our workflows, told from another pack's by their names: their order, which is
// else that of the files on the server's disk, titles and descriptions in the language of the page, and models and
// tasks. By these "unclip" finds all of them; the page itself knows but the names of the files.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { WORDS } from "./unclip_template_words.js";

const ORDER = Object.keys(WORDS);
const STORE = "workflowTemplates"; // of the page's own, where it keeps the templates of all packs
// The page sorts what it finds by how often it is used. A trace of use puts the first of ours before the others, and
// behind all templates that were ever used.
const TRACE = 0.001;

let modules = []; // that are ours
let describing = false;

function place(name) {
  const found = ORDER.indexOf(name);
  return found < 0 ? ORDER.length : found;
}

// A pack that holds all of ours is ours, whatever its folder is called.
const isOurs = (names) => Array.isArray(names) && ORDER.every((name) => names.includes(name));

function describe(templates) {
  const language = app.extensionManager?.setting?.get?.("Comfy.Locale");
  for (const template of templates ?? []) {
    const words = modules.includes(template.sourceModule) ? WORDS[template.name] : undefined;
    if (!words) continue;
    const [title, description] = words[language] ?? words.en;
    const { models, tags } = words;
    Object.assign(template, { title, description, models: [...models], tags: [...tags] });
    template.searchableText = [title, description, ...tags, ...models].join(" ");
    if (template.name === ORDER[0]) template.usage ??= TRACE;
  }
}

// The page makes its list of the names that it gets here, and makes it anew when its language changes: the words are
// put in each time, as soon as the list is there and before it is shown.
function describeWhenListed() {
  const store = app.extensionManager?._p?._s?.get(STORE);
  if (!store?.$subscribe) return; // older pages
  const put = () => describe(store.enhancedTemplates);
  store.$subscribe(put, { flush: "sync", detached: true });
  describing = true;
}

app.registerExtension({
  name: "unclip.templates",
  init() {
    const list = api.getWorkflowTemplates?.bind(api);
    if (!list) return;
    api.getWorkflowTemplates = async (...given) => {
      const templates = await list(...given);
      modules = Object.keys(templates ?? {}).filter((module) => isOurs(templates[module]));
      for (const module of modules) {
        // New ones go to the end.
        templates[module].sort((one, other) => place(one) - place(other) || one.localeCompare(other));
      }
      if (modules.length && !describing) describeWhenListed();
      return templates;
    };
  },
});
