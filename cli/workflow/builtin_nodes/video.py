"""ComfyUI's CreateVideo and SaveVideo, as in its nodes_video.py, through PyAV, which ComfyUI itself uses."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ....core.writing import written_whole
from ...extras import pyav
from ..specs import DYNAMIC_COMBO
from .folders import place, report, write_next
from .save_image import PREFIX_TOOLTIP, WORKFLOW_INPUTS

AUDIO_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
# As FFmpeg numbers them: BT.709, the transfer function of sRGB, and values from 16 to 235.
BT709 = 1
COLOURS = {"color_primaries": BT709, "color_trc": 13, "colorspace": BT709, "color_range": 1}


@dataclass(frozen=True)
class Video:
    """Pictures that follow each other, and sound.

    Attributes:
        images: IMAGE [B, H, W, C].
        frame_rate: pictures a second.
        audio: ComfyUI's AUDIO: ``waveform`` [1, channels, samples] in −1..1 and ``sample_rate``.
        bit_depth: 8 or 10, of the colours in the file.
    """

    images: Tensor
    frame_rate: Fraction
    audio: Mapping[str, Any] | None = None
    bit_depth: int = 8


class CreateVideo:
    """ComfyUI's CreateVideo: a batch of pictures as a video."""

    CATEGORY = "image/video"
    DESCRIPTION = "Makes a video of pictures."
    RETURN_TYPES = ("VIDEO",)
    FUNCTION = "create"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The pictures of the video."}),
                "fps": ("FLOAT", {"default": 30.0, "min": 1.0, "max": 120.0, "step": 1.0}),
            },
            "optional": {
                "audio": ("AUDIO", {"tooltip": "Its sound."}),
                "bit_depth": ("INT", {"default": 8, "min": 8, "max": 10, "step": 2}),
            },
        }

    def create(
        self, images: Tensor, fps: float, audio: Mapping[str, Any] | None = None, bit_depth: int = 8
    ) -> tuple[Video]:
        """A VIDEO of IMAGE [B, H, W, C]; nothing is encoded yet."""
        return (Video(images, Fraction(fps), audio, bit_depth),)


def _choice(inputs: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """A declaration of choices, each with the inputs that it brings."""
    options = [{"key": key, "inputs": {"optional": brought}} for key, brought in inputs.items()]
    return DYNAMIC_COMBO, {"options": options}


def _codec() -> tuple[str, dict[str, Any]]:
    custom = {
        "crf": ("FLOAT", {"default": 23.0, "min": 0.0, "max": 51.0, "step": 1.0}),
        "color_space": (["auto", "sRGB"], {"default": "auto"}),
    }
    return _choice({"auto": {}, "h264": {"encoding": _choice({"auto": {}, "re-encode": custom})}})


class SaveVideo:
    """ComfyUI's SaveVideo: an MP4 file (H.264, AAC) that carries the workflow it comes from.

    What a container, a codec and an encoding mode bring stands behind each of them since ComfyUI 0.33
    (``format.codec.encoding.crf``). The ``codec`` of its own is that of the versions before.
    """

    CATEGORY = "image/video"
    DESCRIPTION = "Saves a video as an MP4 file with its workflow."
    RETURN_TYPES = ("VIDEO",)
    RETURN_NAMES = ("video",)
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "video": ("VIDEO", {"tooltip": "The video to save."}),
                "filename_prefix": ("STRING", {"default": "video/ComfyUI", "tooltip": PREFIX_TOOLTIP}),
                "format": _choice({"auto": {"codec": _codec()}, "mp4": {"codec": _codec()}}),
            },
            "optional": {"codec": _codec()},
            "hidden": WORKFLOW_INPUTS,
        }

    def save(
        self,
        video: Video,
        filename_prefix: str,
        format: str,
        codec: str = "auto",
        prompt: dict | None = None,
        extra_pnginfo: dict | None = None,
        **brought: Any,
    ) -> dict[str, Any]:
        """Write a VIDEO as ``prefix_00001_.mp4`` and pass it on; reports the name.

        ``brought`` are the inputs that the choices bring, such as ``format.codec``.

        Raises:
            ValueError: PyAV is not installed, or H.264 cannot hold the size.
        """
        height, width = video.images.shape[1:3]
        if height % 2 or width % 2:
            raise ValueError(
                f"the pictures have {width}×{height} pixels; a video (H.264) needs an even width and height. "
                "Scale them first, for example with ImageScale."
            )
        # The older input counts only where the newer one is absent.
        codec_input = "format.codec" if "format.codec" in brought else "codec"
        crf = brought.get(f"{codec_input}.encoding.crf")
        where = place(filename_prefix, "output", width, height)
        given = {"prompt": prompt, **(extra_pnginfo or {})}
        documents = {key: each for key, each in given.items() if each is not None}

        def write(path: Path) -> None:
            with written_whole(path, new=True) as unfinished:
                write_mp4(video, unfinished, documents, crf)

        path, _ = write_next(where, ".mp4", write)
        reported = report(path, where.subfolder, "output")
        return {"ui": {"images": [reported], "animated": [True]}, "result": (video,)}


def write_mp4(video: Video, path: Path, documents: Mapping[str, Any], crf: float | None = None) -> None:
    """Encode a video; ``documents`` are written into the file as JSON, by their names.

    Args:
        crf: x264's constant rate factor; higher makes the file smaller and the pictures worse.

    Raises:
        ValueError: PyAV is not installed.
    """
    av = pyav("saving videos")
    rate = Fraction(round(video.frame_rate * 1000), 1000)
    deep = video.bit_depth >= 10
    options = {"movflags": "use_metadata_tags+faststart"}  # else players and pages see no other metadata
    with av.open(str(path), "w", format="mp4", options=options) as file:
        for key, document in documents.items():
            file.metadata[key] = json.dumps(document)
        stream = file.add_stream("h264", rate=rate)
        stream.height, stream.width = video.images.shape[1:3]
        stream.pix_fmt = "yuv420p10le" if deep else "yuv420p"
        stream.options = {} if crf is None else {"crf": str(crf)}
        for name, value in COLOURS.items():
            setattr(stream.codec_context, name, value)
        sound = _add_sound(file, video, rate)  # all streams are there before the first packet
        white, kind, pixels = (65535, np.uint16, "rgb48le") if deep else (255, np.uint8, "rgb24")
        for image in video.images:
            values = (image[..., :3].float() * white).clamp(0, white).cpu().numpy().astype(kind)  # [H, W, 3]
            frame = av.VideoFrame.from_ndarray(values, format=pixels)
            # Untold, FFmpeg converts by BT.601, and players take a picture of this kind for BT.709.
            file.mux(stream.encode(frame.reformat(format=stream.pix_fmt, dst_colorspace=BT709)))
        file.mux(stream.encode(None))
        if sound is not None:
            audio, samples = sound
            file.mux(audio.encode(samples))
            file.mux(audio.encode(None))


def _add_sound(file: Any, video: Video, rate: Fraction) -> tuple[Any, Any] | None:
    """The stream and the frame of a video's sound, as long as its pictures."""
    if not video.audio:
        return None
    sample_rate = int(video.audio["sample_rate"])
    samples = math.ceil(sample_rate / rate * len(video.images))
    waveform = video.audio["waveform"][0, :, :samples]  # [channels, samples]
    layout = AUDIO_LAYOUTS.get(len(waveform), "stereo")
    frame = pyav("saving videos").AudioFrame.from_ndarray(
        waveform.float().cpu().contiguous().numpy(), format="fltp", layout=layout
    )
    frame.sample_rate, frame.pts = sample_rate, 0
    return file.add_stream("aac", rate=sample_rate, layout=layout), frame
