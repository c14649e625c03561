// Colours for the wires and sockets of unCLIP. Nothing else depends on this file.
import { app } from "../../scripts/app.js";

const COLOURS = {
  UNCLIP_CLIP: "#ffd500",
  UNCLIP_TEXT: "#ffa931",
  UNCLIP_EMBEDDING: "#ad7452",
  UNCLIP_PRIOR: "#e86af0",
  UNCLIP_DECODER: "#b39ddb",
  UNCLIP_UPSAMPLER: "#7e9cff",
  UNCLIP_NOISE: "#b0b0b0",
  UNCLIP_PCA: "#66ffd1",
  UNCLIP_REGIONS: "#f27d8f",
};

// ComfyUI empties the colours of all types that a palette does not know, each time it loads one: here the empty
// value is not taken. A palette that has a colour of its own for one of our types keeps it.
function keepColours(colours) {
  if (!colours) return;
  for (const [type, ours] of Object.entries(COLOURS)) {
    let colour = colours[type] || ours;
    Object.defineProperty(colours, type, {
      get: () => colour,
      set: (value) => {
        colour = value || ours;
      },
      enumerable: true,
      configurable: true,
    });
  }
}

app.registerExtension({
  name: "unclip.colours",
  setup() {
    const canvas = app.canvas;
    keepColours(canvas?.default_connection_color_byType); // sockets
    keepColours(canvas?.constructor?.link_type_colors); // wires
    // Frontends that draw nodes in HTML take the colours of sockets from these variables.
    const variables = Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`);
    const style = document.createElement("style");
    style.textContent = `:root { ${variables.join(" ")} }`;
    document.head.append(style);
    canvas?.setDirty?.(true, true);
  },
});
