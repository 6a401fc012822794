# SPDX-License-Identifier: Apache-2.0
"""The folder layouts of matting data sets: which files belong together.

Nothing is decoded here. A file without its partner stops the listing or is skipped with a warning, as ``on_error`` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyindexnet.matting.data.files import OnError, Problems, list_pictures
from pyindexnet.nn.arguments import require_one_of


@dataclass(frozen=True)
class Foreground:
    """A foreground object: colours, and alpha in a file of its own, or (None) in the alpha channel of the colours."""

    name: str
    colours: Path
    alpha: Path | None


@dataclass(frozen=True)
class Photograph:
    """A picture to evaluate on, with its trimap and true alpha."""

    name: str
    image: Path
    trimap: Path
    alpha: Path


@dataclass(frozen=True)
class Composite:
    """A picture to evaluate on that is still to be composed from its parts."""

    name: str
    foreground: Path
    alpha: Path
    background: Path
    trimap: Path


def cutouts(folder: Path | str) -> list[Foreground]:
    """Plain folder of pictures with an alpha channel, sub-folders too; whether they have one is seen when they are read."""
    folder = Path(folder)
    return [Foreground(_relative(path, folder), path, None) for path in list_pictures(folder, recursive=True)]


def foreground_folders(colours: Path | str, alphas: Path | str, *, on_error: OnError = "stop") -> list[Foreground]:
    """Plain folders: a colour picture and a matte of the same stem."""
    matched = _match(Path(colours), {"alpha": Path(alphas)}, Problems(on_error))
    return [Foreground(path.stem, path, partners["alpha"]) for path, partners in matched]


def adobe(root: Path | str, split: str = "train", *, on_error: OnError = "stop") -> list[Foreground]:
    """Adobe Image Matting (DIM): ``Training_set`` or ``Test_set`` / ``Adobe-licensed images`` and ``Other`` / fg, alpha.

    Args:
        root: the folder ``Combined_Dataset``. split: "train" or "test".
        on_error: "stop" or "skip" at a file without its partner.
    Raises:
        ValueError: the split, or nothing was found. OSError: a folder or (stop) a partner is missing.
    """
    require_one_of("adobe", "split", split, ("train", "test"))
    base = Path(root) / {"train": "Training_set", "test": "Test_set"}[split]
    parts = [base / part for part in ("Adobe-licensed images", "Other") if (base / part).is_dir()]
    if not parts:
        raise FileNotFoundError(f"{base}: has neither 'Adobe-licensed images' nor 'Other'")
    found: list[Foreground] = []
    for part in parts:
        found += foreground_folders(part / "fg", part / "alpha", on_error=on_error)
    return found


def distinctions_646(root: Path | str, split: str = "train", *, on_error: OnError = "stop") -> list[Foreground]:
    """Distinctions-646: ``Train`` or ``Test`` / FG, GT. Arguments and errors as of :func:`adobe`."""
    require_one_of("distinctions_646", "split", split, ("train", "test"))
    base = Path(root) / split.capitalize()
    return foreground_folders(base / "FG", base / "GT", on_error=on_error)


def photographs(images: Path | str, trimaps: Path | str, alphas: Path | str, *, on_error: OnError = "stop") -> list[Photograph]:
    """Plain folders: image, trimap and matte of the same stem."""
    matched = _match(Path(images), {"trimap": Path(trimaps), "alpha": Path(alphas)}, Problems(on_error))
    return [Photograph(path.stem, path, partners["trimap"], partners["alpha"]) for path, partners in matched]


def aim_500(root: Path | str, *, on_error: OnError = "stop") -> list[Photograph]:
    """AIM-500: original, trimap, mask."""
    root = Path(root)
    return photographs(root / "original", root / "trimap", root / "mask", on_error=on_error)


def composition_1k(root: Path | str, *, on_error: OnError = "stop") -> list[Photograph]:
    """Composition-1k, composed: ``merged`` and ``trimaps`` with NAME_I, ``alpha`` (or ``alpha_copy``) with NAME_I or NAME.

    Args:
        root: the folder that holds these. on_error: as for :func:`adobe`.
    """
    root = Path(root)
    alphas = root / "alpha_copy" if (root / "alpha_copy").is_dir() else root / "alpha"
    matched = _match(root / "merged", {"trimap": root / "trimaps", "alpha": alphas}, Problems(on_error), shared=("alpha",))
    return [Photograph(path.stem, path, partners["trimap"], partners["alpha"]) for path, partners in matched]


def composition_1k_parts(
    root: Path | str, backgrounds: Path | str, *, per_foreground: int = 20, on_error: OnError = "stop"
) -> list[Composite]:
    """Composition-1k, as released, to be composed when read: each foreground over the next 20 backgrounds of the list.

    Args:
        root: the folder ``Test_set``, with ``test_fg_names.txt``, ``test_bg_names.txt`` and ``Adobe-licensed images`` / fg,
            alpha, trimaps; the trimap of foreground NAME and its background number I is NAME_I.
        backgrounds: folder of the pictures (Pascal VOC) that the second list names.
        per_foreground: backgrounds of each foreground.
        on_error: as for :func:`adobe`.
    Raises:
        OSError: a list or a folder is missing, or (stop) a file. ValueError: the second list is too short.
    """
    root, backgrounds, problems = Path(root), Path(backgrounds), Problems(on_error)
    names, behind = (_lines(root / f"test_{kind}_names.txt") for kind in ("fg", "bg"))
    if len(behind) < len(names) * per_foreground:
        raise ValueError(
            f"{root / 'test_bg_names.txt'}: must name {per_foreground} backgrounds for each of {len(names)} foregrounds, "
            f"got {len(behind)}"
        )
    part = root / "Adobe-licensed images"
    found = []
    for index, name in enumerate(names):
        for number in range(per_foreground):
            stem = f"{Path(name).stem}_{number}"
            files = {
                "foreground": part / "fg" / name,
                "alpha": part / "alpha" / name,
                "background": backgrounds / behind[index * per_foreground + number],
                "trimap": part / "trimaps" / f"{stem}.png",
            }
            if _all_there(files.values(), problems):
                found.append(Composite(stem, **files))
    return _some(found, root)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def _all_there(paths: Iterable[Path], problems: Problems) -> bool:
    missing = [path for path in paths if not path.is_file()]
    for path in missing:
        problems.report(FileNotFoundError(f"{path}: no such file"))
    return not missing


def _some(found: list, folder: Path) -> list:
    if not found:
        raise ValueError(f"{folder}: no complete example is left")
    return found


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _match(
    first: Path, others: dict[str, Path], problems: Problems, shared: Sequence[str] = ()
) -> list[tuple[Path, dict[str, Path]]]:
    """Pictures of ``first``, each with the picture of the same stem in every other folder.

    Args:
        shared: of these folders, NAME serves for all NAME_I as well.
    """
    pictures = _by_stem(first, problems).values()
    stems = {what: _by_stem(folder, problems) for what, folder in others.items()}
    matched = []
    for path in pictures:
        partners = {}
        for what, folder in others.items():
            partner = stems[what].get(path.stem)
            if partner is None and what in shared:
                partner = stems[what].get(path.stem.rpartition("_")[0])
            if partner is None:
                problems.report(FileNotFoundError(f"{path}: has no {what} {path.stem}.* in {folder}"))
            else:
                partners[what] = partner
        if len(partners) == len(others):
            matched.append((path, partners))
    return _some(matched, first)


def _by_stem(folder: Path, problems: Problems) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in list_pictures(folder):
        if path.stem in found:
            problems.report(ValueError(f"{path}: {found[path.stem].name} has the same stem"))
        else:
            found[path.stem] = path
    return found
