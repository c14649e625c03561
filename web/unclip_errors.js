// The sentence of an error of unCLIP, in sight: newer pages say only that a node threw an error or rejected a value,
// and keep what it said behind a button.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { tell } from "./unclip_toasts.js";

const OURS = /^UnCLIP/;
const REFUSED = "custom_validation_failed"; // by the node itself; of all else the page says what is wrong
const NAMED = /^\w+: /; // a sentence that begins with the name of its input
const NEXT = /\n(?=\w+: )/; // what parts it from that of another input
const WHILE = 500; // ms, in which the page opens its own dialog

// Older pages open a dialog that has the whole sentence in it.
function tellWhereThePageDoesNot(sentence) {
  setTimeout(() => {
    const dialogs = [...document.querySelectorAll("[role=dialog]")];
    if (!dialogs.some((dialog) => dialog.textContent.includes(sentence))) tell("error", sentence);
  }, WHILE);
}

// What a node said, from ComfyUI's "INPUT - TEXT". It tells one text at each input that the node checks.
function sentencesOf({ details, extra_info: about }) {
  const name = about?.input_name ?? "";
  const start = `${name} - `;
  if (!details?.startsWith(start)) return [];
  const said = details.slice(start.length).split(NEXT);
  return said.map((sentence) => (NAMED.test(sentence) ? sentence : `${name}: ${sentence}`));
}

function tellRefusals(nodeErrors) {
  const ours = Object.values(nodeErrors ?? {}).filter((node) => OURS.test(node.class_type ?? ""));
  const refused = ours.flatMap((node) => node.errors ?? []).filter((error) => error.type === REFUSED);
  for (const sentence of new Set(refused.flatMap(sentencesOf))) tellWhereThePageDoesNot(sentence);
}

app.registerExtension({
  name: "unclip.errors",
  init() {
    const queue = api.queuePrompt?.bind(api);
    if (!queue) return;
    // The page gets the promise itself: what awaits another's error stands in its stack, and is blamed for it.
    api.queuePrompt = (...given) => {
      const answer = queue(...given);
      answer.then(
        (queued) => tellRefusals(queued?.node_errors), // of outputs that do not run while others do
        (error) => tellRefusals(error?.response?.node_errors),
      );
      return answer;
    };
  },
  setup() {
    api.addEventListener("execution_error", ({ detail }) => {
      if (!OURS.test(detail?.node_type ?? "")) return;
      const message = (detail.exception_message ?? "").trim();
      if (message) tellWhereThePageDoesNot(message);
    });
  },
});
