"""Operators of pOps (pOpsPaper/operators): a Kandinsky 2.2 prior trained on, as whole or partial weights.

A file has the names of diffusers' ``PriorTransformer`` without its statistics, which stayed as they were.
"""

from __future__ import annotations

from pathlib import Path

from ..networks.diffusion_prior import DiffusionPrior
from ..stages import PriorStage
from .files.source import open_weights
from .mapping.assembling import assemble
from .mapping.keymap import Rule, read_tensors
from .mapping.lora_rules import diffusers_rules_of, written_out

_STATISTICS = (Rule("clip_mean", None), Rule("clip_std", None))


def load_operator(path: str | Path, prior: PriorStage) -> PriorStage:
    """An operator on embeddings: the prior with the weights of a file in the place of its own.

    What the file lacks (whole layers, the statistics, the schedule) is the prior's. The prior itself stays as
    it is.

    Args:
        prior: a diffusion prior in diffusers' layout whose tokens are as wide as its embeddings: Kandinsky
            2.2's.

    Returns:
        A stage on the CPU, in the type of the prior's weights.

    Raises:
        ValueError: another prior, no such file, or weights that are not this prior's; names file and key.
    """
    network = prior.network
    if not isinstance(network, DiffusionPrior) or network.config.text_dim != network.config.dim:
        raise ValueError(
            f"prior: {prior.source or 'this prior'} cannot run an operator; operators of pOps are made of "
            f"Kandinsky 2.2's diffusion prior. Connect that one"
        )
    source = open_weights(path)
    state = network.state_dict()
    rules: list[Rule] = []
    names: set[str] = set()
    found = {key.rpartition(".")[0] for key in source.shapes} | set(source.shapes)
    for rule, target, sources in written_out(diffusers_rules_of(network), network.config.layers):
        if any(each in found for each in sources):
            rules.append(Rule(sources, target, rule.transform))
            names |= {name for name in state if name == target or name.startswith(f"{target}.")}
    if not rules:
        some = ", ".join(list(source.shapes)[:3])
        raise ValueError(
            f"{source.path}: is no operator of pOps: found {some}, expected the layers of a prior in "
            f"diffusers' names, such as transformer_blocks.0.attn1.to_q.weight. Choose a learned_prior.pth"
        )
    expected = {name: tuple(state[name].shape) for name in state if name in names}
    tensors = {**state, **read_tensors(source, [*rules, *_STATISTICS], expected)}
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    config, dtype = network.config, network.query.dtype
    made = assemble(lambda: DiffusionPrior(config), shapes, tensors.items(), source.path, dtype=dtype)
    return PriorStage(made, prior.space, prior.diffusion, str(source.path))
