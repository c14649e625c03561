"""For how much room the nodes ask before they run a network."""

from __future__ import annotations

import pytest
import torch
from unclip.core.pipelines.memory import decode_memory
from unclip.core.pipelines.towers import image_tower, text_tower
from unclip.nodes import NODE_CLASS_MAPPINGS, host, placement

from ..helpers.bundle import tiny_bundle
from ..helpers.nodes import run


@pytest.fixture
def asked(monkeypatch):
    """Stages and bytes that nodes ask for, while they run on the CPU."""
    calls = []
    on_device = placement.on_device

    def noted(stage, activations=0, **options):
        calls.append((stage, activations))
        return on_device(stage, activations, **options)

    monkeypatch.setattr(placement, "on_device", noted)
    return calls


def test_every_node_asks_for_room_for_its_batch(asked):
    bundle = tiny_bundle()
    nodes = {name: node() for name, node in NODE_CLASS_MAPPINGS.items()}
    (text,) = nodes["UnCLIPTextEncode"].execute(bundle.clip, "a red fox")
    upsampler, guided = bundle.upsamplers[0], {"steps": 1, "guidance_scale": 2.0}
    captioned = {"text": text, "seed": 0}
    needed = {}
    for batch in (1, 3):
        asked.clear()
        image, mask = torch.rand(batch, 16, 16, 3), torch.ones(16, 16)
        (embedding,) = nodes["UnCLIPImageEncode"].execute(bundle.clip, image)
        nodes["UnCLIPDiffusionPrior"].execute(
            bundle.prior, **captioned, **guided, candidates=2, batch_size=batch
        )
        nodes["UnCLIPAutoregressivePrior"].execute(
            bundle.ar_prior, **captioned, guidance_scale=2.0, candidates=2, batch_size=batch
        )
        painted = {"decoder": bundle.decoder, "embedding": embedding, "text": text}
        nodes["UnCLIPDecode"].execute(**painted, seed=0, batch_size=batch, **guided)
        nodes["UnCLIPInvert"].execute(**painted, image=image, refinements=0, **guided)
        nodes["UnCLIPInpaint"].execute(
            **painted, image=image, mask=mask, seed=0, batch_size=batch, resamples=1, **guided
        )
        nodes["UnCLIPGuidanceSweep"].execute(**painted, guidance_scales="1, 2", seed=0, steps=1)
        nodes["UnCLIPUpsample"].execute(upsampler, image, 0, steps=1)
        nodes["UnCLIPScore"].execute(bundle.clip, image, text)
        nodes["UnCLIPZeroShot"].execute(bundle.clip, "fox\napple", image)
        needed[batch] = list(asked)
    stages = [stage for stage, _ in needed[1]]
    decoder, clip = bundle.decoder, bundle.clip
    assert stages == [
        image_tower(clip),
        bundle.prior,
        bundle.ar_prior,
        *[decoder] * 4,
        upsampler,
        image_tower(clip),  # the score's
        image_tower(clip),  # zero-shot's, and the captions' apart
        text_tower(clip),
    ]
    for (stage, one), (_, three) in zip(needed[1], needed[3], strict=True):
        assert 0 < one <= three <= 3 * one, type(stage)
        if stage is decoder:
            assert (one, three) == (decode_memory(decoder, 2.0, 1), decode_memory(decoder, 2.0, 3))
    ratios = [three / one for (_, one), (_, three) in zip(needed[1], needed[3], strict=True)]
    assert min(ratios[i] for i in (0, 2, 7, 8)) > 1.5, "these grow with the batch"


@pytest.mark.parametrize(
    ("node", "given", "tower"),
    [
        ("UnCLIPTextEncode", {"text": "a red fox"}, "text"),
        ("UnCLIPImageEncode", {"image": torch.rand(1, 32, 32, 3)}, "vision"),
    ],
)
def test_only_the_tower_that_encodes_goes_to_the_device(monkeypatch, node, given, tower):
    monkeypatch.setattr(host, "_chosen_device", torch.device("cpu"))
    sent, clip = [], tiny_bundle().clip
    on_device = placement.on_device

    def seen(stage, activations):
        sent.append(stage.network.config)
        return on_device(stage, activations)

    monkeypatch.setattr(placement, "on_device", seen)
    run(node, clip=clip, **given)
    (config,) = sent
    assert getattr(config, tower) is not None
    assert getattr(config, {"text": "vision", "vision": "text"}[tower]) is None
