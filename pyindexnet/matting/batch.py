# SPDX-License-Identifier: Apache-2.0
"""Which files are matted into which: pairs of files or folders, matched by stem, checked before anything runs."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyindexnet.matting.compose import Background, composite
from pyindexnet.matting.images import READABLE, WRITABLE, read_picture, to_integers, write_pictures
from pyindexnet.matting.trimaps import fit_trimap, quantize_trimap

LOSSY_OUTPUT = (".jpg", ".jpeg")


@dataclass(frozen=True)
class Job:
    """One image, its trimap, and the file that its alpha goes to."""

    image: Path
    trimap: Path
    alpha: Path

    @property
    def composite(self) -> Path:
        """Where the composite goes: ``NAME_composite.EXT`` beside the alpha ``NAME.EXT``."""
        return self.alpha.with_name(f"{self.alpha.stem}_composite{self.alpha.suffix}")

    def outputs(self, background: Background | None) -> list[Path]:
        """The files that this job writes."""
        return [self.alpha] if background is None else [self.alpha, self.composite]


@dataclass(frozen=True)
class Failure:
    """An image that was not matted, and why."""

    image: Path
    reason: str


def plan(
    inputs: Sequence[Path],
    output: Path,
    *,
    suffix: str = ".png",
    background: Background | None = None,
    bit_depth: int | None = None,
    keep: Sequence[Path | None] = (),
) -> tuple[list[Job], list[Failure]]:
    """Turn the command's paths into jobs.

    Args:
        inputs: image, trimap, image, trimap, ...; of each pair both are files or both are folders, whose pictures are matched
            by stem (file name without suffix), without descending into sub-folders.
        output: file of the alpha for one pair of files; else an existing folder, which gets ``STEM`` + ``suffix``.
        suffix: of the alphas in a folder.
        background: where one is given, composites are written too.
        bit_depth: 8 or 16, of what is written; None: that of each image.
        keep: more files that must not be overwritten.
    Returns:
        Jobs, and the images that cannot become one (no trimap of that stem, or two images of one stem).
    Raises:
        ValueError, OSError: nothing of this can run: a path without its partner, a file paired with a folder, an empty folder,
            an output that is missing, cannot be written, or is one of the inputs.
    """
    if not inputs or len(inputs) % 2:
        raise ValueError(f"inputs must come in pairs IMAGE TRIMAP, got {len(inputs)} path{'s'[: len(inputs) != 1]}")
    if suffix not in WRITABLE:
        raise ValueError(f"format must be one of {', '.join(s[1:] for s in WRITABLE)}, got {suffix[1:]!r}")
    pairs: list[tuple[Path, Path]] = []
    failures: list[Failure] = []
    for image, trimap in zip(inputs[::2], inputs[1::2], strict=True):
        if image.is_dir() != trimap.is_dir():
            kinds = ("folder", "file") if image.is_dir() else ("file", "folder")
            raise ValueError(f"{image} is a {kinds[0]} and {trimap} a {kinds[1]}: pairs are two files or two folders")
        if image.is_dir():
            matched, unmatched = _match_folders(image, trimap)
            pairs += matched
            failures += unmatched
        else:
            pairs.append((image, trimap))
    to_folder = len(inputs) > 2 or inputs[0].is_dir() or output.is_dir()
    _check_output(output, to_folder)
    if bit_depth == 16 and (suffix if to_folder else output.suffix.lower()) in LOSSY_OUTPUT:
        raise ValueError(f"{output}: JPEG holds 8 bits per channel, not 16")
    jobs: list[Job] = []
    taken: dict[Path, Path] = {}
    for image, trimap in pairs:
        job = Job(image, trimap, output / f"{image.stem}{suffix}" if to_folder else output)
        clash = next((taken[path] for path in job.outputs(background) if path in taken), None)
        if clash is None:
            jobs.append(job)
            taken.update(dict.fromkeys(job.outputs(background), image))
        else:
            failures.append(Failure(image, f"{image}: its output {job.alpha} would also be that of {clash}"))
    behind = background.path if background is not None else None
    _check_kept(taken, [path for path in (*itertools.chain(*pairs), *keep, behind) if path is not None])
    return jobs, failures


def run_job(
    job: Job,
    predict: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    background: Background | None = None,
    bit_depth: int | None = None,
) -> tuple[int, int]:
    """Read a job's files, matte, and write its outputs: all of them or none.

    Args:
        job: what to do.
        predict: (image (H, W, 3), trimap (H, W) of 0, 128, 255) -> alpha (H, W) in [0, 1].
        background: where given, the composite over it is written too.
        bit_depth: 8 or 16, of what is written; None: that of the image (8 for JPEG).
    Returns:
        Height and width of the image.
    Raises:
        ValueError, OSError: an input cannot be used, or an output cannot be written.
    Warns:
        UserWarning: the trimap was quantised or turned; the output format is lossy.
    """
    image, drawn = read_picture(job.image), read_picture(job.trimap)
    pixels = image.rgb()
    levels = quantize_trimap(fit_trimap(drawn, image, name=str(job.trimap)), lossy=drawn.lossy, name=str(job.trimap))
    alpha = predict(pixels, levels)
    lossy = job.alpha.suffix.lower() in LOSSY_OUTPUT
    if lossy:
        warnings.warn(f"{job.alpha}: JPEG is lossy, known pixels may not stay exactly 0 and 1", stacklevel=2)
    depth = bit_depth or (8 if lossy else image.bit_depth)
    outputs = {job.alpha: to_integers(alpha, depth)}
    if background is not None:
        outputs[job.composite] = to_integers(composite(pixels, alpha, background.fill(image.size)), depth)
    write_pictures(outputs)
    return image.size


def _match_folders(images: Path, trimaps: Path) -> tuple[list[tuple[Path, Path]], list[Failure]]:
    if images.samefile(trimaps):
        raise ValueError(f"{images}: images and trimaps must be in different folders")
    found = _pictures(images)
    if not found:
        raise ValueError(f"{images}: has no pictures ({', '.join(READABLE)})")
    by_stem: dict[str, list[Path]] = {}
    for path in _pictures(trimaps):
        by_stem.setdefault(path.stem, []).append(path)
    pairs: list[tuple[Path, Path]] = []
    failures: list[Failure] = []
    for image in found:
        candidates = by_stem.get(image.stem, [])
        if len(candidates) == 1:
            pairs.append((image, candidates[0]))
        elif candidates:
            failures.append(Failure(image, f"{image}: has several trimaps: {', '.join(map(str, candidates))}"))
        else:
            failures.append(Failure(image, f"{image}: has no trimap named {image.stem}.* in {trimaps}"))
    spare = sorted(set(by_stem) - {image.stem for image in found})
    if spare:
        warnings.warn(f"{trimaps}: no image for {', '.join(spare)}", stacklevel=2)
    return pairs, failures


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in READABLE and not p.name.startswith("."))


def _check_output(output: Path, to_folder: bool) -> None:
    folder = output if to_folder else output.parent
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: the output folder does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: the output folder is a file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: the output folder cannot be written to")
    if not to_folder and output.suffix.lower() not in WRITABLE:
        raise ValueError(f"{output}: output must end in {', '.join(WRITABLE)}, got {output.suffix or 'no suffix'}")


def _check_kept(outputs: Iterable[Path], inputs: Sequence[Path]) -> None:
    kept = {path.resolve() for path in inputs}
    for output in outputs:
        if output.resolve() in kept:
            raise ValueError(f"{output}: the output would overwrite an input")
