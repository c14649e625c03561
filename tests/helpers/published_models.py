"""Kandinsky and Karlo as ``unclip download`` lays them out, with small networks of random weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from . import kandinsky_files, karlo

PRIOR_22, PRIOR_21 = "kandinsky-2-2-prior", "kandinsky-2-1-prior"
KANDINSKY_22 = {
    "kandinsky-2-2-decoder": "2.2",
    "kandinsky-2-2-decoder-inpaint": "2.2 inpaint",
    "kandinsky-2-2-controlnet-depth": "2.2 depth",
}
KANDINSKY_21 = {"kandinsky-2-1": "2.1", "kandinsky-2-1-inpaint": "2.1 inpaint"}
DECODERS = {**KANDINSKY_22, **KANDINSKY_21}
KANDINSKY_SIDE = 128
"""Pixels of the pictures that these decoders make by themselves."""


def write_prior(folder: Path) -> Path:
    """Kandinsky's prior with both towers of CLIP, of 2.1 and 2.2 alike."""
    return karlo.save_as_published(karlo.tiny_kandinsky_prior(), folder)


def write_decoder(folder: Path) -> Path:
    """The decoder that is published under the folder's name."""
    kind = DECODERS[folder.name]
    if folder.name in KANDINSKY_21:
        return kandinsky_files.save_21(kandinsky_files.tiny_21(kind), folder)
    kandinsky_files.tiny_22(kind).save_pretrained(folder)
    return folder


def write_operator(file: Path) -> Path:
    """An operator of pOps: a prior that was trained on, without its statistics."""
    state = karlo.tiny_prior(seed=40).state_dict()
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: value for name, value in state.items() if not name.startswith("clip_")}, file)
    return file


def write_kandinsky(folder: Path, decoder: str = "kandinsky-2-2-decoder") -> Path:
    """Prior and decoder in one folder."""
    write_prior(folder / (PRIOR_21 if decoder in KANDINSKY_21 else PRIOR_22))
    write_decoder(folder / decoder)
    return folder


def write_karlo(folder: Path) -> Path:
    """Karlo with both towers: the image encoder is published in another folder, which has no prior."""
    karlo.save_as_published(karlo.tiny_pipeline(), folder)
    karlo.tiny_image_encoder().save_pretrained(folder / "image_encoder")
    return folder


def write_karlo_variations(folder: Path, whole: Path) -> Path:
    """Karlo for variations, of the parts of a whole one: without the prior."""
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("prior*"))
    return folder
