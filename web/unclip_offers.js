// What the page offers when a wire of unCLIP is dropped on the canvas: the nodes that come next, the usual one
// first. The page itself lists only nodes whose required inputs fit, and leaves out Decode for an embedding.
import { app } from "../../scripts/app.js";

// From an output: nodes that take it.
const NEXT = {
  UNCLIP_CLIP: [
    "UnCLIPTextEncode",
    "UnCLIPImageEncode",
    "UnCLIPScore",
    "UnCLIPZeroShot",
    "UnCLIPEncodeFolder",
    "UnCLIPToClipVision",
    "UnCLIPFromClipVision",
    "UnCLIPNullEmbedding",
    "UnCLIPSubjects",
    "UnCLIPToIPAdapter",
  ],
  UNCLIP_TEXT: [
    "UnCLIPDiffusionPrior",
    "UnCLIPAutoregressivePrior",
    "UnCLIPDecode",
    "UnCLIPTextDiff",
    "UnCLIPTextAsImageEmbedding",
    "UnCLIPInpaint",
    "UnCLIPInpaintWhole",
    "UnCLIPScore",
    "UnCLIPGuidanceSweep",
    "UnCLIPUpsample",
    "UnCLIPRegion",
    "UnCLIPInvert",
    "UnCLIPDecoderAsModel",
    "UnCLIPOperator",
  ],
  UNCLIP_EMBEDDING: [
    "UnCLIPDecode",
    "UnCLIPInterpolate",
    "UnCLIPTextDiff",
    "UnCLIPBlend",
    "UnCLIPInvert",
    "UnCLIPInpaint",
    "UnCLIPInpaintWhole",
    "UnCLIPRegion",
    "UnCLIPGuidanceSweep",
    "UnCLIPSaveEmbedding",
    "UnCLIPToClipVision",
    "UnCLIPZeroShot",
    "UnCLIPPCAFit",
    "UnCLIPPCAReconstruct",
    "UnCLIPBatchEmbeddings",
    "UnCLIPDecoderAsModel",
    "UnCLIPAugment",
    "UnCLIPDiffusionPrior",
    "UnCLIPOperator",
    "UnCLIPSubjects",
    "UnCLIPToIPAdapter",
  ],
  UNCLIP_PRIOR: [
    "UnCLIPDiffusionPrior",
    "UnCLIPAutoregressivePrior",
    "UnCLIPPCAFromPrior",
    "UnCLIPOperator",
    "UnCLIPLoadLoRA",
    "UnCLIPCompile",
    "UnCLIPToClipVision",
    "UnCLIPFromClipVision",
    "UnCLIPToIPAdapter",
  ],
  UNCLIP_DECODER: [
    "UnCLIPDecode",
    "UnCLIPInpaint",
    "UnCLIPInpaintWhole",
    "UnCLIPInvert",
    "UnCLIPNoise",
    "UnCLIPNullEmbedding",
    "UnCLIPGuidanceSweep",
    "UnCLIPDecoderAsModel",
    "UnCLIPLoadLoRA",
    "UnCLIPCompile",
    "UnCLIPToClipVision",
    "UnCLIPFromClipVision",
    "UnCLIPAutoencoderAsVAE",
    "UnCLIPToIPAdapter",
  ],
  UNCLIP_UPSAMPLER: ["UnCLIPUpsample", "UnCLIPInpaintWhole", "UnCLIPCompile"],
  UNCLIP_NOISE: ["UnCLIPDecode", "UnCLIPNoiseInterpolate", "UnCLIPGuidanceSweep"],
  UNCLIP_PCA: ["UnCLIPPCAReconstruct"],
  UNCLIP_REGIONS: ["UnCLIPDecode", "UnCLIPRegion"],
};

// From an input: nodes that give it.
const BEFORE = {
  UNCLIP_CLIP: ["UnCLIPLoadBundle", "UnCLIPLoadCLIP"],
  // of inputs that take any of them: the page looks their types up as they are written
  "UNCLIP_CLIP,UNCLIP_PRIOR,UNCLIP_DECODER": [
    "UnCLIPLoadBundle",
    "UnCLIPLoadCLIP",
    "UnCLIPLoadPrior",
    "UnCLIPLoadDecoder",
  ],
  UNCLIP_TEXT: ["UnCLIPTextEncode", "UnCLIPSubjects"],
  UNCLIP_EMBEDDING: [
    "UnCLIPDiffusionPrior",
    "UnCLIPImageEncode",
    "UnCLIPAutoregressivePrior",
    "UnCLIPInterpolate",
    "UnCLIPTextDiff",
    "UnCLIPBlend",
    "UnCLIPLoadEmbedding",
    "UnCLIPTextAsImageEmbedding",
    "UnCLIPNullEmbedding",
    "UnCLIPEncodeFolder",
    "UnCLIPBatchEmbeddings",
    "UnCLIPPCAReconstruct",
    "UnCLIPFromClipVision",
    "UnCLIPAugment",
    "UnCLIPOperator",
  ],
  UNCLIP_PRIOR: ["UnCLIPLoadBundle", "UnCLIPLoadPrior", "UnCLIPLoadLoRA", "UnCLIPCompile"],
  UNCLIP_DECODER: ["UnCLIPLoadBundle", "UnCLIPLoadDecoder", "UnCLIPLoadLoRA", "UnCLIPCompile"],
  UNCLIP_UPSAMPLER: ["UnCLIPLoadBundle", "UnCLIPLoadUpsampler", "UnCLIPCompile"],
  UNCLIP_NOISE: ["UnCLIPNoise", "UnCLIPInvert", "UnCLIPNoiseInterpolate"],
  UNCLIP_PCA: ["UnCLIPPCAFromPrior", "UnCLIPPCAFit"],
  UNCLIP_REGIONS: ["UnCLIPRegion"],
};

const merged = (ours, type, others) =>
  Object.hasOwn(ours, type) ? [...ours[type], ...(others ?? []).filter((name) => !ours[type].includes(name))] : others;

// The page empties its lists and fills them again whenever a node is registered (key R) or its setting of their
// length changes: ours are put in each time.
function keepOffers(key, ours) {
  if (!LiteGraph[key]) return;
  const withOurs = (lists) => {
    const all = { ...lists };
    for (const type of Object.keys(ours)) all[type] = merged(ours, type, all[type]);
    return new Proxy(all, {
      set(target, type, names) {
        target[type] = merged(ours, type, names);
        return true;
      },
    });
  };
  let lists = withOurs(LiteGraph[key]);
  Object.defineProperty(LiteGraph, key, {
    get: () => lists,
    set: (value) => {
      lists = withOurs(value);
    },
    enumerable: true,
    configurable: true,
  });
}

app.registerExtension({
  name: "unclip.offers",
  setup() {
    keepOffers("slot_types_default_out", NEXT);
    keepOffers("slot_types_default_in", BEFORE);
  },
});
