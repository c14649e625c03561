// Our workflows in the order in which one gets to know them: the template browser shows them as the server lists
// them, and that is the order of the files on its disk. They are told from another pack's by their names.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const ORDER = [
  "text_to_image",
  "variations",
  "interpolation",
  "compare_priors",
  "text_diff",
  "inpaint",
  "importance_of_prior",
  "fidelity_diversity",
  "pca_probe",
  "typographic_attack",
  "karlo_text_to_image",
  "karlo_image_variation",
  "karlo_prior_to_sd21_unclip",
  "kandinsky22_prior_to_sdxl",
  "glide_vs_unclip",
  "glide_inpaint",
];

function place(name) {
  const found = ORDER.indexOf(name);
  return found < 0 ? ORDER.length : found;
}

app.registerExtension({
  name: "unclip.templates",
  init() {
    const list = api.getWorkflowTemplates?.bind(api);
    if (!list) return;
    api.getWorkflowTemplates = async (...given) => {
      const templates = await list(...given);
      for (const names of Object.values(templates ?? {})) {
        // A pack that holds all of ours is ours, whatever its folder is called; new ones go to the end.
        if (Array.isArray(names) && ORDER.every((name) => names.includes(name))) {
          names.sort((one, other) => place(one) - place(other) || one.localeCompare(other));
        }
      }
      return templates;
    };
  },
});
