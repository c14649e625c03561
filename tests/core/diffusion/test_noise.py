from __future__ import annotations

import numpy as np
import pytest
import torch
from unclip.core.diffusion.noise import draw_noise, image_generators, require_seed


def test_an_image_is_the_same_in_any_batch() -> None:
    batch = image_generators(7, 4)
    first, second = draw_noise(batch, (3, 8, 8)), draw_noise(batch, (3, 8, 8))
    alone = image_generators(9, 1)
    assert torch.equal(first[2:3], draw_noise(alone, (3, 8, 8)))
    assert torch.equal(second[2:3], draw_noise(alone, (3, 8, 8)))
    assert not torch.equal(first[2], second[2]) and not torch.equal(first[2], first[1])


def test_noise_is_standard_normal_float32_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    noise = draw_noise(image_generators(0, 2), (100_000,), "cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert noise.shape == (2, 100_000) and noise.dtype == torch.float32
    assert noise.mean().abs() < 0.01 and (noise.std() - 1).abs() < 0.01


def test_seeds_wrap_around_at_64_bits() -> None:
    noise = draw_noise(image_generators(2**64 - 1, 2), (5,))
    assert torch.equal(noise[1], draw_noise(image_generators(0, 1), (5,))[0])


def test_empty_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size: found 0"):
        image_generators(0, 0)
    with pytest.raises(ValueError, match="generators: found none"):
        draw_noise([], (3,))


@pytest.mark.parametrize("seed", [np.int64(3), np.int32(3), np.uint64(3), np.uint8(3), torch.tensor(3)])
def test_whole_numbers_of_other_libraries_are_seeds(seed) -> None:
    assert torch.equal(draw_noise(image_generators(seed, 2), (5,)), draw_noise(image_generators(3, 2), (5,)))


def test_a_seed_of_a_small_type_does_not_overflow() -> None:
    found = draw_noise(image_generators(np.uint64(2**64 - 1), 2), (5,))
    assert torch.equal(found[1], draw_noise(image_generators(0, 1), (5,))[0])
    assert require_seed(np.uint8(255)) + 1 == 256


@pytest.mark.parametrize("seed", [None, "7", 1.5, float("nan"), torch.tensor([1, 2]), torch.tensor(1.5)])
def test_what_is_no_seed_is_named(seed) -> None:
    with pytest.raises(ValueError, match=r"seed: found .*, expected a whole number"):
        image_generators(seed, 1)
