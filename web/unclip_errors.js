// The sentence of an error of unCLIP, in sight: newer pages say only that a node threw an error and keep what it
// said behind a button.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const OURS = /^UnCLIP/;
const LIFE = 20000; // ms

app.registerExtension({
  name: "unclip.errors",
  setup() {
    api.addEventListener("execution_error", ({ detail }) => {
      if (!OURS.test(detail?.node_type ?? "")) return;
      const message = (detail.exception_message ?? "").trim();
      if (!message) return;
      app.extensionManager?.toast?.add?.({ severity: "error", summary: "unCLIP", detail: message, life: LIFE });
    });
  },
});
