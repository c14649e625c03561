// What Load unCLIP Embedding shows of its files: their own names first. By the folder in front, which most of them
// share, all would look alike where the node has no room for the rest. The value in the workflow stays the path.
import { app } from "../../scripts/app.js";

const NODE = "UnCLIPLoadEmbedding";
const WIDGET = "file";
const WIDTH = 340; // of a new node: room for a name, and for where it lies
const PARTS = /^(?:(.*)\/)?([^/]+?)(?:\.safetensors)?( \[(?:input|output)\])?$/; // folder, name, where

function labelOf(path) {
  const [, folder, name, where = ""] = PARTS.exec(path ?? "") ?? [];
  if (!name) return path ?? "";
  return name + where + (folder ? ` · ${folder}` : "");
}

app.registerExtension({
  name: "unclip.file_labels",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const widget = node.widgets?.find((each) => each.name === WIDGET);
    if (widget?.options) widget.options.getOptionLabel = labelOf;
    if (node.size?.[0] < WIDTH) node.setSize?.([WIDTH, node.size[1]]); // a saved one gets its own size after this
  },
});
