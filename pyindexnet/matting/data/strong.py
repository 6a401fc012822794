# SPDX-License-Identifier: Apache-2.0
"""Strong augmentation ([Thesis] 5.4.2): of the foreground (AF), of foreground and background (AFB), of the composite (AC).

An operation is drawn once, with everything random in it, and then applied to one or several pictures. A linear operation on the
composite is applied to foreground and background instead: their composite is what the operation makes of the old one (clipping
apart), and alpha and both colours stay exact. Poisson noise counts as linear here and is not: it grows with the
square root of the colour, so that where alpha is fractional the composite's noise is not quite that of a photograph; the
composition equation still holds. Any other operation on the composite breaks that equation: the item says so, and a trainer
that uses it must make a new alpha (the thesis: the network's own prediction for the picture before).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pyindexnet.matting.data.colour import shift_hsv
from pyindexnet.nn.arguments import require_one_of

#: Linear pixel-wise, non-linear pixel-wise, region-wise: the three categories of [Thesis] 5.4.2.
KINDS = ("linear", "nonlinear", "region")
Transform = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Operation:
    """A drawn operation on (H, W, 3) float32 RGB in [0, 1]; the result is in [0, 1] too."""

    name: str
    kind: str
    transform: Transform

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        return np.clip(self.transform(picture), 0, 1).astype(np.float32, copy=False)


@dataclass(frozen=True)
class Strong:
    """Probabilities of [Thesis] 5.5.3 for AF + AFB + AC; AF or AFB alone is run with 0.5.

    Attributes:
        foreground, both: of AF and AFB, of which at most one happens to an item.
        composite: of AC, where neither happened.
        kinds: what AF and AFB draw from.
        composite_kinds: what AC draws from. More than "linear" needs a trainer that makes new labels (``relabel`` of an item).
    """

    foreground: float = 0.25
    both: float = 0.25
    composite: float = 0.1
    kinds: tuple[str, ...] = KINDS
    composite_kinds: tuple[str, ...] = ("linear",)

    def __post_init__(self) -> None:
        for name in ("foreground", "both", "composite"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Strong: {name} must be in [0, 1], got {getattr(self, name)}")
        if self.foreground + self.both > 1:
            raise ValueError(f"Strong: foreground + both must be at most 1, got {self.foreground + self.both}")
        for name in ("kinds", "composite_kinds"):
            if not getattr(self, name):
                raise ValueError(f"Strong: {name} must name one of {', '.join(KINDS)}, got none")
            for kind in getattr(self, name):
                require_one_of("Strong", name, kind, KINDS)


def apply_strong(
    strong: Strong, foreground: np.ndarray, background: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, Operation | None]:
    """Draw and apply.

    Args:
        foreground, background: (H, W, 3) float32 in [0, 1], same size.
    Returns:
        Foreground, background, and the operation that is still to be applied to their composite, None where there is none.
    """
    shape = foreground.shape
    choice = rng.random()
    if choice < strong.foreground:
        return draw_operation(rng, shape, strong.kinds)(foreground), background, None
    if choice < strong.foreground + strong.both:
        first, second = draw_operation(rng, shape, strong.kinds), draw_operation(rng, shape, strong.kinds)
        return first(foreground), second(background), None
    if rng.random() < strong.composite:
        operation = draw_operation(rng, shape, strong.composite_kinds)
        if operation.kind != "linear":
            return foreground, background, operation
        return operation(foreground), operation(background), None
    return foreground, background, None


def draw_operation(rng: np.random.Generator, shape: tuple[int, ...], kinds: Sequence[str] = KINDS) -> Operation:
    """A random operation of one of ``kinds`` for pictures of ``shape`` (H, W, 3), each name equally likely."""
    names = [name for name, (kind, _) in OPERATIONS.items() if kind in kinds]
    return make_operation(names[rng.integers(len(names))], rng, shape)


def make_operation(name: str, rng: np.random.Generator, shape: tuple[int, ...]) -> Operation:
    """The operation ``name`` of :data:`OPERATIONS` with random parameters."""
    kind, draw = OPERATIONS[name]
    return Operation(name, kind, draw(rng, shape))


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def _contrast(rng: np.random.Generator, shape: tuple[int, ...]) -> Transform:
    gain = np.float32(rng.uniform(0.6, 1.5))
    return lambda x: 0.5 + gain * (x - 0.5)


def _brightness(rng: np.random.Generator, shape: tuple[int, ...]) -> Transform:
    shift = np.float32(rng.uniform(-0.2, 0.2))
    return lambda x: x + shift


def _multiply(rng: np.random.Generator, shape: tuple[int, ...]) -> Transform:
    gains = rng.uniform(0.7, 1.3, 3).astype(np.float32)
    return lambda x: x * gains


def _inversion(rng: np.random.Generator, shape: tuple[int, ...]) -> Transform:
    inverted = np.zeros(3, bool)
    inverted[rng.permutation(3)[: rng.integers(1, 4)]] = True
    return lambda x: np.where(inverted, 1 - x, x)


def _shuffling(rng: np.random.Generator, shape: tuple[int, ...]) -> Transform:
    # The five orders that change something.
    order = [(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)][rng.integers(5)]
    return lambda x: x[..., list(order)]


def _gaussian_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Transform:
    noise = np.float32(rng.uniform(0.01, 0.06)) * _normal(rng, shape)
    return lambda x: x + noise


def _poisson_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Transform:
    # The normal limit of a count whose full scale is 200 to 2000 photons.
    noise = _normal(rng, shape) / np.float32(np.sqrt(rng.uniform(200, 2000)))
    return lambda x: x + np.sqrt(x) * noise


def _salt_and_pepper(rng: np.random.Generator, shape: tuple[int, ...]) -> Transform:
    share = rng.uniform(0.002, 0.03)
    level = rng.random((*shape[:2], 1), dtype=np.float32)
    return lambda x: np.where(level < share / 2, np.float32(0), np.where(level > 1 - share / 2, np.float32(1), x))


def _dropout(rng: np.random.Generator, shape: tuple[int, ...]) -> Transform:
    cell = int(rng.integers(1, 9))
    grid = -(-shape[0] // cell), -(-shape[1] // cell)
    kept = (rng.random(grid) >= rng.uniform(0.01, 0.05)).repeat(cell, 0).repeat(cell, 1)[: shape[0], : shape[1], None]
    return lambda x: x * kept


def _cloud(rng: np.random.Generator, shape: tuple[int, ...]) -> Transform:
    veil = np.zeros(shape[:2], np.float32)
    for octave in range(1, 6):
        coarse = rng.random((2**octave, 2**octave), dtype=np.float32)
        veil += cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC) / 2**octave
    return _veiled(np.clip(rng.uniform(0.5, 1.5) * (veil - veil.mean()) + rng.uniform(0.1, 0.4), 0, 0.8))


def _snow(rng: np.random.Generator, shape: tuple[int, ...]) -> Transform:
    flakes = (rng.random(shape[:2], dtype=np.float32) < rng.uniform(0.001, 0.006)).astype(np.float32)
    blurred = cv2.GaussianBlur(flakes, (0, 0), rng.uniform(0.6, 1.8))
    return _veiled(np.clip(blurred * (rng.uniform(0.7, 1) / max(float(blurred.max()), 1e-6)), 0, 1))


def _veiled(opacity: np.ndarray) -> Transform:
    white = opacity[..., None].astype(np.float32)
    return lambda x: x + white * (1 - x)


def _gamma_contrast(rng: np.random.Generator, shape: tuple[int, ...]) -> Transform:
    gamma = np.float32(2 ** rng.uniform(-1, 1))
    return lambda x: x**gamma


def _hue_and_saturation(rng: np.random.Generator, shape: tuple[int, ...]) -> Transform:
    hue, saturation = rng.uniform(-40, 40), rng.uniform(-0.3, 0.3)
    return lambda x: shift_hsv(x, hue, saturation, 0)


def _equalization(rng: np.random.Generator, shape: tuple[int, ...]) -> Transform:
    def equalize(x: np.ndarray) -> np.ndarray:
        luma = cv2.cvtColor(np.rint(255 * x).astype(np.uint8), cv2.COLOR_RGB2YCrCb)
        luma[..., 0] = cv2.equalizeHist(luma[..., 0])
        return cv2.cvtColor(luma, cv2.COLOR_YCrCb2RGB) / np.float32(255)

    return equalize


def _gaussian_blur(rng: np.random.Generator, shape: tuple[int, ...]) -> Transform:
    sigma = rng.uniform(0.5, 2)
    return lambda x: cv2.GaussianBlur(x, (0, 0), sigma)


def _jpeg_compression(rng: np.random.Generator, shape: tuple[int, ...]) -> Transform:
    quality = int(rng.integers(30, 96))

    def compress(x: np.ndarray) -> np.ndarray:
        # OpenCV takes the channels for BGR; JPEG's chroma would change with red and blue exchanged.
        ordered = cv2.cvtColor(np.rint(255 * x).astype(np.uint8), cv2.COLOR_RGB2BGR)
        data = cv2.imencode(".jpg", ordered, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert decoded is not None
        return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB) / np.float32(255)

    return compress


#: The operations that [Thesis] 5.5.3 names; their strengths, which it does not print, are ours.
OPERATIONS: dict[str, tuple[str, Callable[[np.random.Generator, tuple[int, ...]], Transform]]] = {
    "contrast": ("linear", _contrast),
    "brightness": ("linear", _brightness),
    "multiply": ("linear", _multiply),
    "inversion": ("linear", _inversion),
    "shuffling": ("linear", _shuffling),
    "gaussian_noise": ("linear", _gaussian_noise),
    "poisson_noise": ("linear", _poisson_noise),
    "salt_and_pepper": ("linear", _salt_and_pepper),
    "dropout": ("linear", _dropout),
    "cloud": ("linear", _cloud),
    "snow": ("linear", _snow),
    "gamma_contrast": ("nonlinear", _gamma_contrast),
    "hue_and_saturation": ("nonlinear", _hue_and_saturation),
    "equalization": ("nonlinear", _equalization),
    "gaussian_blur": ("region", _gaussian_blur),
    "jpeg_compression": ("region", _jpeg_compression),
}
