# SPDX-License-Identifier: Apache-2.0
"""Files of data sets: what to do about broken ones, decoding to 8 bits, and a cache of decoded pictures."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from pyindexnet.matting.images import READABLE, read_picture
from pyindexnet.matting.trimaps import as_8_bit, as_grey, quantize_trimap
from pyindexnet.nn.arguments import require_one_of

#: What happens to a file that is missing or broken: the run stops, or it is left out with a warning that names it.
OnError = Literal["stop", "skip"]
#: What reading a file may raise.
READ_ERRORS = (OSError, ValueError, TypeError)


class Problems:
    """Stops at a problem, or warns of it once."""

    def __init__(self, on_error: OnError) -> None:
        require_one_of("data", "on_error", on_error, ("stop", "skip"))
        self.on_error = on_error
        self._seen: set[str] = set()

    def report(self, error: Exception) -> None:
        """Raise ``error``, or warn that what it names is skipped."""
        if self.on_error == "stop":
            raise error
        text = str(error)
        if text not in self._seen:
            self._seen.add(text)
            warnings.warn(f"skipped: {text}", stacklevel=3)


def list_pictures(folder: Path, *, recursive: bool = False) -> list[Path]:
    """The pictures in a folder, sorted by path; hidden ones are left out.

    Raises:
        FileNotFoundError: there is no such folder. ValueError: it holds no pictures.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    candidates = folder.rglob("*") if recursive else folder.iterdir()
    found = sorted(p for p in candidates if p.suffix.lower() in READABLE and not p.name.startswith("."))
    if not found:
        raise ValueError(f"{folder}: has no pictures ({', '.join(READABLE)})")
    return found


def read_colours(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a picture, without its alpha channel. Raises OSError, ValueError, TypeError, naming the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the file has transparent pixels: their alpha is in a file of its own
        return as_8_bit(read_picture(path).rgb(), str(path))


def read_matte(path: Path) -> np.ndarray:
    """(H, W) uint8 of a grey picture. Raises OSError, ValueError, TypeError, naming the file."""
    return as_8_bit(as_grey(read_picture(path).pixels, str(path)), str(path))


def read_trimap(path: Path) -> np.ndarray:
    """(H, W) uint8 with the values 0, 128, 255; see :func:`quantize_trimap`. Raises as :func:`read_matte`."""
    picture = read_picture(path)
    return quantize_trimap(picture.pixels, lossy=picture.lossy, name=str(path))


def read_cutout(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Colours (H, W, 3) and alpha (H, W), uint8, of a picture with an alpha channel. Raises OSError, ValueError, naming it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with Image.open(path) as image:
            if not image.has_transparency_data:
                raise ValueError(f"has no alpha channel, mode {image.mode}")
            pixels = np.asarray(image.convert("RGBA"))
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not a picture, or a broken one") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, ... on broken data
        raise ValueError(f"{path}: cannot be used: {error}") from error
    return np.ascontiguousarray(pixels[..., :3]), np.ascontiguousarray(pixels[..., 3])


class Cache:
    """Decoded pictures by key, the least recently used dropped first.

    Args:
        megabytes: of all arrays together, per process: every worker of a loader has its own. 0: keep nothing.
    """

    def __init__(self, megabytes: float) -> None:
        if not megabytes >= 0:
            raise ValueError(f"data: cache_megabytes must be 0 or more, got {megabytes}")
        self._limit = int(megabytes * 2**20)
        self._held = 0
        self._entries: OrderedDict[object, tuple[np.ndarray, ...]] = OrderedDict()

    def get(self, key: object) -> tuple[np.ndarray, ...] | None:
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: object, arrays: tuple[np.ndarray, ...]) -> None:
        size = sum(a.nbytes for a in arrays)
        if size > self._limit or key in self._entries:
            return
        self._entries[key] = arrays
        self._held += size
        while self._held > self._limit:
            _, dropped = self._entries.popitem(last=False)
            self._held -= sum(a.nbytes for a in dropped)
