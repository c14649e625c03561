"""Embedding arithmetic against closed forms."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor
from unclip.core.embeddings.arithmetic import (
    EASES,
    blend,
    ease,
    embedding_diff,
    interpolate,
    positions,
    slerp,
    slerp_frames,
    text_diff,
)
from unclip.core.embeddings.batches import join
from unclip.core.embeddings.space import Embedding, EmbeddingSpace, TextFeatures

DIM = 6
SPACE = EmbeddingSpace("unclip/test", DIM)
OTHER = EmbeddingSpace("somebody/else", DIM)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def embedding(rows: int = 1, seed: int = 0, space: EmbeddingSpace = SPACE) -> Embedding:
    return Embedding(draw(rows, DIM, seed=seed), space)


def caption(seed: int, rows: int = 1, space: EmbeddingSpace = SPACE) -> TextFeatures:
    return TextFeatures(
        torch.zeros(rows, 4, 8), torch.ones(rows, 4, dtype=torch.bool), draw(rows, DIM, seed=seed), space
    )


def angle(a: Tensor, b: Tensor) -> Tensor:
    return torch.acos((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)))


# --- slerp --------------------------------------------------------------------------------------------


def test_the_angle_turns_evenly_and_the_norm_runs_linearly() -> None:
    a, b = 2 * draw(50, DIM), 5 * draw(50, DIM, seed=1)
    whole = angle(a, b)
    for t in (0.1, 0.5, 0.8):
        between = slerp(a, b, t)
        torch.testing.assert_close(angle(a, between), t * whole, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(angle(between, b), (1 - t) * whole, atol=1e-4, rtol=1e-4)
        norms = (1 - t) * a.norm(dim=-1) + t * b.norm(dim=-1)
        torch.testing.assert_close(between.norm(dim=-1), norms)


def test_unit_vectors_give_the_textbook_formula() -> None:
    a, b = (torch.nn.functional.normalize(draw(20, DIM, seed=s), dim=-1) for s in (0, 1))
    theta = angle(a, b)[:, None]
    expected = (torch.sin(0.7 * theta) * a + torch.sin(0.3 * theta) * b) / torch.sin(theta)
    torch.testing.assert_close(slerp(a, b, 0.3), expected, atol=1e-6, rtol=1e-5)
    # The elementwise product of a known faulty version collapses the angle to a vector.
    faulty = torch.acos((a * b).clamp(-1, 1))
    assert (torch.sin(0.7 * faulty) / torch.sin(faulty) * a - expected).abs().max() > 0.1


def test_right_angles() -> None:
    x, y = torch.eye(3)[0], torch.eye(3)[1]
    expected = torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6), 0.0])
    torch.testing.assert_close(slerp(x, y, 1 / 3), expected)


def test_the_ends_are_exact() -> None:
    a, b = draw(9, DIM), draw(9, DIM, seed=1)
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)
    assert torch.equal(slerp(a, b, torch.tensor([0.0, 1.0, 0.5] * 3))[:2], torch.stack([a[0], b[1]]))


def test_identical_and_nearly_identical_vectors() -> None:
    a = 3 * draw(4, DIM)
    torch.testing.assert_close(slerp(a, a, 0.4), a)
    torch.testing.assert_close(slerp(a, 2 * a, 0.5), 1.5 * a)
    near = a + 1e-5 * draw(4, DIM, seed=2)
    torch.testing.assert_close(slerp(a, near, 0.5), (a + near) / 2, atol=5e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_opposite_vectors_take_a_documented_way(dtype: torch.dtype) -> None:
    a = torch.tensor([[3.0, 0.5, 4.0]], dtype=dtype)
    middle = slerp(a, -2 * a, 0.5).double()
    assert torch.isfinite(middle).all()
    # At a right angle to both, in the plane of a and the axis of its smallest component, the second.
    assert abs((middle * a).sum()) < 0.05 * middle.norm() * a.norm().double()
    assert middle.norm().item() == pytest.approx(1.5 * a.double().norm().item(), rel=2e-3)
    axis = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    plane = torch.linalg.qr(torch.cat([a.double(), axis]).T)[0]  # [3, 2]
    assert (middle - middle @ plane @ plane.T).norm() < 0.01 * middle.norm()
    assert middle[0, 1] > 0
    assert torch.equal(slerp(a, -2 * a, 0.5), slerp(a, -2 * a, 0.5))
    quarter = slerp(a, -a, 0.25).double()
    assert angle(a.double(), quarter).item() == pytest.approx(math.pi / 4, abs=2e-3)


def test_zero_vectors_have_no_direction() -> None:
    a, zero = draw(2, DIM), torch.zeros(2, DIM)
    torch.testing.assert_close(slerp(a, zero, 0.25), 0.75 * a)
    torch.testing.assert_close(slerp(zero, a, 0.25), 0.25 * a)
    assert torch.equal(slerp(zero, zero, 0.5), zero)


def test_batches_and_positions_broadcast() -> None:
    a, b, t = draw(5, DIM), draw(5, DIM, seed=1), torch.tensor([0.0, 0.2, 0.5, 0.7, 1.0])
    each = slerp(a, b, t)
    for i in range(5):
        torch.testing.assert_close(each[i], slerp(a[i], b[i], t[i].item()))
    assert slerp(a[0], b[0], t).shape == (5, DIM)
    assert slerp(a[:, None], b[0], t).shape == (5, 5, DIM)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    # The square of the norm alone overflows float16.
    a, b = ((100 * draw(3, 64, seed=seed)).to(dtype) for seed in (0, 1))
    found = slerp(a, b, 0.3)
    assert found.dtype == dtype
    torch.testing.assert_close(found, slerp(a.float(), b.float(), 0.3).to(dtype))
    assert torch.isfinite(found).all()


def test_what_slerp_refuses() -> None:
    with pytest.raises(ValueError, match=r"slerp: found shapes \(3,\) and \(4,\); expected vectors of the"):
        slerp(torch.zeros(3), torch.zeros(4), 0.5)
    with pytest.raises(ValueError, match=r"slerp: found t from 0\.5 to 1\.5, expected values within 0\.\.1"):
        slerp(torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0.5, 1.5]))
    with pytest.raises(ValueError, match="slerp: found t from nan"):
        slerp(torch.ones(3), torch.ones(3), float("nan"))


# --- curves and interpolation -------------------------------------------------------------------------


@pytest.mark.parametrize("curve", EASES)
def test_a_curve_runs_from_0_to_1_and_never_back(curve) -> None:
    t = positions(21, curve)
    assert t[0] == 0 and t[-1] == 1 and bool((t.diff() > 0).all())
    assert positions(1, curve).tolist() == [1.0]


def test_the_shapes_of_the_curves() -> None:
    t = torch.tensor([0.25, 0.5, 0.75])
    assert ease(t, "linear").tolist() == [0.25, 0.5, 0.75]
    assert ease(t, "smooth").tolist() == [0.15625, 0.5, 0.84375]
    assert ease(t, "ease-in").tolist() == [0.0625, 0.25, 0.5625]
    assert ease(t, "ease-out").tolist() == [0.4375, 0.75, 0.9375]
    with pytest.raises(ValueError, match="ease: found 'bounce', expected one of linear, smooth, ease-in, ea"):
        ease(t, "bounce")


def test_interpolation_gives_frames_of_each_pair() -> None:
    first, second = embedding(2), embedding(1, seed=1)
    found = interpolate(first, second, 5, "smooth")
    assert found.space == SPACE and found.vectors.shape == (10, DIM)
    for row in range(2):
        frames = found.vectors[5 * row : 5 * row + 5]
        assert torch.equal(frames[0], first.vectors[row]) and torch.equal(frames[-1], second.vectors[0])
        torch.testing.assert_close(frames[1], slerp(first.vectors[row], second.vectors[0], 0.15625))


def test_what_interpolation_refuses() -> None:
    with pytest.raises(ValueError, match=r"second is in the CLIP space 'somebody/else'.*'unclip/test'"):
        interpolate(embedding(), embedding(space=OTHER), 3)
    with pytest.raises(ValueError, match="batch sizes do not match: first 2, second 3"):
        interpolate(embedding(2), embedding(3), 3)
    with pytest.raises(ValueError, match="frames is 1; expected at least 2, the two ends"):
        interpolate(embedding(), embedding(), 1)


def test_frames_of_pairs_follow_each_other() -> None:
    a, b = draw(2, DIM), draw(2, DIM, seed=1)
    found = slerp_frames(a, b, torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(
        found, torch.stack([a[0], slerp(a[0], b[0], 0.5), a[1], slerp(a[1], b[1], 0.5)])
    )


# --- blend --------------------------------------------------------------------------------------------


def test_equal_weights_of_two_meet_in_the_middle() -> None:
    first, second = embedding(3), embedding(1, seed=1)
    found = blend([first, second], [2.0, 2.0])
    torch.testing.assert_close(found.vectors, slerp(first.vectors, second.vectors, 0.5))
    assert found.space == SPACE


def test_blend_in_numbers() -> None:
    space = EmbeddingSpace("unclip/test", 3)
    x, y, z = (Embedding(scale * torch.eye(3)[i : i + 1], space) for i, scale in enumerate((1.0, 2.0, 4.0)))
    found = blend([x, y, z], [1.0, 1.0, 2.0]).vectors
    direction = torch.tensor([[1.0, 1.0, 2.0]]) / math.sqrt(6)
    torch.testing.assert_close(found, direction * (1 + 2 + 2 * 4) / 4)
    # Away from y, and the size of a weight counts for the norm.
    torch.testing.assert_close(
        blend([x, y], [1.0, -1.0]).vectors, torch.tensor([[1.0, -1.0, 0.0]]) / math.sqrt(2) * 1.5
    )
    torch.testing.assert_close(blend([x, y], [5.0, 0.0]).vectors, x.vectors)


def test_what_blend_refuses() -> None:
    one = embedding()
    with pytest.raises(ValueError, match="blend: found 1 embeddings and 2 weights"):
        blend([one], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"^weight_1 0: expected numbers of which at least one is not 0"):
        blend([one], [0.0])
    with pytest.raises(ValueError, match=r"^weight_1 inf: expected"):
        blend([one], [math.inf])
    with pytest.raises(ValueError, match="embedding_2 is in the CLIP space 'somebody/else'"):
        blend([one, embedding(space=OTHER)], [1.0, 1.0])
    with pytest.raises(ValueError, match="batch sizes do not match: embedding_1 2, embedding_2 3"):
        blend([embedding(2), embedding(3)], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"^weight_1, weight_2: the weighted embeddings cancel each other"):
        blend([one, replace(one, vectors=-one.vectors)], [1.0, 1.0])


def test_embeddings_that_are_not_given_keep_their_numbers() -> None:
    one, other = embedding(), embedding(seed=1)
    found = blend([one, None, other], [1.0, 5.0, 2.0]).vectors
    torch.testing.assert_close(found, blend([one, other], [1.0, 2.0]).vectors)
    with pytest.raises(ValueError, match="embedding_3 is in the CLIP space 'somebody/else'"):
        blend([one, None, embedding(space=OTHER)], [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"^weight_1 0, weight_3 0: expected"):
        blend([one, None, other], [0.0, 1.0, 0.0])
    with pytest.raises(ValueError, match="blend: found 1 embeddings"):
        blend([None], [1.0])


# --- batches ------------------------------------------------------------------------------------------


def test_batches_are_joined_in_their_order() -> None:
    first, second = embedding(3), embedding(1, seed=1)
    found = join([first, None, second])
    assert torch.equal(found.vectors, torch.cat([first.vectors, second.vectors])) and found.space == SPACE
    assert torch.equal(join([second, first]).vectors[:1], second.vectors)
    assert torch.equal(join([first]).vectors, first.vectors)
    half = replace(second, vectors=second.vectors.half())
    assert join([first, half]).vectors.dtype == torch.float32


def test_joined_embeddings_have_the_norm_of_the_first() -> None:
    raw = EmbeddingSpace("unclip/test", 2, mean=(0.0, 0.0), std=(3.0, 4.0))
    unit = replace(raw, norm="unit")
    long, short = Embedding(torch.tensor([[6.0, 8.0]]), raw), Embedding(torch.tensor([[0.0, 1.0]]), unit)
    torch.testing.assert_close(join([long, short]).vectors, torch.tensor([[6.0, 8.0], [0.0, 5.0]]))
    torch.testing.assert_close(join([short, long]).vectors, torch.tensor([[0.0, 1.0], [0.6, 0.8]]))
    unknown = replace(raw, mean=None, std=None)
    with pytest.raises(ValueError, match="embedding_2: it has length 1, but embeddings of 'unclip/test'"):
        join([Embedding(long.vectors, unknown), short])


def test_what_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="embeddings: found none"):
        join([None])
    with pytest.raises(ValueError, match=r"embedding_3 is in the CLIP space 'somebody/else'.*'unclip/test'"):
        join([embedding(), None, embedding(space=OTHER)])


# --- raw and unit embeddings of one space ---------------------------------------------------------------

RAW = EmbeddingSpace("unclip/test", DIM, mean=(0.0,) * DIM, std=(3.0,) * DIM)
UNIT = EmbeddingSpace("unclip/test", DIM, norm="unit")


def of_length(length: float, seed: int, space: EmbeddingSpace = RAW) -> Embedding:
    vectors = embedding(2, seed).vectors
    return Embedding(length * vectors / vectors.norm(dim=-1, keepdim=True), space)


def both_norms(seed: int) -> tuple[Embedding, Embedding]:
    """An embedding as long as its space has them, and the same one at length 1."""
    return of_length(RAW.typical_norm, seed), of_length(1, seed, UNIT)


def as_text(given: Embedding) -> TextFeatures:
    mask = torch.ones(len(given), 4, dtype=torch.bool)
    return TextFeatures(torch.zeros(len(given), 4, 8), mask, given.vectors, given.space)


MIXED = {
    "interpolate": lambda a, b, c: interpolate(a, b, 4),
    "blend": lambda a, b, c: blend([a, None, b, c], [1.0, 1.0, 2.0, -0.5]),
    "sum": lambda a, b, c: blend([a, b, c], [0.5, 0.7, -0.2], "sum"),
    "text diff": lambda a, b, c: text_diff(a, as_text(b), as_text(c), 0.4, 3),
    "embedding diff": lambda a, b, c: embedding_diff(a, b, c, 0.4, 3),
}


@pytest.mark.parametrize("operation", MIXED)
def test_an_embedding_means_the_same_in_both_norms(operation) -> None:
    run = MIXED[operation]
    choices = [both_norms(seed) for seed in range(3)]
    raw, unit = (run(*(each[norm] for each in choices)) for norm in (0, 1))
    torch.testing.assert_close(raw.vectors, unit.vectors * RAW.typical_norm)
    for given in product(*choices):
        found, expected = run(*given), raw if given[0].space == RAW else unit
        assert found.space == expected.space
        torch.testing.assert_close(found.vectors, expected.vectors)


def test_a_length_that_nobody_knows_is_told_with_its_input() -> None:
    raw, unit = of_length(5, 0, SPACE), of_length(1, 1, UNIT)
    with pytest.raises(ValueError, match=r"^second: it has length 1, but embeddings of 'unclip/test'"):
        interpolate(raw, unit, 3)
    with pytest.raises(ValueError, match=r"^embedding_3: it has length 1, but embeddings of"):
        blend([raw, None, unit], [1.0, 1.0, 1.0])
    # A turn keeps the length of the picture's embedding, so that of the others is not asked for.
    turned = embedding_diff(raw, unit, of_length(7, 2, SPACE), 0.4, 1)
    torch.testing.assert_close(turned.vectors.norm(dim=-1), torch.full((2,), 5.0))
    in_unit = embedding_diff(raw, unit, of_length(1, 2, UNIT), 0.4, 1)
    torch.testing.assert_close(turned.vectors, in_unit.vectors)


# --- text diffs ---------------------------------------------------------------------------------------


def test_a_text_diff_turns_towards_the_difference_and_keeps_the_norm() -> None:
    image, target, baseline = embedding(2), caption(5), caption(6)
    found = text_diff(image, target, baseline, 0.4, 5).vectors.reshape(2, 5, DIM)
    z_d = target.pooled - baseline.pooled
    for row in range(2):
        z_i = image.vectors[row]
        whole = angle(z_i, z_d[0])
        assert torch.equal(found[row, 0], z_i)
        for frame in range(1, 5):
            turned = angle(z_i, found[row, frame])
            torch.testing.assert_close(turned, 0.4 * frame / 4 * whole, atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(turned + angle(found[row, frame], z_d[0]), whole, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[row].norm(dim=-1), z_i.norm().expand(5))


def test_without_a_baseline_the_target_itself_is_the_direction() -> None:
    image, target = embedding(), caption(5)
    found = text_diff(image, target, None, 1.0, 1).vectors
    expected = target.pooled / target.pooled.norm() * image.vectors.norm()
    torch.testing.assert_close(found, expected)
    assert (text_diff(image, target, caption(6), 1.0, 1).vectors - found).abs().max() > 0.1


def test_one_frame_is_the_whole_change() -> None:
    image, target, baseline = embedding(), caption(5), caption(6)
    last = text_diff(image, target, baseline, 0.3, 4).vectors[-1:]
    torch.testing.assert_close(text_diff(image, target, baseline, 0.3, 1).vectors, last)


def test_what_a_text_diff_refuses() -> None:
    image, target = embedding(), caption(5)
    for found, message in [
        ((image, caption(5, space=OTHER), None, 0.3, 3), "target_text is in the CLIP space 'somebody/else'"),
        ((image, target, caption(5, space=OTHER), 0.3, 3), "baseline_text is in the CLIP space 'somebody/el"),
        ((image, target, None, 1.5, 3), "theta_max is 1.5; expected 0 to 1"),
        ((image, target, None, 0.5, 0), "frames is 0; expected at least 1"),
        ((image, target, caption(5), 0.5, 3), "target_text, baseline_text: they mean the same to this CLIP"),
        (
            (embedding(2), caption(5, rows=3), None, 0.5, 3),
            "batch sizes do not match: embedding 2, target_text 3",
        ),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            text_diff(*found)


def test_a_diff_of_embeddings_is_a_text_diff_of_them() -> None:
    image, target, baseline = embedding(2), caption(5), caption(6)
    as_image = {text.pooled.data_ptr(): Embedding(text.pooled, image.space) for text in (target, baseline)}
    one, other = as_image.values()
    for rest in ((0.4, 5), (0.3, 3, "smooth")):
        expected = text_diff(image, target, baseline, *rest).vectors
        assert torch.equal(embedding_diff(image, one, other, *rest).vectors, expected)
    alone = text_diff(image, target, None, 0.4, 5).vectors
    assert torch.equal(embedding_diff(image, one, None, 0.4, 5).vectors, alone)
    assert not torch.equal(alone, text_diff(image, target, baseline, 0.4, 5).vectors)
    for arguments, message in [
        ((image, embedding(space=OTHER), None), "target_embedding is in the CLIP space 'somebody/else'"),
        ((image, one, embedding(space=OTHER)), "baseline_embedding is in the CLIP space 'somebody/else'"),
        ((image, one, one), "target_embedding, baseline_embedding: they mean the same to this CLIP"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            embedding_diff(*arguments, 0.5, 3)
