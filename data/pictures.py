"""The pictures of a data row: found under the image root, read, or named for what is wrong."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING

from mmdiff.data.rows import BadRow
from mmdiff.errors import DataError, ImageError

if TYPE_CHECKING:
    from PIL import Image

MAX_BYTES = 200 << 20  # of one picture file
# What `mmdiff.images` says of a picture, and the kind of fault that is. The first that fits counts.
SAID = (
    ("million pixels are not decoded", "image_too_large"),
    ("is too small", "image_shape"),
    ("times its width", "image_shape"),
    ("is damaged or cut short", "damaged_image"),
    ("holds values that are not finite", "image_values"),
    ("scale them to", "image_values"),
    ("the file is empty", "empty_image"),
    ("may not be read", "not_a_file"),
    ("cannot be opened", "not_a_file"),
)


def data_root(file: Path, given: str | Path | None = None) -> Path:
    """Where a data file's pictures are: the folder `given`, else images/ beside the file, else the
    file's own. Raises DataError."""
    if given is not None:
        if not Path(given).is_dir():
            raise DataError(f"image_root {given}: there is no such folder")
        return Path(given)
    beside = (file if file.is_dir() else file.parent) / "images"
    return beside if beside.is_dir() else beside.parent


def find(name: str, root: Path) -> Path:
    """The file called `name` under `root`, links followed. Raises BadRow where it lies elsewhere,
    does not exist or is no file."""
    try:
        path = (root / name).resolve()
        if not path.is_relative_to(root.resolve()):
            raise BadRow("outside_root", f"{name!r} leads out of {root}; set image_root")
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise BadRow("missing_image", f"there is no {name!r} in {root}") from None
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, a loop of links
        raise BadRow("not_a_file", f"{name[:100]!r} cannot be opened") from None
    if not stat.S_ISREG(status.st_mode):
        raise BadRow("not_a_file", f"{name!r} is a folder or device")
    if not status.st_size:
        raise BadRow("empty_image", f"{name!r} has no bytes")
    if status.st_size > MAX_BYTES:
        raise BadRow("image_too_large", f"{name!r} has over {MAX_BYTES >> 20} MB")
    return path


def read(source: str | bytes, root: Path) -> Image.Image:
    """A row's picture, RGB. Raises BadRow."""
    from mmdiff.images import load_image

    given = find(source, root) if isinstance(source, str) else source
    try:
        return load_image(given).image
    except ImageError as error:
        text = str(error)
        kind = next((kind for words, kind in SAID if words in text), "not_an_image")
        raise BadRow(kind, text) from None
