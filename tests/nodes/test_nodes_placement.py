"""Where networks are while they run: by ComfyUI's model management, and without it."""

from __future__ import annotations

import copy
import functools
import gc
import sys
import traceback
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn
from unclip.core.diffusion.spec import DiffusionSpec
from unclip.core.embeddings.space import Embedding, EmbeddingSpace
from unclip.core.stages import ClipStage, DecoderStage, PriorStage, UpsamplerStage
from unclip.nodes import compile as compile_node
from unclip.nodes import host, placement

from ..helpers.bundle import DIM, tiny_bundle, write_tiny_bundle
from ..helpers.comfyui import FakeComfyUI, FakeModelPatcher, Interrupted, comfyui_starter
from ..helpers.nodes import run

# A device that needs no hardware: tensors can be sent there, though not back.
DEVICE = "meta"
SPACE = EmbeddingSpace("unclip/test", 4)
SPEC = DiffusionSpec()


class Network(nn.Module):
    """Records its moves, and stays whole."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(10))
        self.register_buffer("table", torch.zeros(5, dtype=torch.float16))
        self.moves = []

    def to(self, device):
        self.moves.append(torch.device(device).type)
        return self


class Sent(Network):
    """One whose weights do go."""

    def to(self, device):
        super().to(device)
        self.weight = nn.Parameter(torch.zeros(10, device=device))
        return self


@pytest.fixture
def comfyui(tmp_path, monkeypatch):
    return comfyui_starter(tmp_path / "models", monkeypatch)


@pytest.fixture
def bundle_folder(tmp_path, monkeypatch):
    write_tiny_bundle(tmp_path / "models" / "unclip" / "tiny")
    monkeypatch.setenv(host.MODEL_FOLDERS_VARIABLE, str(tmp_path / "models" / "unclip"))


def stage(network: nn.Module | None = None) -> DecoderStage:
    return DecoderStage(network or Network(), SPACE, SPEC, "mini/decoder")


def loads(fake: FakeComfyUI) -> list[tuple]:
    return [call for call in fake.calls if call[0] == "load"]


def test_on_the_cpu_nothing_moves(comfyui):
    fake, decoder = comfyui(), stage()
    with placement.on_device(decoder, 1000) as device:
        assert device.type == "cpu"
    assert decoder.network.moves == [] and fake.calls == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 491520000 bytes."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 491520000 bytes."),
    ],
)
def test_memory_that_ends_on_the_cpu_is_explained(error):
    said = r"the decoder 'mini/decoder' ran out of memory on cpu.* Make fewer pictures .*other programs helps"
    with pytest.raises(MemoryError, match=said), placement.on_device(stage(), 1000):
        raise error
    with pytest.raises(RuntimeError, match=r"^another$"), placement.on_device(stage()):
        raise RuntimeError("another")


def test_without_comfyui_a_network_goes_there_and_back(monkeypatch):
    monkeypatch.setattr(host, "_chosen_device", torch.device(DEVICE))
    decoder = stage()
    with pytest.raises(Interrupted), placement.on_device(decoder) as device:
        assert device.type == DEVICE and decoder.network.moves == [DEVICE]
        raise Interrupted
    assert decoder.network.moves == [DEVICE, "cpu"]


def test_comfyui_loads_a_stage_in_full_and_keeps_it(comfyui):
    fake, decoder = comfyui(device=DEVICE), stage(Sent())
    for _ in range(3):
        with placement.on_device(decoder, 12345) as device:
            assert device.type == DEVICE and decoder.network.weight.device.type == DEVICE
    assert loads(fake) == [("load", 12345, True)] * 3
    assert decoder.network.weight.device.type == DEVICE, "ComfyUI was not asked to unload it"
    assert set(decoder.network.moves) == {DEVICE}


def test_each_stage_has_one_patcher_for_as_long_as_it_lives(comfyui, monkeypatch):
    made = []
    managed = host.managed_model
    monkeypatch.setattr(host, "managed_model", lambda *given: made.append(managed(*given)) or made[-1])
    comfyui(device=DEVICE)
    first, second = stage(Sent()), stage(Sent())
    for each in (first, second, first):
        with placement.on_device(each):
            pass
    assert [patcher.model for patcher in made] == [first.network, second.network]
    alive = weakref.ref(made[0])
    gone = weakref.ref(first.network)
    made.clear()
    del first, each
    with gc_disabled():
        assert alive() is None and gone() is None, "without a cycle that only the garbage collector breaks"


class gc_disabled:  # noqa: N801 (reads as a function)
    def __enter__(self):
        gc.disable()

    def __exit__(self, *_):
        gc.enable()


def test_what_runs_together_is_loaded_together(comfyui):
    """To make room for one, ComfyUI unloads all that it was not asked for at the same time."""
    fake, decoder, weak = comfyui(device=DEVICE), stage(Sent()), stage(Sent())
    fake.crowded = True
    for first, second in ((decoder, weak), (weak, decoder), (decoder, weak)):
        with placement.on_device(first, 12345, beside=second):
            assert {each.network.weight.device.type for each in (first, second)} == {DEVICE}
    assert loads(fake) == [("load", 12345, True)] * 3
    with placement.on_device(decoder, beside=stage(decoder.network)):  # twice the same network is one
        assert decoder.network.weight.device.type == DEVICE
    assert weak.network.moves[-1] == "cpu"


def test_what_runs_together_comes_and_goes_together(comfyui, monkeypatch):
    fake = comfyui(device=DEVICE)
    for inside in (True, False):
        fake.keeps_off = True
        if not inside:
            monkeypatch.delitem(sys.modules, "folder_paths")
            monkeypatch.setattr(host, "_chosen_device", torch.device(DEVICE))
        decoder, weak = stage(), stage()
        with pytest.raises(Interrupted), placement.on_device(decoder, beside=weak):
            assert decoder.network.moves == weak.network.moves == [DEVICE]
            raise Interrupted
        assert decoder.network.moves == weak.network.moves == [DEVICE, "cpu"]


@pytest.mark.parametrize(
    ("node", "module", "given"),
    [
        ("UnCLIPDecode", "decode", {}),
        ("UnCLIPGuidanceSweep", "compare", {"guidance_scales": "1, 2"}),
    ],
)
def test_the_weak_decoder_stays_where_the_decoder_is(comfyui, monkeypatch, node, module, given):
    fake = comfyui(device=DEVICE)
    fake.crowded = True
    bundle = tiny_bundle(upsamplers=0)
    weak = replace(bundle.decoder, network=copy.deepcopy(bundle.decoder.network))
    places, seen = {}, []

    def note(each, device):  # noted, not sent: nothing can be computed there
        places[id(each)] = torch.device(device).type

    for each in (bundle.decoder, weak):
        monkeypatch.setattr(each.network, "to", functools.partial(note, each))

    def paint(decoder, weaker, **_):
        seen.append({places.get(id(each)) for each in (decoder, weaker)})
        return torch.zeros(1, 1, 3, 8, 8)[:, 0] if module == "decode" else torch.zeros(1, 1, 3, 8, 8)

    pipeline = {"decode": "decode", "compare": "sweep_guidance"}[module]
    monkeypatch.setattr(f"unclip.nodes.{module}.{pipeline}", paint)
    embedding = Embedding(torch.ones(1, DIM), bundle.decoder.space)
    painted = {"decoder": bundle.decoder, "weak_decoder": weak, "embedding": embedding, **given}
    run(node, **painted, guidance="autoguidance")
    assert seen == [{DEVICE}]
    run(node, **painted)
    assert places[id(weak)] == "cpu", "where it is not needed, it makes room"


def test_what_comfyui_leaves_off_the_device_comes_and_goes(comfyui):
    """--novram: it loads nothing, and would not know to unload it."""
    fake, decoder = comfyui(device=DEVICE), stage()
    fake.keeps_off = True
    with pytest.raises(Interrupted), placement.on_device(decoder):
        assert decoder.network.moves == [DEVICE]
        raise Interrupted
    assert decoder.network.moves == [DEVICE, "cpu"]


def test_a_network_that_was_unloaded_under_another_name_is_loaded_again(comfyui):
    """A native MODEL has a patcher of its own for the same network."""
    fake, decoder = comfyui(device=DEVICE), stage(Sent())
    with placement.on_device(decoder):
        pass
    decoder.network.to("cpu")
    decoder.network.moves.clear()
    with placement.on_device(decoder):
        assert decoder.network.weight.device.type == DEVICE
    assert decoder.network.moves[:2] == ["cpu", DEVICE], "ComfyUI knew that it has to make room"
    assert len(loads(fake)) == 2


def test_interruption_leaves_a_stage_where_comfyui_has_it(comfyui):
    fake, decoder = comfyui(device=DEVICE), stage(Sent())
    with pytest.raises(Interrupted), placement.on_device(decoder):
        raise Interrupted
    assert decoder.network.weight.device.type == DEVICE
    assert ("soft_empty_cache",) not in fake.calls


# --- out of memory


def fail_deep_down(kept: list, error: Exception) -> None:
    activations = Activations()
    kept.append(weakref.ref(activations))
    raise error


class Activations:
    pass


def test_out_of_memory_counts_both_that_run_together(comfyui):
    comfyui(device=DEVICE)
    decoder, weak = (stage(nn.Linear(1, 1024**3 // 4 - 1, bias=True, device="meta")) for _ in range(2))
    words = (
        r"decoder 'mini/decoder' ran out .* its weights and those of the decoder 'mini/decoder' take 4\.0 GB"
    )
    with pytest.raises(torch.cuda.OutOfMemoryError, match=words), placement.on_device(decoder, beside=weak):
        raise torch.cuda.OutOfMemoryError


@pytest.mark.parametrize("inside", [True, False])
def test_out_of_memory_says_what_to_do_and_lets_go_of_the_run(comfyui, monkeypatch, inside):
    fake = comfyui(device=DEVICE) if inside else None
    monkeypatch.setattr(host, "_chosen_device", torch.device(DEVICE))
    decoder, kept = stage(Sent()), []
    with pytest.raises(torch.cuda.OutOfMemoryError) as caught, placement.on_device(decoder, 3 * 1024**3):
        fail_deep_down(kept, torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"))
    message = str(caught.value)
    assert message.startswith(
        "the decoder 'mini/decoder' ran out of memory on meta: its weights take 0.0 GB, and this run about "
        "3.0 GB more. Make fewer pictures at once: a smaller batch_size"
    )
    assert "fp16" in message and "Tried to allocate" not in "".join(traceback.format_exception(caught.value))
    assert kept[0]() is None, "the frames of the run must not keep its tensors"
    if inside:
        assert fake.calls[-1] == ("soft_empty_cache",)
    else:
        assert decoder.network.moves == [DEVICE, "cpu"]


# Older releases of PyTorch have no AcceleratorError, and raise RuntimeError for it.
ERRORS_OF_CUDA = [RuntimeError, getattr(torch, "AcceleratorError", RuntimeError)]


@pytest.mark.parametrize("kind", ERRORS_OF_CUDA)
@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "HIP out of memory. Tried to allocate 2.00 GiB",
        "MPS backend out of memory (MPS allocated: 8 GB)",
    ],
)
def test_out_of_memory_by_another_name(comfyui, kind, text):
    fake, decoder, kept = comfyui(device=DEVICE), stage(Sent()), []
    words = "^the decoder 'mini/decoder' ran out of memory on meta"
    with pytest.raises(torch.cuda.OutOfMemoryError, match=words), placement.on_device(decoder):
        fail_deep_down(kept, kind(text))
    assert kept[0]() is None, "the frames of the run must not keep its tensors"
    assert fake.calls[-1] == ("soft_empty_cache",)


def test_out_of_memory_is_of_the_type_that_comfyui_has_for_it(comfyui, monkeypatch):
    class FullError(RuntimeError):
        pass

    fake = comfyui(device=DEVICE)
    for kind in (FullError, Exception):
        monkeypatch.setattr(fake.modules["comfy.model_management"], "OOM_EXCEPTION", kind)
        with pytest.raises(kind, match="ran out of memory on meta") as caught, placement.on_device(stage()):
            raise RuntimeError("CUDA error: out of memory")
        assert type(caught.value) is kind


def test_out_of_memory_while_loading_is_told_as_well(comfyui, monkeypatch):
    fake, upsampler = comfyui(device=DEVICE), UpsamplerStage(Network(), 64, SPEC)

    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(fake.modules["comfy.model_management"], "load_models_gpu", full)
    words = r"the upsampler ran out of memory .* tiles"
    with pytest.raises(torch.cuda.OutOfMemoryError, match=words), placement.on_device(upsampler):
        raise AssertionError("must not begin")
    assert fake.calls == [("soft_empty_cache",)]


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (ClipStage(Network(), lambda captions: captions, SPACE), "the CLIP model .* Encode fewer pictures"),
        (PriorStage(Network(), SPACE, SPEC), "the prior .* a smaller batch_size, or fewer candidates"),
    ],
)
def test_every_stage_has_its_own_advice(comfyui, stage, words):
    comfyui(device=DEVICE)
    with pytest.raises(torch.cuda.OutOfMemoryError, match=words), placement.on_device(stage):
        raise torch.cuda.OutOfMemoryError


@pytest.mark.parametrize(
    "error",
    [
        ValueError("steps: found 0"),
        ValueError("prompt: found 'a robot that ran out of memory'"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        Interrupted(),
    ],
)
# Where PyTorch lacks the type, ComfyUI's name for it is that of every error.
@pytest.mark.parametrize("out_of_memory", [torch.cuda.OutOfMemoryError, Exception])
def test_other_errors_pass_as_they_are(comfyui, monkeypatch, error, out_of_memory):
    fake, decoder = comfyui(device=DEVICE), stage(Sent())
    monkeypatch.setattr(fake.modules["comfy.model_management"], "OOM_EXCEPTION", out_of_memory)
    with pytest.raises(type(error)) as caught, placement.on_device(decoder):
        raise error
    assert caught.value is error
    assert ("soft_empty_cache",) not in fake.calls


# --- what ComfyUI's cache counts


def test_what_loaders_return_is_a_model_to_comfyui_on_the_cpu_too(comfyui, bundle_folder):
    (loaded,) = run("UnCLIPLoadPrior", file="tiny/prior.safetensors")
    assert not hasattr(loaded, "patcher"), "without ComfyUI there is nobody to count it"
    comfyui()
    stages = run("UnCLIPLoadBundle", bundle="tiny")
    assert all(stages)
    (single,) = run("UnCLIPLoadUpsampler", file="tiny/upsampler-32.safetensors")
    for each in (*stages, single):
        assert isinstance(each.patcher, FakeModelPatcher) and each.patcher.model is each.network
    assert placement.managed(None) is None


def test_a_stage_with_another_network_has_a_patcher_of_its_own(comfyui, monkeypatch):
    monkeypatch.setattr(compile_node, "require_compiler", lambda device: None)
    monkeypatch.setattr(compile_node, "compiled_copy", lambda network: Network())
    comfyui()
    decoder = placement.managed(stage())
    changed, _, _ = run("UnCLIPCompile", decoder=decoder)
    assert changed.network is not decoder.network
    assert changed.patcher.model is changed.network and decoder.patcher.model is decoder.network


def test_the_patcher_that_a_loader_made_is_the_one_that_runs(comfyui):
    comfyui(device=DEVICE)
    decoder = placement.managed(stage(Sent()))
    made = decoder.patcher
    with placement.on_device(decoder):
        assert made.loaded_size() == made.model_size()
    assert decoder.patcher is made
