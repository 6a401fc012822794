# SPDX-License-Identifier: Apache-2.0
"""From an image and a trimap to an alpha matte.

The published conventions: RGB normalised with ImageNet's mean and deviation, then the trimap: trimap/255 (0, 128/255, 1) as the
fourth channel ([IndexNet], [A2U]), or three maps that are 1 where it says background, unknown and foreground ([TMFNet]); a size
that the network does not take is resized, or padded by reflection, and the prediction brought back; known pixels are
overwritten with 0 and 1 at the end.
"""

from __future__ import annotations

import sys
from typing import Literal, get_args

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from pyindexnet.matting.images import to_unit
from pyindexnet.matting.tiling import Plan, Tiling
from pyindexnet.matting.trimaps import BACKGROUND, FOREGROUND, UNKNOWN, quantize_trimap

Align = Literal["resize", "pad"]
ALIGNMENTS: tuple[str, ...] = get_args(Align)
TrimapEncoding = Literal["level", "one_hot"]

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)

#: Of the network's input, unless the caller says otherwise. IndexNet Matting at 512 x 512 with the fused CPU operators
#: takes 17 % less CPU time in channels_last than in contiguous memory (0.92 s against 1.11 s, one thread).
MEMORY_FORMAT = torch.channels_last

#: Channels of the network's input: colours, and the trimap in its form.
ENCODED_CHANNELS = {"level": 4, "one_hot": 6}

#: Network sizes are multiples of the first number plus the second, unless the model has its own ``size_rule``.
SIZE_RULE = (32, 0)


def predict_alpha(
    model: nn.Module,
    image: np.ndarray,
    trimap: np.ndarray,
    *,
    align: Align | None = None,
    memory_format: torch.memory_format = MEMORY_FORMAT,
    tiling: Tiling | None = None,
) -> np.ndarray:
    """Alpha matte of an image.

        model = create_model("indexnet_matting").eval()
        alpha = predict_alpha(model, image, trimap)

    Runs under ``torch.inference_mode()`` on the device of the model's parameters. Sources: [IndexNet] section 5.1 for the
    input; resizing is what was published with it, padding what was published with [A2U]; [TMFNet] is used without scaling.

    Args:
        model: (N, C, H, W) -> (N, 1, H, W) in evaluation mode; float32. Attributes, where it has them: ``size_rule`` =
            (multiple, extra) says which sizes it takes, else multiples of 32; ``trimap_encoding``, what it takes the trimap as,
            ``"level"`` (C = 4) or ``"one_hot"`` (C = 6), else ``"level"``; ``alignment``, a value of ``align``, else
            ``"resize"``.
        image: (H, W, 3) RGB; uint8, uint16, or floating in [0, 1]. Any size, at least 1 x 1.
        trimap: (H, W) or (H, W, 3); uint8 or uint16; see :func:`pyindexnet.matting.quantize_trimap`.
        align: "resize" (bicubic image, nearest trimap, bicubic alpha back) or "pad" (reflection at the bottom and right); None:
            what the model was published with.
        memory_format: of the network's input. ``model.to(memory_format=...)`` once spares converting the weights at each call.
        tiling: how much memory the network may take, and what it did, see :class:`~pyindexnet.matting.tiling.Tiling`; None: the
            image goes through the network at once.
    Returns:
        (H, W) float32 in [0, 1]; exactly 0 and 1 where the trimap is known.
    Raises:
        TypeError: a dtype. ValueError: a shape, a value, a trimap without unknown or without known pixels, a model in
            training mode, one that predicts values that are not finite, or one that cannot run within the memory of ``tiling``.
    """
    align = getattr(model, "alignment", "resize") if align is None else align
    if align not in ALIGNMENTS:
        raise ValueError(f"predict_alpha: align must be one of {', '.join(ALIGNMENTS)}, got {align!r}")
    if model.training:
        raise ValueError("predict_alpha: model must be in evaluation mode, call model.eval()")
    levels = quantize_trimap(trimap)
    stacked = stack_input(image, levels, getattr(model, "trimap_encoding", "level"))
    rule = getattr(model, "size_rule", SIZE_RULE)
    aligned = align_input(stacked, align, rule)
    del stacked
    parameter = next(model.parameters())

    def run(part: np.ndarray) -> Tensor:
        batch = torch.from_numpy(part).permute(2, 0, 1)[None]
        return model(batch.to(device=parameter.device, dtype=parameter.dtype).contiguous(memory_format=memory_format))[0, 0]

    with torch.inference_mode():
        if tiling is None:
            prediction = run(aligned).float().cpu().numpy()
        else:
            prediction = tiling.predict(model, run, aligned, rule=rule, memory_format=memory_format)
    if not np.isfinite(prediction).all():
        raise ValueError("predict_alpha: the model's output must be finite, got NaN or infinity; are its weights broken?")
    return finish_alpha(prediction, levels, align)


def memory_plan(
    model: nn.Module,
    size: tuple[int, int],
    *,
    tiling: Tiling | None = None,
    memory_format: torch.memory_format = MEMORY_FORMAT,
) -> Plan:
    """Tiles and memory of an image that :func:`predict_alpha` would get; nothing is computed from pixels.

    Args:
        model: as there. size: height and width of the image. tiling: as there; None: no limit.
        memory_format: of the network's input.
    Raises:
        ValueError: the network cannot run within the memory of ``tiling``.
    """
    rule = getattr(model, "size_rule", SIZE_RULE)
    channels = ENCODED_CHANNELS[getattr(model, "trimap_encoding", "level")]
    target = aligned_size(size, rule)
    # the stacked input before and after alignment, picture and trimap, the prediction
    held = 4 * channels * (size[0] * size[1] + target[0] * target[1]) + 8 * size[0] * size[1] + 4 * target[0] * target[1]
    tiling = Tiling(sys.maxsize) if tiling is None else tiling
    return tiling.make_plan(model, target, channels, rule=rule, memory_format=memory_format, extra_bytes=held)


def stack_input(image: np.ndarray, trimap: np.ndarray, encoding: TrimapEncoding = "level") -> np.ndarray:
    """Network input before alignment: normalised RGB and the trimap, (H, W, 4 or 6) float32.

    Args:
        image: as for :func:`predict_alpha`.
        trimap: (H, W) uint8 with the values 0, 128, 255.
        encoding: "level": trimap/255; "one_hot": maps of background, unknown and foreground, 0 or 1.
    Raises:
        TypeError: dtype of the image. ValueError: a shape or a value.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image: must be (H, W, 3), got {image.shape}")
    if trimap.shape != image.shape[:2]:
        raise ValueError(f"trimap: must be {image.shape[:2]}, the size of the image, got {trimap.shape}")
    colours = (to_unit(image) - IMAGENET_MEAN) / IMAGENET_STD
    if encoding == "one_hot":
        return np.dstack([colours, *((trimap == level).astype(np.float32) for level in (BACKGROUND, UNKNOWN, FOREGROUND))])
    return np.dstack([colours, trimap.astype(np.float32) / 255])


def aligned_size(size: tuple[int, int], rule: tuple[int, int] = SIZE_RULE) -> tuple[int, int]:
    """Height and width that the network gets: rounded up to ``multiple`` and ``extra`` pixels added.

    Args:
        size: height and width of the image. rule: (multiple, extra).
    """
    multiple, extra = rule
    height, width = (-(-side // multiple) * multiple + extra for side in size)
    return height, width


def align_input(stacked: np.ndarray, align: Align, rule: tuple[int, int] = SIZE_RULE) -> np.ndarray:
    """Bring a stacked input to a size that the network takes.

    Args:
        stacked: (H, W, C) float32, from :func:`stack_input`.
        align: "resize" or "pad".
        rule: (multiple, extra) of :func:`aligned_size`.
    Returns:
        (H', W', C) float32.
    """
    height, width = aligned_size(stacked.shape[:2], rule)
    if align == "pad":
        bottom, right = height - stacked.shape[0], width - stacked.shape[1]
        return np.pad(stacked, ((0, bottom), (0, right), (0, 0)), mode="reflect")  # reflects again where it is small
    colours = cv2.resize(stacked[:, :, :3], (width, height), interpolation=cv2.INTER_CUBIC)
    trimap = cv2.resize(stacked[:, :, 3:], (width, height), interpolation=cv2.INTER_NEAREST)
    return np.dstack([colours, trimap])


def finish_alpha(prediction: np.ndarray, trimap: np.ndarray, align: Align) -> np.ndarray:
    """Bring a prediction back to the size of the trimap, clip it to [0, 1], and set known pixels to 0 and 1.

    Args:
        prediction: (H', W') float32, of the aligned size.
        trimap: (H, W) uint8 with the values 0, 128, 255.
        align: as used for the input.
    Returns:
        (H, W) float32.
    """
    height, width = trimap.shape
    if align == "pad":
        alpha = prediction[:height, :width]
    else:
        alpha = cv2.resize(prediction, (width, height), interpolation=cv2.INTER_CUBIC)
    alpha = np.clip(alpha, 0, 1)
    alpha[trimap == BACKGROUND] = 0
    alpha[trimap == FOREGROUND] = 1
    return alpha
