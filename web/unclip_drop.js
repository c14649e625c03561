// Files of Save unCLIP Embedding can be dropped: onto Load unCLIP Embedding, which then loads them, or onto the
// canvas, which adds that node. Nothing else depends on this file.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { notice } from "./unclip_language.js";
import { tell } from "./unclip_toasts.js";

const NODE = "UnCLIPLoadEmbedding";
const WIDGET = "file";
const FOLDER = "unclip_embeddings"; // in the input folder
const METADATA_KEY = "unclip_embedding";
const LONGEST_HEADER = 1 << 20; // bytes; those of our files are far shorter

// Notices; web/notices_zh.json has them in Chinese.
const NOT_TAKEN = "{file}: ComfyUI did not take it ({status})";
const NO_EMBEDDING = "{file} holds no unCLIP embedding; drop a file of Save unCLIP Embedding.";

const isSafetensors = (file) => /\.safetensors$/i.test(file.name);

// Whether a safetensors file holds an unCLIP embedding: its header (a length, then JSON) says so.
async function isEmbedding(file) {
  if (!isSafetensors(file)) return false;
  try {
    const length = Number(new DataView(await file.slice(0, 8).arrayBuffer()).getBigUint64(0, true));
    if (length > LONGEST_HEADER) return false;
    const header = JSON.parse(await file.slice(8, 8 + length).text());
    return METADATA_KEY in (header.__metadata__ ?? {});
  } catch {
    return false;
  }
}

// Put a file into the input folder; gives its name as the node lists it.
async function upload(file) {
  const body = new FormData();
  body.append("image", file); // ComfyUI's name for any file
  body.append("subfolder", FOLDER);
  const answer = await api.fetchApi("/upload/image", { method: "POST", body });
  if (answer.status !== 200) throw new Error(await notice(NOT_TAKEN, { file: file.name, status: answer.status }));
  const { name, subfolder } = await answer.json();
  return `${subfolder}/${name} [input]`;
}

function choose(node, name) {
  const widget = node.widgets?.find((each) => each.name === WIDGET);
  if (!widget) return;
  const values = widget.options?.values;
  if (Array.isArray(values) && !values.includes(name)) values.push(name);
  widget.value = name;
  widget.callback?.(name);
  node.setDirtyCanvas?.(true, true);
}

// Where files were dropped, in the coordinates of the graph, each a little below the one before.
let dropped = null;
const BELOW = 40;

function addNode(isDropped) {
  const node = LiteGraph.createNode(NODE);
  if (isDropped && dropped) {
    node.pos = [...dropped];
    dropped = [dropped[0], dropped[1] + BELOW];
  }
  (app.canvas?.graph ?? app.graph).add(node); // the graph in sight, which may be that of a subgraph
  return node;
}

// Newer pages say where a file comes from, and want to know of its node: they lay several out side by side.
async function load(file, givenNode, source = "file_drop", options = {}) {
  try {
    const name = await upload(file);
    const node = givenNode ?? addNode(source === "file_drop");
    choose(node, name);
    if (!givenNode) options?.onNodeCreated?.(node);
  } catch (error) {
    tell("error", error.message);
  }
}

app.registerExtension({
  name: "unclip.drop",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    node.onDragOver = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
    node.onDragDrop = async (event) => {
      const file = [...(event.dataTransfer?.files ?? [])].find(isSafetensors);
      if (!file) return false; // ComfyUI goes on with it, as if it were dropped beside the node
      if (await isEmbedding(file)) await load(file, node);
      else tell("error", await notice(NO_EMBEDDING, { file: file.name }));
      return true;
    };
  },
  setup() {
    // What is dropped onto the canvas, ComfyUI hands to this method to find a workflow in it.
    const handleFile = app.handleFile;
    if (typeof handleFile !== "function") return;
    app.handleFile = async function (file, ...others) {
      if (file && (await isEmbedding(file))) return load(file, null, ...others);
      return handleFile.call(this, file, ...others);
    };
    window.addEventListener("drop", (event) => (dropped = app.canvas?.convertEventToCanvasOffset?.(event)), true);
  },
});
