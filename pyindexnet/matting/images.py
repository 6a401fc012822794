# SPDX-License-Identifier: Apache-2.0
"""Pictures in and out of files: 8 and 16 bits, EXIF orientation, truncated files, atomic writing.

Pillow decodes 8-bit files: it turns them upright, refuses truncated ones (OpenCV returns the half of a truncated JPEG
without an error) and leaves colours under transparency as stored (OpenCV multiplies those of an RGBA TIFF by alpha).
OpenCV decodes 16-bit PNG and TIFF, which Pillow would reduce to 8 bits, and encodes everything.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pyindexnet._files import write_files

#: Suffixes taken for pictures when a folder is listed.
READABLE = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
#: Suffixes that can be written.
WRITABLE = (".png", ".jpg", ".jpeg", ".tif", ".tiff")

_EXIF_ORIENTATION = 0x0112
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLES, _TIFF_PLANAR, _TIFF_SAMPLE_FORMAT = 258, 262, 277, 284, 339
_PNG_BIT_DEPTH_OFFSET = 24  # signature 8, chunk length 4, name 4, width 4, height 4


@dataclass(frozen=True)
class Picture:
    """A decoded file, upright: its EXIF orientation has been applied.

    Attributes:
        pixels: (H, W) grey or (H, W, 3) RGB, uint8 or uint16.
        orientation: the EXIF orientation that was applied, 1 (none) to 8.
        lossy: from a format that disturbs levels (JPEG, WebP).
    """

    pixels: np.ndarray
    orientation: int = 1
    lossy: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, upright."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def bit_depth(self) -> int:
        """8 or 16."""
        return 16 if self.pixels.dtype == np.uint16 else 8

    def rgb(self) -> np.ndarray:
        """The picture as (H, W, 3), grey repeated."""
        return self.pixels if self.pixels.ndim == 3 else np.repeat(self.pixels[:, :, None], 3, axis=2)


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """Decode a PNG, JPEG, TIFF, WebP or BMP file.

    Palettes and CMYK become RGB, an alpha channel is dropped, with a warning where it is not opaque. Colour profiles
    are ignored. Of a file with several pictures, the first.

    Args:
        path: the file.
    Returns:
        The upright picture.
    Raises:
        FileNotFoundError: there is no such file. OSError: it cannot be opened.
        ValueError: it is no picture, is broken or truncated, has neither 8 nor 16 bits per channel, or is a 16-bit TIFF whose
            channels are stored one after the other.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.is_dir():
        raise ValueError(f"{path}: must be a picture, is a folder")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OSError(f"{path}: cannot be read: {error.strerror}") from error
    if not data:
        raise ValueError(f"{path}: the file is empty")
    with decoder_errors(path):
        picture, transparent = _decode(data)
    if transparent:
        warnings.warn(f"{path}: has transparent pixels; its alpha channel is ignored", stacklevel=2)
    return picture


@contextmanager
def decoder_errors(path: Path) -> Iterator[None]:
    """Turn what decoders raise on broken data into a ValueError that names the file."""
    try:
        yield
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not a picture, or a broken one (PNG, JPEG, TIFF, WebP and BMP are read)") from None
    except MemoryError:
        raise
    except Exception as error:  # OSError, SyntaxError, struct.error, zlib.error, ...
        raise ValueError(f"{path}: cannot be decoded: {error}") from error


def _decode(data: bytes) -> tuple[Picture, bool]:
    with _codec_messages_hidden(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on metadata and sizes
        image = Image.open(io.BytesIO(data))
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        orientation = orientation if orientation in range(1, 9) else 1
        bits = _bits_per_channel(image, data)
        image.load()  # also for 16 bits: raises where the file is truncated
        transparent = _has_transparent_pixels(image)
        if bits == 16:
            pixels = _decode_16_bit(data, image)
        elif bits <= 8:
            grey = image.mode in ("1", "L", "LA", "La")
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("L" if grey else "RGB"))
        else:
            raise ValueError(f"{bits} bits per channel, but 8 and 16 are supported")
    return Picture(pixels, orientation, lossy=image.format in ("JPEG", "MPO", "WEBP")), transparent


def _has_transparent_pixels(image: Image.Image) -> bool:
    if image.mode == "I;16" or not image.has_transparency_data:
        return False
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return bool((alpha < 255).any())


def _bits_per_channel(image: Image.Image, data: bytes) -> int:
    if image.format == "PNG":
        return data[_PNG_BIT_DEPTH_OFFSET]
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        if set(tags.get(_TIFF_SAMPLE_FORMAT, ())) - {1}:
            raise ValueError("signed or floating-point pixels, but 8 and 16 bits unsigned are supported")
        return max(tags.get(_TIFF_BITS, (1,)))
    return {"I": 32, "F": 32}.get(image.mode, 8)


def _decode_16_bit(data: bytes, image: Image.Image) -> np.ndarray:
    tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    if tags.get(_TIFF_PLANAR) == 2 and tags.get(_TIFF_SAMPLES, 1) > 1:
        raise ValueError("16 bits with planes apart (PlanarConfiguration 2), but only interleaved channels are supported")
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)  # upright, no alpha
    if pixels is None or pixels.dtype != np.uint16:
        raise ValueError("OpenCV cannot decode this 16-bit file")
    if pixels.ndim == 3:
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return 65535 - pixels if tags.get(_TIFF_PHOTOMETRIC) == 0 else pixels  # OpenCV leaves "white is 0" as it is stored


@contextmanager
def _codec_messages_hidden() -> Iterator[None]:
    """Keep libpng, libtiff and OpenCV from writing to file descriptor 2: the exception says it all."""
    sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # no standard error, nothing to hide
        yield
        return
    try:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def to_unit(pixels: np.ndarray) -> np.ndarray:
    """Pixels as float32 in [0, 1].

    Args:
        pixels: uint8, uint16, or floating in [0, 1]; any shape.
    Returns:
        The same shape, float32.
    Raises:
        TypeError: another dtype. ValueError: a floating value outside [0, 1], or not a number.
    """
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise TypeError(f"image: dtype must be uint8, uint16 or floating, got {pixels.dtype}")
    if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1):  # also false for NaN
        raise ValueError(f"image: floating values must be in [0, 1], got {pixels.min():g} to {pixels.max():g}")
    return pixels.astype(np.float32)


def to_integers(values: np.ndarray, bit_depth: int) -> np.ndarray:
    """Values in [0, 1] as uint8 or uint16, rounded to nearest; 0 and 1 come out exactly."""
    dtype = np.uint16 if bit_depth == 16 else np.uint8
    return np.rint(np.clip(values, 0, 1) * np.iinfo(dtype).max).astype(dtype)


def write_pictures(pictures: Mapping[Path, np.ndarray]) -> None:
    """Write all pictures or none, see :func:`pyindexnet._files.write_files`.

    Args:
        pictures: (H, W) grey or (H, W, 3) RGB, uint8 or uint16, by path; the suffix (:data:`WRITABLE`) names the format.
            TIFF is compressed without loss; JPEG is written at quality 100.
    Raises:
        ValueError: a suffix that cannot be written, or 16 bits for JPEG.
        OSError: a folder is missing or cannot be written to, or a target is a folder.
    """
    write_files({path: _encode(path, pixels) for path, pixels in pictures.items()})


def _encode(path: Path, pixels: np.ndarray) -> bytes:
    suffix = path.suffix.lower()
    if suffix not in WRITABLE:
        raise ValueError(f"{path}: output must end in {', '.join(WRITABLE)}, got {suffix or 'no suffix'}")
    if suffix in (".jpg", ".jpeg") and pixels.dtype != np.uint8:
        raise ValueError(f"{path}: JPEG holds 8 bits per channel, not 16")
    ordered = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    ok, data = cv2.imencode(suffix, ordered, [cv2.IMWRITE_JPEG_QUALITY, 100] if suffix in (".jpg", ".jpeg") else [])
    if not ok:
        raise ValueError(f"{path}: OpenCV cannot encode {pixels.shape} {pixels.dtype}")
    return data.tobytes()
