"""GLIDE's files: text encoder, U-Nets and whole sampling against numbers that upstream gave.

The numbers were made by openai/glide-text2im (commit 69b5307) with the weights of ``glide_state``: its four
models with one residual block per level, `attention_resolutions=(2, 4)`, on the inputs of :func:`run`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from unclip.core.embeddings.space import Embedding, EmbeddingSpace, TextFeatures
from unclip.core.formats.detect import identify
from unclip.core.formats.files.source import open_weights
from unclip.core.formats.layouts.glide import UPSAMPLER_TIMESTEPS
from unclip.core.formats.load import load_any_stage
from unclip.core.formats.native.checkpoints import load_stage, save_stage
from unclip.core.networks.glide_text import GlideText, GlideTextConfig
from unclip.core.networks.unet import UNet
from unclip.core.networks.unet_config import UNetConfig
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.encode import encode_images, encode_text
from unclip.core.pipelines.inpaint import InpaintOptions, inpaint
from unclip.core.pipelines.upsample import UpsampleOptions, upsample
from unclip.core.pipelines.zero_shot import zero_shot
from unclip.core.stages import ClipStage, DecoderStage, UpsamplerStage
from unclip.nodes.decode import UnCLIPDecode
from unclip.nodes.encode import UnCLIPTextEncode
from unclip.nodes.upsample import UnCLIPUpsample

from ...helpers.glide import KINDS, PADDING, token_ids, write_glide
from ...helpers.unet import GLIDE_BASE, GLIDE_INPAINT, GLIDE_UPSAMPLER, GLIDE_UPSAMPLER_INPAINT, random_tensor

WITHIN, OUTSIDE = 1e-4, 1e-2
T = torch.tensor([0, 400, 999])

# `get_text_emb(...)["xf_out"]` of the base model at position 5, its first four values.
TOKENS = [
    [-0.957690, 0.869341, -1.110271, 0.946983],
    [-1.534871, 1.353933, -0.760952, -1.613158],
    [-0.683814, 0.301582, -0.814739, 0.855024],
]
# Each model's output at row 7, column 9, channels 0 and 3.
OUTPUTS = {
    "base": [[0.113006, 0.367284], [0.602128, 1.294687], [-0.180642, 0.320560]],
    "upsample": [[0.154536, -0.580488], [-0.295491, -0.461434], [0.329159, -0.243198]],
    "base-inpaint": [[-1.735112, -0.433710], [-1.184430, 0.267023], [-0.560502, 0.554345]],
    "upsample-inpaint": [[-0.690533, 0.693323], [0.234830, 0.623325], [-0.903195, 1.077209]],
}
# `ddim_sample_loop` of six steps with guidance 3, and of "fast27" from noise · 0.997 and a picture in 8 bits:
# means of squares of 8 pixels, the second row of squares. Inpainting with the notebook's `denoised_fn`.
DECODED = [
    [0.569557, 0.596591, 0.516012, 0.412241],
    [0.505080, 0.525972, 0.545541, 0.436570],
    [0.629859, 0.712157, 0.631482, 0.599880],
]
INPAINTED = [
    [0.642913, 0.681636, 0.659631, 0.531032],
    [0.498576, 0.500376, 0.449898, 0.490911],
    [0.570387, 0.708356, 0.469954, 0.508723],
]
UPSAMPLED_INPAINTED = [
    [0.621042, 0.749250, 0.641225, 0.531032],
    [0.473079, 0.333165, 0.338090, 0.490911],
    [0.647237, 0.729040, 0.509756, 0.508723],
]
UPSAMPLED = [
    [0.559714, 0.454975, 0.408371, 0.376424],
    [0.400426, 0.450090, 0.467976, 0.551881],
    [0.263611, 0.286549, 0.292326, 0.237109],
]


class Model:
    """One of the four files, loaded as both of its stages."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind, self.path = kind, write_glide(folder, kind)
        self.clip: ClipStage = load_any_stage(self.path, expect="clip")
        self.stage: DecoderStage | UpsamplerStage = load_any_stage(self.path)
        self.ids = token_ids()
        self.tokens, self.mask, self.pooled = self.clip.network.encode_tokens(self.ids)

    @property
    def text(self) -> TextFeatures:
        """The first of the captions, with the empty one as null."""
        rows = [
            TextFeatures(
                self.tokens[n : n + 1], self.mask[n : n + 1], self.pooled[n : n + 1], self.clip.space
            )
            for n in (0, 2)
        ]
        return replace(rows[0], null=rows[1])

    def run(self, swap: bool = False, tokens: Tensor | None = None) -> Tensor:
        """The U-Net on random inputs [3, …]; ``swap`` exchanges what is known with what is not."""
        network, concat = self.stage.network, []
        if "inpaint" in self.kind:
            known = (random_tensor(4, 3, 1, 32, 32) > 0).float()
            known = 1 - known if swap else known
            concat += [random_tensor(3, 3, 3, 32, 32) * known, known]
        if "upsample" in self.kind:
            low = random_tensor(2, 3, 3, 8, 8)
            concat.append(F.interpolate(low.flip(3) if swap else low, (32, 32), mode="bilinear"))
        condition = network.condition(
            text_tokens=self.tokens if tokens is None else tokens, text_pooled=self.pooled
        )
        return network(
            random_tensor(1, 3, 3, 32, 32), T, condition, concat=torch.cat(concat, 1) if concat else None
        )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    return {kind: Model(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def off(found: Tensor, expected: list) -> float:
    return (found - torch.tensor(expected)).abs().max().item()


# --- parity ---


def test_the_text_encoder_gives_what_upstream_gave(models: dict[str, Model]) -> None:
    base = models["base"]
    assert off(base.tokens[:, 5, :4], TOKENS) <= WITHIN
    assert torch.equal(base.pooled, base.tokens[:, -1])
    assert base.mask.all()  # padding is attended
    other = token_ids()
    other[0, 11] = 77  # a padded position
    assert off(base.clip.network.encode_tokens(other)[0][:, 5, :4], TOKENS) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_u_nets_give_what_upstream_gave(models: dict[str, Model], kind: str) -> None:
    model = models[kind]
    assert off(model.run()[:, (0, 3), 7, 9], OUTPUTS[kind]) <= WITHIN
    assert off(model.run(tokens=model.tokens.flip(0))[:, (0, 3), 7, 9], OUTPUTS[kind]) > OUTSIDE
    if kind != "base":
        assert off(model.run(swap=True)[:, (0, 3), 7, 9], OUTPUTS[kind]) > OUTSIDE


def test_decoding_gives_what_upstream_gave(models: dict[str, Model]) -> None:
    base = models["base"]
    options = DecodeOptions(steps=6, guidance_scale=3.0, sampler="ddim")

    def squares(options: DecodeOptions, text: TextFeatures = base.text) -> Tensor:
        return F.avg_pool2d(decode(base.stage, None, text, seed=5, options=options), 8)[0, :, 1]

    assert off(squares(options), DECODED) <= WITHIN
    assert off(squares(replace(options, guidance_scale=2.0)), DECODED) > OUTSIDE
    assert off(squares(options, replace(base.text, null=base.text)), DECODED) > OUTSIDE


def small_picture() -> Tensor:
    return torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(8))


def test_upsampling_gives_what_upstream_gave(models: dict[str, Model]) -> None:
    model = models["upsample"]

    def squares(stage: UpsamplerStage) -> Tensor:
        return F.avg_pool2d(upsample(stage, small_picture(), model.text, seed=5), 8)[0, :, 1]

    assert off(squares(model.stage), UPSAMPLED) <= 3e-5
    with_pictures = replace(model.text, control=model.text.pooled)
    with pytest.raises(ValueError, match="text: pictures stand for words of this caption"):
        upsample(model.stage, small_picture(), with_pictures, seed=5)


def original() -> tuple[Tensor, Tensor]:
    """A picture [1, 3, 32, 32] and a mask, 1 in a rectangle that is painted anew."""
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 10:25, 5:20] = 1
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(9)), mask


def test_inpainting_gives_what_upstream_gave(models: dict[str, Model]) -> None:
    model, (picture, mask) = models["base-inpaint"], original()
    options = InpaintOptions(steps=6, guidance_scale=3.0, eta=0.0)
    found = inpaint(model.stage, picture, mask, None, model.text, seed=5, options=options)
    assert off(F.avg_pool2d(found, 8)[0, :, 1], INPAINTED) <= 3e-5
    assert torch.equal(found * (1 - mask), picture * (1 - mask))


def test_inpainting_while_upsampling_gives_what_upstream_gave(models: dict[str, Model]) -> None:
    model, (picture, mask) = models["upsample-inpaint"], original()
    found = upsample(model.stage, small_picture(), model.text, seed=5, known_image=picture, mask=mask)
    assert off(F.avg_pool2d(found, 8)[0, :, 1], UPSAMPLED_INPAINTED) <= 3e-5
    torch.testing.assert_close(found * (1 - mask), picture * (1 - mask))
    assert ((found - picture) * mask).abs().max() > 0.1


def test_what_is_known_must_fit(models: dict[str, Model]) -> None:
    model, (picture, mask) = models["upsample-inpaint"], original()

    def run(stage: UpsamplerStage, **known: Tensor) -> Tensor:
        text = model.text if stage is model.stage else models["upsample"].text
        return upsample(stage, small_picture(), text, seed=5, **known)

    with pytest.raises(ValueError, match="found only one; give the original picture and the mask"):
        run(model.stage, known_image=picture)
    with pytest.raises(ValueError, match="this upsampler was not trained to inpaint"):
        run(models["upsample"].stage, known_image=picture, mask=mask)
    with pytest.raises(ValueError, match="mask: found shape"):
        run(model.stage, known_image=picture, mask=mask[..., :8])
    with pytest.raises(ValueError, match="batch sizes do not match: known_image 2, mask 3"):
        run(model.stage, known_image=picture.repeat(2, 1, 1, 1), mask=mask.repeat(3, 1, 1, 1))
    for rows in ((3, 1), (1, 3)):  # of one small picture
        known, masks = (
            each.repeat(count, 1, 1, 1) for each, count in zip((picture, mask), rows, strict=True)
        )
        with pytest.raises(ValueError, match=f"found {rows[0]} and {rows[1]} for 1 small pictures"):
            run(model.stage, known_image=known, mask=masks)


@pytest.mark.parametrize("change", [{"resize": "bicubic"}, {"noise_scale": 1.0}, {"quantise": False}])
def test_the_recipe_of_an_upsampler_matters(models: dict[str, Model], change: dict) -> None:
    model = models["upsample"]
    stage = replace(model.stage, timesteps=(0, 500, 997))
    changed = replace(stage, recipe=replace(stage.recipe, **change))
    found, other = (upsample(each, small_picture(), model.text, seed=5) for each in (stage, changed))
    assert (found - other).abs().max() > 5e-3


def test_the_upsamplers_timesteps_are_fast27() -> None:
    assert len(UPSAMPLER_TIMESTEPS) == 27
    assert UPSAMPLER_TIMESTEPS[:3] + UPSAMPLER_TIMESTEPS[-3:] == (0, 22, 44, 799, 800, 997)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (GLIDE_BASE, 385_030_726),
        (GLIDE_INPAINT, 385_037_638),
        (GLIDE_UPSAMPLER, 398_361_286),
        (GLIDE_UPSAMPLER_INPAINT, 398_368_198),
    ],
)
def test_the_real_sizes_are_upstreams(config: UNetConfig, parameters: int) -> None:
    with torch.device("meta"):
        networks = UNet(config), GlideText(GlideTextConfig())
    assert sum(value.numel() for network in networks for value in network.parameters()) == parameters


# --- what the stages are ---


def test_a_file_is_two_stages(models: dict[str, Model], tmp_path: Path) -> None:
    base, upsampler = models["base"], models["upsample"]
    assert isinstance(base.stage, DecoderStage)
    assert isinstance(upsampler.stage, UpsamplerStage)
    assert upsampler.stage.low_size == 8
    assert base.stage.diffusion.schedule == "cosine"
    assert upsampler.stage.diffusion.schedule == "linear"
    spaces = {model.clip.space.id for model in models.values()}
    assert spaces == {"glide/base", "glide/upsample", "glide/base-inpaint", "glide/upsample-inpaint"}
    assert identify(open_weights(base.path)).name == "GLIDE base"
    assert identify(open_weights(base.path), "clip").name == "GLIDE text encoder"
    with pytest.raises(ValueError, match="holds a decoder, but an upsampler is expected"):
        load_any_stage(base.path, expect="upsampler")


def test_captions_become_features(models: dict[str, Model]) -> None:
    clip = models["base"].clip
    features = encode_text(clip, ["a tee", "The T"])
    assert features.tokens.shape == (2, 12, 128)
    assert features.space.id == "glide/base"
    empty = clip.network.encode_tokens(torch.full((1, 12), PADDING))[0]  # all padding, as upstream's
    torch.testing.assert_close(features.null.tokens, empty)
    with pytest.raises(ValueError, match="GLIDE's text encoder, which cannot encode pictures"):
        encode_images(clip, torch.rand(1, 3, 8, 8))
    vectors = Embedding(features.pooled, clip.space)
    with pytest.raises(ValueError, match="GLIDE's text encoder, which cannot compare captions with pictures"):
        zero_shot(clip, vectors, features)


def test_the_nodes_go_without_an_embedding(models: dict[str, Model]) -> None:
    base, upsampler = models["base"], models["upsample"]
    (text,) = UnCLIPTextEncode().execute(clip=base.clip, text="a tee")
    (small,) = UnCLIPDecode().execute(
        base.stage, 1, 1, text=text, steps=2, guidance_scale=3.0, sampler="ddpm"
    )
    assert small.shape == (1, 32, 32, 3)
    (text,) = UnCLIPTextEncode().execute(clip=upsampler.clip, text="a tee")
    stage = replace(upsampler.stage, timesteps=(0, 997))
    (large,) = UnCLIPUpsample().execute(stage, small[:, :8, :8], 1, text=text, steps=2)
    assert large.shape == (1, 32, 32, 3)


def test_an_inpainting_decoder_paints_where_nothing_is_known(models: dict[str, Model]) -> None:
    model = models["base-inpaint"]
    options = DecodeOptions(steps=2, guidance_scale=2.0)
    found = decode(model.stage, None, model.text, seed=1, batch_size=2, options=options)
    assert found.shape == (2, 3, 32, 32)
    assert found.isfinite().all()
    other = models["upsample-inpaint"]
    stage = replace(other.stage, timesteps=(0, 500, 997))
    large = upsample(stage, small_picture(), other.text, seed=1)
    assert large.shape == (1, 3, 32, 32)


def test_captions_of_another_encoder_are_an_error(models: dict[str, Model]) -> None:
    base, upsampler = models["base"], models["upsample"]
    with pytest.raises(ValueError, match="text is in the CLIP space 'glide/upsample'"):
        decode(base.stage, None, upsampler.text, seed=0)
    with pytest.raises(ValueError, match="text is in the CLIP space 'glide/base'"):
        upsample(upsampler.stage, small_picture(), base.text, seed=0)
    with pytest.raises(
        ValueError, match="text: this upsampler reads captions; connect one that its own text"
    ):
        upsample(upsampler.stage, small_picture(), seed=0)
    with pytest.raises(ValueError, match="text: this decoder needs a caption"):
        decode(base.stage, None, seed=0)
    embedding = Embedding(torch.zeros(1, 4), EmbeddingSpace("openai/ViT-L-14", 4))
    with pytest.raises(
        ValueError, match="embedding: this decoder paints captions and takes no image embedding"
    ):
        decode(base.stage, embedding, base.text, seed=0)


def test_captions_of_an_upsampler_go_with_their_pictures(models: dict[str, Model]) -> None:
    model = models["upsample"]
    pictures = torch.cat([small_picture(), small_picture()])
    both = encode_text(model.clip, ["a tee", "there"])
    stage = replace(model.stage, timesteps=(0, 500, 997))
    together = upsample(stage, pictures, both, seed=3, options=UpsampleOptions())
    alone = upsample(stage, pictures[1:], both.rows(1, 2), seed=4)
    torch.testing.assert_close(together[1:], alone, atol=1e-3, rtol=0)
    other = upsample(stage, pictures[1:], both.rows(0, 1), seed=4)
    assert (other - alone).abs().max() > OUTSIDE
    with pytest.raises(ValueError, match="batch sizes do not match: image 3, text 2"):
        upsample(stage, pictures[:1].expand(3, -1, -1, -1), both, seed=3)


def test_both_stages_can_be_saved_in_our_format(models: dict[str, Model], tmp_path: Path) -> None:
    stage = models["upsample"].stage
    save_stage(stage, tmp_path / "upsampler.safetensors", max_shard_bytes=None)
    again = load_stage(tmp_path / "upsampler.safetensors", expect="upsampler")
    assert (again.recipe, again.space, again.timesteps) == (stage.recipe, stage.space, stage.timesteps)
    clip = models["base"].clip
    save_stage(clip, tmp_path / "clip.safetensors", max_shard_bytes=None)
    read = load_stage(tmp_path / "clip.safetensors", expect="clip")
    assert (read.space, read.network.config) == (clip.space, clip.network.config)
    captions = ["the tee in there", "", "Ã¥ 3 dogs"]
    assert torch.equal(read.tokenizer(captions), clip.tokenizer(captions))
    tokens = clip.network.encode_tokens(models["base"].ids)[0]
    assert torch.equal(read.network.encode_tokens(models["base"].ids)[0], tokens)
    state = load_file(tmp_path / "clip.safetensors")
    del state["tokenizer"]
    with safe_open(tmp_path / "clip.safetensors", framework="pt") as file:
        save_file(state, tmp_path / "without.safetensors", metadata=file.metadata())
    with pytest.raises(ValueError, match="lacks tokenizer, its vocabulary"):
        load_stage(tmp_path / "without.safetensors")
