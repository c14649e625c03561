// Our templates in the language of the page: their notes, the titles of groups and of nodes that they rename. What
// nodes are called by themselves, the page translates. A text that is not exactly that of a template stays.
import { app } from "../../scripts/app.js";
import { tableOf, textIn } from "./unclip_language.js";

const NUMBER = /^\d+ · /; // before the title of a group

const notesOf = (graph) =>
  (graph?.nodes ?? []).filter((node) => node.type === "MarkdownNote" && node.widgets_values?.[0]);

// The same workflow with other texts; itself where it is none of our templates.
function translated(graph, { titles, notes }) {
  if (!notesOf(graph).some((note) => Object.hasOwn(notes, note.widgets_values[0]))) return graph;
  const copy = structuredClone(graph);
  for (const note of notesOf(copy)) note.widgets_values[0] = textIn(notes, note.widgets_values[0]);
  for (const node of copy.nodes) if (node.title) node.title = textIn(titles, node.title);
  for (const group of copy.groups ?? []) {
    if (!group.title) continue;
    const [number] = NUMBER.exec(group.title) ?? [""];
    group.title = number + textIn(titles, group.title.slice(number.length));
  }
  return copy;
}

app.registerExtension({
  name: "unclip.texts",
  init() {
    const load = app.loadGraphData?.bind(app);
    if (!load) return;
    app.loadGraphData = (graph, clean, view, workflow, options, ...others) => {
      // A template has a name and no file yet; newer pages say what it is as well.
      const isTemplate = typeof workflow === "string" && (options?.openSource ?? "template") === "template";
      const loaded = (shown) => load(shown, clean, view, workflow, options, ...others);
      const table = isTemplate ? tableOf("templates") : null;
      // Without await: what awaits another's error stands in its stack, and is blamed for it.
      return table ? table.then((texts) => loaded(texts ? translated(graph, texts) : graph)) : loaded(graph);
    };
  },
});
