// Notices at the corner of the page. Each speaks of one workflow or one run of it, so it stays until a person closes
// it, runs again or opens another workflow: none goes before it is read, and none stays when it is true no more.
import { app } from "../../scripts/app.js";

const TITLE = "unCLIP";
const METHODS = { error: "error", warn: "warning" }; // of newer pages, which name a notice by a number

const shown = new Map(); // by text: what takes the notice away

function put(severity, detail) {
  const toast = app.extensionManager?.toast;
  const method = METHODS[severity];
  if (toast?.dismiss && toast[method]) {
    const id = toast[method](TITLE, { description: detail });
    return () => toast.dismiss(id);
  }
  const message = { severity, summary: TITLE, detail };
  toast?.add?.(message);
  return () => toast?.remove?.(message);
}

// Show a notice, once however often it is told; gives what takes it away.
export function tell(severity, detail) {
  const takeAway = () => {
    shown.get(detail)?.();
    shown.delete(detail);
  };
  takeAway();
  shown.set(detail, put(severity, detail));
  return takeAway;
}

function takeAllAway() {
  for (const takeAway of shown.values()) takeAway();
  shown.clear();
}

app.registerExtension({
  name: "unclip.toasts",
  init() {
    const run = app.queuePrompt?.bind(app);
    if (run) {
      // Not when a run starts: that one may have waited in the queue behind the one that failed just now.
      app.queuePrompt = (...given) => {
        takeAllAway();
        return run(...given);
      };
    }
    const load = app.loadGraphData?.bind(app);
    if (load) {
      app.loadGraphData = (graph, clean, ...others) => {
        if (clean !== false) takeAllAway(); // false: what is open is loaded again, as by undo
        return load(graph, clean, ...others);
      };
    }
  },
});
