// Our workflows in the order in which one gets to know them, and what the template browser says of each: models and
// tasks (in its own words, by which it filters), then title and description in the languages that we speak.
export const WORDS = {
  text_to_image: {
    models: ["unCLIP"],
    tags: ["Text to Image"],
    en: ["unCLIP text to image", "A caption becomes a picture, through all stages of unCLIP (DALL·E 2). Start here."],
    zh: ["unCLIP 文生图", "一句提示词走完 unCLIP（DALL·E 2）的全部阶段，变成一张图。从这里开始。"],
  },
  variations: {
    models: ["unCLIP"],
    tags: ["Image Edit", "Style Reference"],
    en: ["unCLIP variations of a picture", "Pictures that share what CLIP sees in yours, near to it or far from it."],
    zh: ["unCLIP 图像变体", "与原图共享 CLIP 所见内容的图，离原图或近或远。"],
  },
  interpolation: {
    models: ["unCLIP"],
    tags: ["Frame Interpolation", "Text to Video"],
    en: ["unCLIP interpolation", "From one picture to another, along the sphere of embeddings, as a video."],
    zh: ["unCLIP 插值", "沿嵌入球面从一张图走到另一张，存成视频。"],
  },
  compare_priors: {
    models: ["unCLIP"],
    tags: ["Text to Image"],
    en: ["unCLIP priors side by side", "One caption through both priors and none, with the same noise and CLIP scores."],
    zh: ["unCLIP 两种先验对比", "同一句提示词经过两种先验和不经先验，噪波相同，附 CLIP 分数。"],
  },
  text_diff: {
    models: ["unCLIP"],
    tags: ["Image Edit"],
    en: ["unCLIP text diff", "A picture changed by the difference of two captions."],
    zh: ["unCLIP 文字差", "用两句提示词之差改变一张图。"],
  },
  inpaint: {
    models: ["unCLIP"],
    tags: ["Inpainting", "Image Edit"],
    en: ["unCLIP inpainting", "A part of a picture painted anew, the rest kept to the bit."],
    zh: ["unCLIP 局部重绘", "重画图的一部分，其余丝毫不变。"],
  },
  importance_of_prior: {
    models: ["unCLIP"],
    tags: ["Text to Image"],
    en: ["unCLIP: what the prior is good for", "The decoder from the caption alone, from its text embedding, and from the prior."],
    zh: ["unCLIP：先验有什么用", "解码器只用提示词、用文本嵌入、用先验，三者对比。"],
  },
  fidelity_diversity: {
    models: ["unCLIP"],
    tags: ["Text to Image"],
    en: ["unCLIP fidelity and diversity", "Guidance scales against seeds, with CLIP score and diversity of each scale."],
    zh: ["unCLIP 相符与多样", "引导强度对种子，每一档附 CLIP 分数和多样性。"],
  },
  pca_probe: {
    models: ["unCLIP"],
    tags: ["Image Edit"],
    en: ["unCLIP: what CLIP sees first", "A picture rebuilt from ever more principal components of its embedding."],
    zh: ["unCLIP：CLIP 最先看到什么", "用嵌入的主成分，由少到多，重建一张图。"],
  },
  typographic_attack: {
    models: ["unCLIP"],
    tags: ["Image Edit"],
    en: ["unCLIP typographic attack", "A note on the picture, and what CLIP then sees."],
    zh: ["unCLIP 文字攻击", "在图上贴一张纸条，看 CLIP 还认得什么。"],
  },
  karlo_text_to_image: {
    models: ["unCLIP", "Karlo"],
    tags: ["Text to Image"],
    en: ["unCLIP Karlo: text to image", "Karlo's prior, decoder and upsampler, from a caption to 256 pixels."],
    zh: ["unCLIP Karlo：文生图", "Karlo 的先验、解码器和放大器，从提示词到 256 像素。"],
  },
  karlo_image_variation: {
    models: ["unCLIP", "Karlo"],
    tags: ["Image Edit", "Style Reference"],
    en: ["unCLIP Karlo: variations of a picture", "The content of your picture stays, composition and details are painted anew."],
    zh: ["unCLIP Karlo：图像变体", "内容不变，构图和细节重新画。"],
  },
  karlo_prior_to_sd21_unclip: {
    models: ["unCLIP", "Karlo", "SD2.1"],
    tags: ["Text to Image"],
    en: ["unCLIP Karlo's prior with SD 2.1", "Karlo's prior imagines the picture, ComfyUI's own Stable Diffusion 2.1 unCLIP paints it."],
    zh: ["unCLIP Karlo 先验接 SD 2.1", "Karlo 的先验来想，ComfyUI 自带的 Stable Diffusion 2.1 unCLIP 来画。"],
  },
  kandinsky22_prior_to_sdxl: {
    models: ["unCLIP", "Kandinsky 2.2", "SDXL"],
    tags: ["Text to Image"],
    en: ["unCLIP Kandinsky 2.2's prior with SDXL", "Kandinsky 2.2's prior imagines the picture, SDXL paints it."],
    zh: ["unCLIP Kandinsky 2.2 先验接 SDXL", "Kandinsky 2.2 的先验来想，SDXL 来画。"],
  },
  glide_vs_unclip: {
    models: ["unCLIP", "GLIDE", "Karlo"],
    tags: ["Text to Image"],
    en: ["unCLIP and GLIDE side by side", "The same caption by GLIDE, which paints it directly, and by unCLIP."],
    zh: ["unCLIP 与 GLIDE 并排", "同一句提示词，由直接作画的 GLIDE 和 unCLIP 各画一遍。"],
  },
  glide_inpaint: {
    models: ["unCLIP", "GLIDE"],
    tags: ["Inpainting", "Image Edit"],
    en: ["unCLIP pack: GLIDE inpainting", "A part of a picture painted anew by GLIDE's inpainting networks."],
    zh: ["unCLIP：GLIDE 局部重绘", "用 GLIDE 的局部重绘网络重画图的一部分。"],
  },
};
