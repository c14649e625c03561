"""U-Nets through torch.compile, and the node that compiles stages."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from unclip.core.acceleration.compiled import compiled_copy, is_compiled
from unclip.core.acceleration.kept_copies import with_packed_weights
from unclip.core.embeddings.space import Embedding
from unclip.core.networks.unet import UNet
from unclip.core.networks.unet_pair import UNetPair, UNetPairConfig
from unclip.core.pipelines.decode import DecodeOptions, decode
from unclip.nodes import compile as compile_module
from unclip.nodes import host
from unclip.nodes.compile import require_compiler

from ...helpers.bundle import tiny_bundle
from ...helpers.nodes import run
from ...helpers.unet import difference, random_tensor, randomised
from ...helpers.unet_small import DECODER, TEXT, UPSAMPLER, Z_I, T, X


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def small_decoder() -> UNet:
    return randomised(UNet(DECODER)).eval().requires_grad_(False)


def test_a_compiled_decoder_computes_the_same_in_one_graph() -> None:
    network, counter = small_decoder(), CompileCounter()
    twin = compiled_copy(network, backend=counter, fullgraph=True)
    other = T.flip(0)
    with torch.inference_mode():
        condition = network.condition(clip_embedding=Z_I, **TEXT)
        assert difference(twin(X, T, condition), network(X, T, condition)) < 1e-5
        assert counter.frame_count == 1
        twin(X, other, condition)
    assert counter.frame_count == 1  # another timestep is no other graph


def test_a_changing_batch_is_compiled_once_more_and_then_no_more() -> None:
    counter = CompileCounter()
    twin = compiled_copy(small_decoder(), backend=counter)
    with torch.inference_mode():
        for rows in (1, 2, 3, 3, 2):
            twin(X[:rows], T[:rows], twin.condition(clip_embedding=Z_I[:rows]))
    assert counter.frame_count <= 3


def test_inductor_gives_the_same_numbers() -> None:
    """The one test with the real compiler, on the smallest network that there is."""
    if not any(shutil.which(name) for name in ("g++", "clang++")):
        pytest.skip("no C++ compiler is installed")
    network = tiny_bundle().upsamplers[0].network
    size = network.config.image_size
    x, low = random_tensor(1, 1, 3, size, size), random_tensor(2, 1, 3, size, size)
    t = torch.tensor([300])
    with torch.inference_mode():
        found = compiled_copy(network)(x, t, concat=low)
        assert difference(found, network(x, t, concat=low)) < 1e-4


def test_the_weights_are_shared_and_the_network_itself_is_not_compiled() -> None:
    network, counter = small_decoder(), CompileCounter()
    twin = compiled_copy(network, backend=counter)
    assert is_compiled(twin) and not is_compiled(network)
    condition = network.condition(clip_embedding=Z_I, **TEXT)
    with torch.no_grad():
        network(X, T, condition)
        assert counter.frame_count == 0
        before = twin(X, T, condition)
        network.conv_out.bias += 1
        assert difference(twin(X, T, condition), before) > 0.1
    assert {id(value) for value in twin.parameters()} == {id(value) for value in network.parameters()}


def test_both_networks_of_a_pair_are_compiled() -> None:
    config = UNetPairConfig(**{name: getattr(UPSAMPLER, name) for name in UPSAMPLER.__dataclass_fields__})
    pair, counter = randomised(UNetPair(config)).eval().requires_grad_(False), CompileCounter()
    twin = compiled_copy(pair, backend=counter, fullgraph=True)
    x, low = random_tensor(1, 2, 3, 64, 64), random_tensor(2, 2, 3, 64, 64)
    for t in (torch.tensor([500, 500]), torch.tensor([0, 0])):
        with torch.inference_mode():
            assert difference(twin(x, t, concat=low), pair(x, t, concat=low)) < 1e-5
        assert counter.frame_count == 1  # both are of one shape, and so of one graph
    assert not is_compiled(pair.first) and is_compiled(twin.first) and is_compiled(twin)


def test_a_compiled_network_goes_without_packed_weights() -> None:
    twin = compiled_copy(small_decoder())
    assert with_packed_weights(twin) is twin


# --- the node ---


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """torch.compile that makes no machine code."""
    counter = CompileCounter()
    monkeypatch.setattr(
        compile_module, "compiled_copy", lambda network: compiled_copy(network, backend=counter)
    )
    return counter


def test_the_node_compiles_what_is_connected(eager: CompileCounter) -> None:
    bundle = tiny_bundle()
    decoder, upsampler, prior = run("UnCLIPCompile", decoder=bundle.decoder, prior=bundle.prior)
    assert upsampler is None and prior is bundle.prior
    assert is_compiled(decoder.network) and not is_compiled(bundle.decoder.network)
    assert (decoder.space, decoder.diffusion) == (bundle.decoder.space, bundle.decoder.diffusion)
    _, upsampler, _ = run("UnCLIPCompile", upsampler=bundle.upsamplers[0])
    assert is_compiled(upsampler.network) and upsampler.low_size == bundle.upsamplers[0].low_size

    vectors = random_tensor(3, 2, bundle.decoder.space.dim)
    embedding = Embedding(vectors, bundle.decoder.space)
    options = DecodeOptions(steps=3)
    with torch.inference_mode():
        expected = decode(bundle.decoder, embedding, seed=0, options=options)
        assert eager.frame_count == 0
        found = decode(decoder, embedding, seed=0, options=options)
    assert eager.frame_count > 0
    assert difference(found, expected) < 1e-4


def test_the_node_says_when_nothing_is_connected() -> None:
    with pytest.raises(ValueError, match=r"decoder, upsampler, prior: nothing arrived at any of them; "):
        run("UnCLIPCompile")


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_module.shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "my-compiler")
    monkeypatch.setattr(host, "compute_device", lambda: torch.device("cpu"))
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler on the CPU, and none of my-compiler, c"):
        run("UnCLIPCompile", decoder=tiny_bundle().decoder)
    monkeypatch.setattr(compile_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"package triton on a GPU, and it is not installed: install it"):
        require_compiler(torch.device("cuda"))
    monkeypatch.setattr(compile_module.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(compile_module.sys, "platform", "linux")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ValueError, match=r"a C compiler on a GPU too, and none of gcc, clang, cc was found"):
        require_compiler(torch.device("cuda"))
    monkeypatch.setattr(compile_module.sys, "platform", "win32")
    require_compiler(torch.device("cuda"))


def test_what_is_there_to_compile_with_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_module.shutil, "which", lambda name: name if name == "cl" else None)
    require_compiler(torch.device("cpu"))
    monkeypatch.setattr(compile_module.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(compile_module.shutil, "which", lambda name: name if name == "gcc" else None)
    require_compiler(torch.device("cuda"))


# --- CUDA graphs ---


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A GPU as far as the node asks for one; the allocator may be changed."""
    found = {"allocator": "native"}
    monkeypatch.setattr(host, "compute_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: found["allocator"])
    monkeypatch.setattr(compile_module, "require_compiler", lambda device: None)
    return found


def test_cuda_graphs_change_all_stages_and_leave_other_priors(gpu: dict[str, str]) -> None:
    bundle = tiny_bundle()
    stages = {"decoder": bundle.decoder, "upsampler": bundle.upsamplers[0], "prior": bundle.prior}
    found = run("UnCLIPCompile", **stages, mode=compile_module.GRAPHS)
    for before, after in zip(stages.values(), found, strict=True):
        assert after.network is not before.network and not is_compiled(after.network)
        assert {id(value) for value in after.network.parameters()} == {
            id(value) for value in before.network.parameters()
        }
    *_, prior = run("UnCLIPCompile", prior=bundle.ar_prior, mode=compile_module.GRAPHS)
    assert prior is bundle.ar_prior


def test_both_together_record_what_was_compiled(gpu: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = []
    monkeypatch.setattr(compile_module, "recorded_copy", lambda network: recorded.append(network) or network)
    bundle = tiny_bundle()
    run("UnCLIPCompile", decoder=bundle.decoder, upsampler=bundle.upsamplers[0], mode=compile_module.BOTH)
    assert len(recorded) == 2 and all(is_compiled(network) for network in recorded)


def test_where_cuda_graphs_cannot_be_is_named(gpu: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = tiny_bundle().decoder
    gpu["allocator"] = "cudaMallocAsync"
    with pytest.raises(ValueError, match="cudaMallocAsync; start ComfyUI with --disable-cuda-malloc"):
        run("UnCLIPCompile", decoder=decoder, mode=compile_module.GRAPHS)
    monkeypatch.setattr(host, "compute_device", lambda: torch.device("cpu"))
    with pytest.raises(ValueError, match="CUDA graphs need an NVIDIA GPU, and this runs on cpu; choose"):
        run("UnCLIPCompile", decoder=decoder, mode=compile_module.GRAPHS)
