"""What a checkpoint is, by its keys and shapes, never by its name."""

from __future__ import annotations

from ..stages import StageName
from .files.weight_source import WeightSource
from .layouts.dalle2_decoder import DALLE2_DECODER_LAYOUTS
from .layouts.dalle2_pytorch import DALLE2_PRIOR_LAYOUT
from .layouts.diffusers import DIFFUSERS_LAYOUTS
from .layouts.eclipse import ECLIPSE_LAYOUTS
from .layouts.glide import GLIDE_LAYOUTS
from .layouts.kandinsky import KANDINSKY_LAYOUTS
from .layouts.karlo import KARLO_LAYOUTS
from .layouts.layout import HasKeys, Layout
from .layouts.multilingual_clip import MULTILINGUAL_CLIP_LAYOUTS
from .layouts.openai_clip import OPENAI_CLIP_LAYOUTS
from .layouts.other_systems import recognise_other_system
from .layouts.transformers_clip import TRANSFORMERS_CLIP_LAYOUTS

LAYOUTS: tuple[Layout, ...] = (
    *KARLO_LAYOUTS,
    *DIFFUSERS_LAYOUTS,
    *KANDINSKY_LAYOUTS,
    *ECLIPSE_LAYOUTS,
    *OPENAI_CLIP_LAYOUTS,
    *TRANSFORMERS_CLIP_LAYOUTS,
    *MULTILINGUAL_CLIP_LAYOUTS,
    DALLE2_PRIOR_LAYOUT,
    *DALLE2_DECODER_LAYOUTS,
    *GLIDE_LAYOUTS,
)
"""Every layout that is known. Several may match a source only if they are of different stages."""


def identify(source: WeightSource, expect: StageName | None = None) -> Layout:
    """The layout of a source.

    Args:
        expect: which of its stages is wanted, where a source holds several; None takes the first known.

    Raises:
        ValueError: see :func:`identify_all`.
    """
    found = identify_all(source)
    return next((layout for layout in found if layout.stage == expect), found[0])


def identify_all(source: WeightSource) -> list[Layout]:
    """The layouts of all stages that a source holds: GLIDE's files hold a text encoder besides.

    Raises:
        ValueError: none matches; says what the file is and where it belongs, if it is of a known other kind.
    """
    found = [layout for layout in LAYOUTS if layout.matches(source)]
    if len({layout.stage for layout in found}) < len(found):
        raise RuntimeError(f"{source.path} matches {' and '.join(layout.name for layout in found)}")
    if found:
        return found
    other = recognise_other_system(source)
    if other is not None:
        raise ValueError(f"{source.path}: is {other}")
    some = ", ".join(list(source.shapes)[:3])
    known = "; ".join(layout.name for layout in LAYOUTS)
    raise ValueError(
        f"{source.path}: is not a checkpoint that unclip knows: {len(source.shapes)} tensors ({some}, …) of "
        f"no known layout. {_nearly(source)}Known are unclip's own files and: {known}"
    )


def _nearly(source: WeightSource) -> str:
    """What a source would be with one tensor more: files that were cut or changed are told by it."""
    near = [
        (len(layout.matches.names), layout.name, missing[0])
        for layout in LAYOUTS
        if isinstance(layout.matches, HasKeys)
        and len(missing := layout.matches.missing(source)) == 1 < len(layout.matches.names)
    ]
    if not near:
        return ""
    _, name, missing_name = max(near)
    return f"If it is a {name}, it lacks {missing_name}: download it again. "
