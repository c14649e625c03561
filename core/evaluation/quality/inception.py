"""The Inception v3 network whose features the Fréchet inception distance compares, from a person's file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception

from ...formats.files.source import open_weights

SIZE = 299
FEATURES = 2048

Variant = Literal["fid", "torchvision"]
_CLASSES: dict[int, Variant] = {1008: "fid", 1000: "torchvision"}
_TRAINING_ONLY = "AuxLogits."
_COUNTER = ".num_batches_tracked"


class InceptionFeatures(nn.Module):
    """Pictures → the features before Inception's classifier, the activations "pool3".

    Attributes:
        variant: ``"fid"`` is TensorFlow's network of 2015, by which FID is defined; ``"torchvision"`` the one
            that torchvision trained, whose distances are not those that papers report.
    """

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant = variant
        blocks = _FID_BLOCKS if variant == "fid" else None
        self.network = inception.Inception3(1000, False, False, blocks, init_weights=False)
        if variant == "fid":
            self.network.Mixed_7c = _MaxPooledE(1280 + 768)
        self.network.fc = nn.Identity()

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, 3, SIZE, SIZE] in 0..1 (see :func:`fit_inception`) → [B, FEATURES]."""
        return self.network(2 * pictures - 1)


def fit_inception(picture: Tensor) -> Tensor:
    """[3, H, W] in 0..1 → [3, SIZE, SIZE]: all of it, bilinear without antialias, as pytorch-fid does."""
    return F.interpolate(picture[None], (SIZE, SIZE), mode="bilinear", align_corners=False)[0]


def load_inception(path: Path) -> InceptionFeatures:
    """Inception v3 from a state dict in torchvision's layout.

    Known are pytorch-fid's weights (``pt_inception-2015-12-05-6726825d.pth``, 1008 classes) and torchvision's
    own (``inception_v3_google-0cc3c7bd.pth``, 1000 classes), told by their classifier.

    Returns:
        In evaluation mode, float32, without gradients.

    Raises:
        ValueError: no file of weights, another network, or a tensor that is missing, left over or misshapen.
    """
    source = open_weights(path)
    classes = source.shapes.get("fc.weight", (0,))[0]
    if classes not in _CLASSES or "Mixed_7c.branch_pool.conv.weight" not in source.shapes:
        some = ", ".join(list(source.shapes)[:3]) or "nothing"
        raise ValueError(
            f"{path}: is no Inception v3 network in torchvision's layout (found {some} …); expected the "
            f"weights of pytorch-fid, pt_inception-2015-12-05-6726825d.pth, or those of torchvision, "
            f"inception_v3_google-0cc3c7bd.pth"
        )
    network = InceptionFeatures(_CLASSES[classes])
    wanted = {name: tuple(each.shape) for name, each in network.network.state_dict().items()}
    there = {
        name: shape
        for name, shape in source.shapes.items()
        if not name.startswith((_TRAINING_ONLY, "fc.")) and not name.endswith(_COUNTER)
    }
    for name in sorted({each for each in wanted if not each.endswith(_COUNTER)} | set(there)):
        if wanted.get(name) != there.get(name):
            found, expected = (_said(shapes.get(name)) for shapes in (there, wanted))
            raise ValueError(
                f"{path}: {name} is {found}, expected {expected} in Inception v3. Get the original file"
            )
    weights = {name: tensor.float() for name, tensor in source.tensors(there)}
    network.network.load_state_dict(weights, strict=False)  # but for the counters, which nothing reads
    return network.eval().requires_grad_(False)


def _said(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else str(list(shape))


def _inner_mean(x: Tensor) -> Tensor:
    """TensorFlow's average leaves the padding out of the count."""
    return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)


def _max(x: Tensor) -> Tensor:
    """So the last block of the network of 2015 pools, by which FID is defined."""
    return F.max_pool2d(x, kernel_size=3, stride=1, padding=1)


def _pooled_by(block: type[nn.Module], pool: Callable[[Tensor], Tensor]) -> type[nn.Module]:
    """A block of torchvision's whose last branch, which pools, pools otherwise."""

    class Pooled(block):  # type: ignore[valid-type, misc]
        def _forward(self, x: Tensor) -> list[Tensor]:
            *others, _ = super()._forward(x)
            return [*others, self.branch_pool(pool(x))]

    return Pooled


_MaxPooledE = _pooled_by(inception.InceptionE, _max)
_FID_BLOCKS: list[Callable[..., nn.Module]] = [
    inception.BasicConv2d,
    _pooled_by(inception.InceptionA, _inner_mean),
    inception.InceptionB,
    _pooled_by(inception.InceptionC, _inner_mean),
    inception.InceptionD,
    _pooled_by(inception.InceptionE, _inner_mean),
    inception.InceptionAux,
]
