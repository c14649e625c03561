"""Arithmetic of CLIP embeddings: great circles, mixtures and text diffs (unCLIP 2204.06125, section 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import require_at_least
from .batches import common_batch
from .space import Embedding, EmbeddingSpace, TextFeatures, require_plain_text, require_same_space

Ease = Literal["linear", "smooth", "ease-in", "ease-out"]
EASES: tuple[Ease, ...] = get_args(Ease)

# Below this sine of the angle two vectors count as (anti)parallel: rounding of float32 decides their plane.
_PARALLEL = 1e-6


def slerp(a: Tensor, b: Tensor, t: Tensor | float) -> Tensor:
    """Spherical interpolation from a to b along their great circle; norms are interpolated linearly.

    The angle θ is that of the whole vectors, cos θ = a·b / (‖a‖·‖b‖) over the last axis, and the direction
    turns by t·θ: with ``w`` the unit vector at a right angle to a in the plane of both, it is
    cos(tθ)·a/‖a‖ + sin(tθ)·w (equal to sin((1−t)θ)/sin θ·a + sin(tθ)/sin θ·b, without its division by zero).

    Never NaN: parallel vectors keep their direction. Between opposite ones every great circle is a shortest
    way; it goes through the coordinate axis that is most nearly at a right angle to a, the first of equals. A
    zero vector has no direction and takes that of the other.

    Args:
        a, b: [..., D], broadcast against each other. Half precision is computed in float32.
        t: within 0..1; a number, or a tensor that broadcasts against the leading axes [...]. 0 gives a and 1
            gives b to the bit.

    Raises:
        ValueError: vectors of different length, or t outside 0..1.
    """
    if a.shape[-1:] != b.shape[-1:] or a.ndim == 0:
        raise ValueError(
            f"slerp: found shapes {tuple(a.shape)} and {tuple(b.shape)}; expected vectors of the same length "
            f"along the last axis"
        )
    dtype = torch.promote_types(a.dtype, b.dtype)
    compute = torch.promote_types(dtype, torch.float32)
    t = torch.as_tensor(t, dtype=compute, device=a.device)[..., None]  # [..., 1]
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"slerp: found t from {t.min():g} to {t.max():g}, expected values within 0..1")
    first, second = a.to(compute), b.to(compute)

    length_a, length_b = (v.norm(dim=-1, keepdim=True) for v in (first, second))  # [..., 1]
    u, v = _direction(first, length_a), _direction(second, length_b)  # [..., D]
    u, v = torch.where(length_a == 0, v, u), torch.where(length_b == 0, u, v)
    # From both chords rather than from acos, which loses half of the digits near 0 and π.
    angle = 2 * torch.atan2((u - v).norm(dim=-1, keepdim=True), (u + v).norm(dim=-1, keepdim=True))
    w = v - (u * v).sum(dim=-1, keepdim=True) * u
    sine = w.norm(dim=-1, keepdim=True)
    w = torch.where(sine < _PARALLEL, _perpendicular(u), _direction(w, sine))
    turned = torch.cos(t * angle) * u + torch.sin(t * angle) * w
    result = torch.lerp(*torch.broadcast_tensors(length_a, length_b, t)) * turned
    result = torch.where(t == 0, first, torch.where(t == 1, second, result))
    return result.to(dtype)


def ease(t: Tensor, curve: Ease = "linear") -> Tensor:
    """A curve from (0, 0) to (1, 1) at t in 0..1.

    ``linear`` t; ``smooth`` 3t² − 2t³ (smoothstep: slow at both ends); ``ease-in`` t² (slow at the start);
    ``ease-out`` 1 − (1−t)² (slow at the end).
    """
    if curve == "linear":
        return t
    if curve == "smooth":
        return t * t * (3 - 2 * t)
    if curve == "ease-in":
        return t * t
    if curve == "ease-out":
        return 1 - (1 - t) ** 2
    raise ValueError(f"ease: found {curve!r}, expected one of {', '.join(EASES)}")


def positions(frames: int, curve: Ease = "linear") -> Tensor:
    """[frames] float32 from 0 to 1, both included, spaced by a curve; a single one is 1, the end."""
    require_at_least(1, frames=frames)
    return ease(torch.linspace(0, 1, frames) if frames > 1 else torch.ones(1), curve)


def slerp_frames(first: Tensor, second: Tensor, t: Tensor) -> Tensor:
    """[1 or B, D] and [1 or B, D] at the positions t [N] → [B·N, D]: all positions of pair 0, of pair 1, …"""
    return slerp(first[:, None], second[:, None], t.to(first.device)).flatten(0, 1)


def interpolate(first: Embedding, second: Embedding, frames: int, curve: Ease = "linear") -> Embedding:
    """Embeddings on the great circle from one to the other, see :func:`slerp`.

    Args:
        first, second: [1 or B, D], of one space; B pairs are interpolated one after the other.
        frames: per pair, at least 2: both ends are among them.

    Returns:
        [B·frames, D] in the norm convention of the first.

    Raises:
        ValueError: different spaces, unit vectors where raw ones are expected whose length no statistics
            tell, batches that do not match, or fewer than 2 frames.
    """
    require_same_space("second", second.space, first.space)
    common_batch(first=len(first), second=len(second))
    require_at_least(2, "the two ends", frames=frames)
    end = second.in_norm_of(first.space, "second").to(first.vectors.device)
    vectors = slerp_frames(first.vectors, end, positions(frames, curve))  # [B·frames, D]
    return Embedding(vectors, first.space)


Blend = Literal["mean", "sum"]


def blend(
    embeddings: Sequence[Embedding | None], weights: Sequence[float], mode: Blend = "mean"
) -> Embedding:
    """Any number of embeddings in one.

    ``mean``: direction of Σ wᵢ·zᵢ/‖zᵢ‖, norm Σ |wᵢ|·‖zᵢ‖ / Σ |wᵢ|. A negative weight leads away from an
    embedding; two equal weights give the middle of their great circle. ``sum``: Σ wᵢ·zᵢ as it is, as
    Kandinsky's ``interpolate`` mixes pictures and captions; weights usually add up to 1.

    Args:
        embeddings: each [1 or B, D], of one space; None is left out with its weight.
        weights: one for each embedding; of ``mean`` only their ratios count.

    Returns:
        [B, D] in the norm convention of the first that is given.

    Raises:
        ValueError: no embeddings, another number of weights, weights that are not finite or all 0, different
            spaces or batches, unit vectors where raw ones are expected whose length no statistics tell, or
            embeddings that cancel each other.
    """
    if len(embeddings) != len(weights) or all(embedding is None for embedding in embeddings):
        raise ValueError(
            f"blend: found {len(embeddings)} embeddings and {len(weights)} weights; expected at least one "
            f"embedding, and one weight for each"
        )
    # By their numbers, from 1 on, which messages name.
    given = {number: one for number, one in enumerate(embeddings, 1) if one is not None}
    weighed = {number: weights[number - 1] for number in given}
    if not all(map(math.isfinite, weighed.values())) or not any(weighed.values()):
        found = ", ".join(f"weight_{number} {weight:g}" for number, weight in weighed.items())
        raise ValueError(f"{found}: expected numbers of which at least one is not 0")
    first = next(iter(given.values()))
    space, device = first.space, first.vectors.device
    for number, embedding in given.items():
        require_same_space(f"embedding_{number}", embedding.space, space)
    batch = common_batch(**{f"embedding_{number}": len(embedding) for number, embedding in given.items()})
    rows = {
        number: embedding.in_norm_of(space, f"embedding_{number}").to(device, torch.float32)
        for number, embedding in given.items()
    }
    if mode == "sum":
        parts = [weighed[number] * vectors for number, vectors in rows.items()]
        return Embedding(sum(parts[1:], parts[0]).expand(batch, -1), space)
    if mode != "mean":
        raise ValueError(f"mode: found {mode!r}, expected one of {', '.join(get_args(Blend))}")
    total = sum(map(abs, weighed.values()))
    direction = torch.zeros(batch, space.dim, device=device)  # [B, D]
    length = torch.zeros(batch, 1, device=device)
    for number, vectors in rows.items():
        weight = weighed[number]
        direction = direction + weight / total * F.normalize(vectors, dim=-1)
        length = length + abs(weight) / total * vectors.norm(dim=-1, keepdim=True)
    size = direction.norm(dim=-1, keepdim=True)
    if bool((size < _PARALLEL).any()):
        raise ValueError(
            f"{', '.join(f'weight_{number}' for number in given)}: the weighted embeddings cancel each "
            f"other, so that no direction is left; change a weight"
        )
    return Embedding(direction / size * length, space)


def text_diff(
    embedding: Embedding,
    target_text: TextFeatures,
    baseline_text: TextFeatures | None,
    theta_max: float,
    frames: int,
    curve: Ease = "linear",
) -> Embedding:
    """Turn image embeddings by what distinguishes one caption from another (unCLIP, section 3.3).

    z_d = norm(z_t − z_t0) and z_θ = slerp(z_i, z_d, θ) for θ from 0 to ``theta_max``. z_d gets the norm of
    z_i, so that the norm stays also in spaces whose embeddings are not unit vectors.

    Args:
        embedding: [1 or B, D], z_i.
        target_text: 1 or B captions of what the picture is to become, z_t.
        baseline_text: 1 or B captions of what it is, or a neutral one such as "a photo", z_t0; None leaves it
            out (z_d = norm(z_t)).
        theta_max: 0..1, the share of the angle between z_i and z_d at the last frame; the paper's are 0.25 to
            0.5.
        frames: per image; 1 is the last frame alone.

    Returns:
        [B·frames, D]: all frames of image 0, of image 1, …

    Raises:
        ValueError: different spaces or batches, captions without any difference, theta_max outside 0..1.
    """
    texts = {"target_text": target_text, "baseline_text": baseline_text}
    for name, text in texts.items():
        if text is not None:
            require_plain_text(name, text)
    sizes = {name: len(text) for name, text in texts.items() if text is not None}
    batch = common_batch(embedding=len(embedding), **sizes)

    def pooled(text: TextFeatures | None) -> Embedding | None:
        return None if text is None else Embedding(text.expand(batch).pooled, text.space)

    between = {name: pooled(text) for name, text in texts.items()}
    return _turned(embedding, between, theta_max, frames, curve)


def embedding_diff(
    embedding: Embedding,
    target: Embedding,
    baseline: Embedding | None,
    theta_max: float,
    frames: int,
    curve: Ease = "linear",
) -> Embedding:
    """As :func:`text_diff`, by the difference of two image embeddings: what a prior imagines of the captions.

    The paper's z_t − z_t0 is a difference of captions. Where pictures differ along other directions than
    their captions do, most of it leads out of what the decoder has seen.

    Args:
        target, baseline: [1 or B, D], of what the picture is to become and of what it is; None leaves it out.

    Raises:
        ValueError: as ``text_diff``, of ``target_embedding`` and ``baseline_embedding``.
    """
    between = {"target_embedding": target, "baseline_embedding": baseline}
    return _turned(embedding, between, theta_max, frames, curve)


def _turned(
    embedding: Embedding,
    between: Mapping[str, Embedding | None],
    theta_max: float,
    frames: int,
    curve: Ease,
) -> Embedding:
    """The frames from an embedding towards target − baseline, which are given by the names of the inputs."""
    if not 0 <= theta_max <= 1:
        raise ValueError(f"theta_max is {theta_max}; expected 0 to 1, usually 0.25 to 0.5")
    given = {name: each for name, each in between.items() if each is not None}
    for name, each in given.items():
        require_same_space(name, each.space, embedding.space)
    common_batch(embedding=len(embedding), **{name: len(each) for name, each in given.items()})

    vectors = embedding.vectors.float()
    target, *baseline = (each.to(vectors) for each in _in_one_norm(given, embedding.space))  # [1 or B, D]
    difference = target - baseline[0] if baseline else target
    length = difference.norm(dim=-1, keepdim=True)
    if bool((length <= _PARALLEL * target.norm(dim=-1, keepdim=True)).any()):
        raise ValueError(
            f"{', '.join(between)}: they mean the same to this CLIP model, so there is nothing to "
            f"change; use different captions"
        )
    z_d = difference / length * vectors.norm(dim=-1, keepdim=True)  # [B, D]
    return Embedding(slerp_frames(vectors, z_d, theta_max * positions(frames, curve)), embedding.space)


def _in_one_norm(given: Mapping[str, Embedding], space: EmbeddingSpace) -> list[Tensor]:
    """The vectors at length 1 as soon as one of the spaces has them so: only their directions count then, and
    no statistics are needed."""
    unit = any(each.norm == "unit" for each in (space, *(each.space for each in given.values())))
    common = replace(space, norm="unit") if unit else space
    return [each.in_norm_of(common, name) for name, each in given.items()]


def _direction(vector: Tensor, length: Tensor) -> Tensor:
    """The vector at length 1; zero stays zero."""
    return vector / torch.where(length == 0, torch.ones_like(length), length)


def _perpendicular(u: Tensor) -> Tensor:
    """A unit vector at a right angle to each unit vector [..., D], from its smallest component's axis."""
    axis = F.one_hot(u.abs().argmin(dim=-1), u.shape[-1]).to(u)  # [..., D]
    w = axis - (axis * u).sum(dim=-1, keepdim=True) * u
    return _direction(w, w.norm(dim=-1, keepdim=True))
