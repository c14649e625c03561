"""How much memory things take: what sockets carry, and runs by estimate and by count."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from unclip.core import memory as core_memory
from unclip.core.diffusion.spec import DiffusionSpec
from unclip.core.embeddings.pca import PCA
from unclip.core.embeddings.space import Embedding
from unclip.core.memory import memory_of
from unclip.core.networks.conditioning import ConditioningConfig
from unclip.core.networks.diffusion_prior import DiffusionPrior, DiffusionPriorConfig
from unclip.core.networks.unet import UNet
from unclip.core.networks.unet_pair import UNetPair, UNetPairConfig
from unclip.core.pipelines import encode, memory
from unclip.core.pipelines import upsample as upsample_pipeline
from unclip.core.pipelines.ar_prior import AutoregressiveOptions, sample_autoregressive_prior
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.core.pipelines.encode import encode_images, encode_text
from unclip.core.pipelines.memory import decode_memory, encode_memory, prior_memory
from unclip.core.pipelines.noise import StartingNoise
from unclip.core.pipelines.prior import PriorOptions, sample_diffusion_prior
from unclip.core.pipelines.upsample import UpsampleOptions, upsample, upsample_memory
from unclip.core.stages import DecoderStage, PriorStage, UpsamplerStage

from ...helpers.bundle import DIM, tiny_bundle
from ...helpers.unet import KARLO_DECODER
from ...helpers.unet_small import tiny_unet

GIGABYTE = 1024**3


class MemoryCount(TorchDispatchMode):
    """Bytes of the tensors that were alive at once, made while it is active."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        tensors = [t for network in networks for t in (*network.parameters(), *network.buffers())]
        self.weights = {tensor.untyped_storage()._cdata for tensor in tensors}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                if storage._cdata not in self.weights:
                    self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return results


@pytest.fixture(scope="module")
def text(bundle):
    return encode_text(bundle.clip, ["one two three four five six seven eight nine ten"])


def check(estimate: int, network: nn.Module, run) -> None:
    with MemoryCount(network) as count:
        run()
    assert count.peak <= estimate <= 3 * count.peak, f"{estimate} for {count.peak}"


# --- estimates


@pytest.mark.parametrize("captions", [1, 9])
def test_captions(bundle, captions):
    clip, texts = bundle.clip, ["a red fox"] * captions
    check(encode_memory(clip, captions=captions), clip.network, lambda: encode_text(clip, texts))


def test_captions_in_parts(bundle, monkeypatch):
    whole = encode_memory(bundle.clip, captions=9)
    for module in (encode, memory):
        monkeypatch.setattr(module, "CAPTIONS_AT_ONCE", 2)
    test_captions(bundle, 9)
    assert encode_memory(bundle.clip, captions=9) < whole / 2


@pytest.mark.parametrize(("count", "size"), [(1, 64), (4, 200)])
def test_pictures(bundle, count, size):
    clip, pictures = bundle.clip, torch.rand(count, 3, size, size)
    check(encode_memory(clip, pictures), clip.network, lambda: encode_images(clip, pictures))
    # Of pictures that come in the network's size, their number is enough.
    side = clip.network.config.vision.image_size
    assert encode_memory(clip, count) == encode_memory(clip, torch.zeros(count, 3, side, side))


@pytest.mark.parametrize(("batch", "steps"), [(1, 4), (4, 25)])
def test_the_diffusion_prior(bundle, text, batch, steps):
    prior, options = bundle.prior, PriorOptions(steps=steps, candidates=2, pack_weights=False)
    check(
        prior_memory(prior, 1, 2 * batch, steps),
        prior.network,
        lambda: sample_diffusion_prior(prior, text, seed=0, batch_size=batch, options=options),
    )


def test_the_autoregressive_prior(bundle, text):
    prior, options = bundle.ar_prior, AutoregressiveOptions(candidates=2, pack_weights=False)
    check(
        prior_memory(prior, 1, 16),
        prior.network,
        lambda: sample_autoregressive_prior(prior, text, seed=0, batch_size=8, options=options),
    )


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
@pytest.mark.parametrize(("batch", "scale"), [(1, 2.0), (3, 2.0), (3, 1.0)])
def test_the_decoder(bundle, text, sampler, batch, scale):
    decoder = bundle.decoder
    embedding = Embedding(torch.randn(1, DIM), decoder.space)
    options = DecodeOptions(steps=2, guidance_scale=scale, sampler=sampler, pack_weights=False)
    check(
        decode_memory(decoder, scale, batch, embedding, None),
        decoder.network,
        lambda: decode(decoder, embedding, text, seed=0, batch_size=batch, options=options),
    )


def test_a_decoder_as_deep_as_karlos(bundle):
    config = tiny_unet(
        64,
        channel_mult=(1, 2, 3, 4),
        blocks=2,
        channels=64,
        head_dim=64,
        out_channels=6,
        attention=(32, 16, 8),
        conditioning=ConditioningConfig(clip_dim=DIM, clip_tokens=4, text_dim=DIM, context_dim=64),
    )
    spec = DiffusionSpec(prediction="eps", variance="learned_range")
    decoder = replace(bundle.decoder, network=UNet(config).eval(), diffusion=spec)
    embedding = Embedding(torch.randn(1, DIM), decoder.space)
    options = DecodeOptions(steps=1, sampler="ddpm", pack_weights=False)
    check(
        decode_memory(decoder, 1.5, 1, embedding),
        decoder.network,
        lambda: decode(decoder, embedding, seed=0, options=options),
    )


@pytest.mark.parametrize("stage", [0, 1])
def test_the_upsamplers(bundle, stage):
    upsampler = bundle.upsamplers[stage]
    pictures = torch.rand(3, 3, upsampler.low_size, upsampler.low_size)
    check(
        upsample_memory(upsampler, *pictures.shape[::2], pictures.shape[3]),
        upsampler.network,
        lambda: upsample(upsampler, pictures, seed=0, options=UpsampleOptions(steps=2)),
    )


def test_a_patched_upsampler_in_parts(bundle, monkeypatch):
    config = tiny_unet(
        128,
        blocks=2,
        concat_channels=3,
        patch_size=4,
        resample_in_block=False,
        noise_level=True,
        residual=True,
    )
    upsampler = UpsamplerStage(UNet(config).eval(), 32, DiffusionSpec(prediction="x0"))
    alone, together = upsample_memory(upsampler, 1, 32, 32), upsample_memory(upsampler, 4, 32, 32)
    monkeypatch.setattr(upsample_pipeline, "_BYTES_AT_ONCE", 2 * alone)
    in_parts = upsample_memory(upsampler, 4, 32, 32)
    assert alone < in_parts < 0.7 * together
    pictures, seen = torch.rand(4, 3, 32, 32), []
    check(
        in_parts,
        upsampler.network,
        lambda: upsample(
            upsampler,
            pictures,
            seed=0,
            options=UpsampleOptions(steps=1),
            callback=lambda step: seen.append(len(step.x)),
        ),
    )
    assert seen == [2, 2]


def test_karlo_at_fp16_fits_stage_by_stage_in_8_gigabytes(bundle):
    """By the networks' true sizes, on the meta device: weights, activations and ComfyUI's reserve."""
    large = {"channels": 320, "channel_mult": (1, 2, 3, 4), "res_blocks": (3, 3, 3, 3)}
    with torch.device("meta"):
        prior = DiffusionPrior(DiffusionPriorConfig(dim=768, text_dim=768)).half()
        decoder = UNet(KARLO_DECODER).half()
        upsampler = UNetPair(UNetPairConfig(256, concat_channels=3, **large)).half()
    space, spec = bundle.decoder.space, DiffusionSpec()
    prior = PriorStage(prior, space, spec)
    decoder = DecoderStage(decoder, space, spec)
    upsampler = UpsamplerStage(upsampler, 64, spec)
    reserve = 0.4 * GIGABYTE  # comfy.model_management.EXTRA_RESERVED_VRAM
    needed = {
        "prior": 1.1 * memory_of(prior) + prior_memory(prior, 1, 4 * 2, 25),
        "decoder": 1.1 * memory_of(decoder) + decode_memory(decoder, 4.0, 4),
        "upsampler": 1.1 * memory_of(upsampler) + upsample_memory(upsampler, 4, 64, 64),
    }
    assert all(1.5 * GIGABYTE < size + reserve < 7.5 * GIGABYTE for size in needed.values()), needed
    assert sum(needed.values()) > 6.5 * GIGABYTE, "together they would be too tight: that is the point"


# --- what ComfyUI's cache is told


def test_every_stage_tells_what_its_weights_take(bundle):
    stages = (bundle.clip, bundle.prior, bundle.ar_prior, bundle.decoder, *bundle.upsamplers)
    for stage in stages:
        network = stage.network
        weights = sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))
        assert stage.get_ram_usage() == weights > 0
    halved = replace(tiny_bundle().decoder)
    halved.network.half()
    assert halved.get_ram_usage() * 2 == bundle.decoder.get_ram_usage()


def test_the_other_sockets_tell_what_their_tensors_take(bundle, text):
    space = bundle.clip.space
    assert Embedding(torch.zeros(3, DIM), space).get_ram_usage() == 3 * DIM * 4
    assert StartingNoise(torch.zeros(2, 3, 8, 8)).get_ram_usage() == 2 * 3 * 64 * 4
    pca = PCA(torch.zeros(DIM), torch.zeros(2, DIM), torch.zeros(2), torch.zeros(()), space)
    assert pca.get_ram_usage() == (DIM + 2 * DIM + 2 + 1) * 4
    alone = replace(text, null=None)
    assert text.get_ram_usage() >= alone.get_ram_usage() > text.tokens[:1].numel() * 4


def test_what_is_shared_counts_once_and_a_view_counts_what_it_keeps():
    tensor = torch.zeros(100)
    assert memory_of([tensor, tensor[:10], (tensor,), {"a": tensor}]) == 400
    assert memory_of(tensor[:1]) == 400
    assert memory_of(torch.zeros(1, 10).expand(50, 10)) == 40
    tied = nn.Linear(4, 4, bias=False)
    assert memory_of(nn.ModuleList([tied, tied])) == 64
    assert memory_of("text") == memory_of(None) == memory_of(Embedding) == 0


def test_memory_ends_where_the_limit_of_a_container_does(tmp_path, monkeypatch):
    """Its own group has none here, and the one around it does; what is used for files can be let go."""
    group = tmp_path / "groups" / "pod" / "container"
    group.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("0::/pod/container\n")
    monkeypatch.setattr(core_memory, "_OWN_GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(core_memory, "_GROUPS", tmp_path / "groups")
    cpu, whole = torch.device("cpu"), core_memory.free_memory(torch.device("cpu"))
    if whole is None:
        pytest.skip("this system does not tell how much memory is free")
    for folder, limit in ((group, "max"), (group.parent, "6000000")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("5000000\n")
        (folder / "memory.stat").write_text("anon 3000000\ninactive_file 2000000\n")
    assert core_memory.free_memory(cpu) == 3_000_000
    (group.parent / "memory.max").write_text("max\n")
    assert core_memory.free_memory(cpu) > 100 * 3_000_000
