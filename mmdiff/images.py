"""Reading pictures safely: whatever is given becomes an RGB picture or one `ImageError` line.

Transparency is laid on white, EXIF rotation is applied, 16-bit values keep their true range, and of
an animation the first frame is used. Sizes are checked from the header, before anything is decoded.
"""

from __future__ import annotations

import http.client
import io
import re
import stat
import threading
import time
import urllib.request
import warnings
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL import TiffImagePlugin as _tiff  # noqa: F401  (Pillow loads these two late)
from PIL import WebPImagePlugin as _webp  # noqa: F401

from mmdiff.errors import ImageError, nearest

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")  # MPO comes with JPEG
MAX_PIXELS = 100_000_000
MAX_ASPECT = 50
MIN_SIDE = 4

MAX_BYTES = 50 << 20  # of a download
TIMEOUT_SECONDS = 20  # without any answer
TOTAL_SECONDS = 120
WEB_PARTS = (  # no file and ftp, to which a server could redirect
    urllib.request.ProxyHandler,
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPErrorProcessor,
    urllib.request.UnknownHandler,
)

CONVERT = "convert it to PNG, JPEG, WebP, GIF, BMP, TIFF or PPM"
TOO_LARGE = f"more than {MAX_PIXELS // 10**6} million pixels are not decoded; make it smaller"
# How files begin that are often taken for pictures.
OTHER_KINDS = (
    (rb"\s*%PDF", "a PDF document"),
    (rb"(?s).{0,1000}?<svg[\s>]", "an SVG drawing"),
    (rb"(?s).{4}ftyp(heic|heix|heim|heis|hevc|mif1|msf1)", "a HEIC picture"),
    (rb"(?s).{4}ftypavi[fs]", "an AVIF picture"),
    (rb"(?s).{4}ftyp|\x1aE\xdf\xa3", "a video"),
    (rb"version https://git-lfs", "a Git LFS pointer (git lfs pull brings the picture)"),
    (rb"(?is)\s*<(!doctype )?html", "a web page"),
)


@dataclass(frozen=True)
class Picture:
    """An RGB `image`, its `name` for messages, a `note` on what was left out ('' if nothing)."""

    image: Image.Image
    name: str
    note: str = ""


def load_image(
    source: Any, allow_urls: bool = False, where: str = "", target: int | None = None
) -> Picture:
    """Read one picture.

    Args:
        source: a path, a PIL image, the bytes of a file, an array (H, W) or (H, W, 1 | 3 | 4) of
            uint8, uint16, bool or floats in [0, 1]; with `allow_urls` also an http(s) URL.
        where: stands in front of a message, for example "row 7".
        target: the side in pixels to which the picture will be resized. A large JPEG is then
            decoded at a fraction of its size, at least twice `target`, which is much faster.

    Raises:
        ImageError: one line that says which picture, what is wrong and what to do.
    """
    name = source_name(source)
    try:
        image, note = read(source, allow_urls, target)
    except ImageError as error:
        prefix = f"{where}: " if where else ""
        raise ImageError(f"{prefix}{name}: {error}") from error.__cause__
    return Picture(image, name, note)


def source_name(source: Any) -> str:
    """How messages and JSON call a source: its path or URL, or its kind."""
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "picture")
    if isinstance(source, (str, Path)):
        name = str(source)
        return name if len(name) <= 300 else name[:300] + "..."
    return {"ndarray": "array"}.get(type(source).__name__, type(source).__name__)


def read(source: Any, allow_urls: bool, target: int | None) -> tuple[Image.Image, str]:
    if isinstance(source, Image.Image):
        return decode(source, None)  # drafting would change the caller's object
    if isinstance(source, np.ndarray):
        return from_array(source), ""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return read_stream(io.BytesIO(source), target)
    if isinstance(source, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://|data:", source):
        return read_stream(io.BytesIO(fetch(source, allow_urls)), target)
    if isinstance(source, (str, Path)):
        return read_file(source, target)
    raise ImageError(
        f"a {type(source).__name__} is not a picture; "
        "give a path, a PIL image, a numpy array or bytes"
    )


def read_file(source: str | Path, target: int | None) -> tuple[Image.Image, str]:
    path = Path(source)
    if not str(source):
        raise ImageError("the path is empty; give the path of a picture")
    try:
        mode = path.stat().st_mode  # follows links, and does not wait as opening a pipe would
        if stat.S_ISDIR(mode):
            raise ImageError("is a folder; give the path of one picture")
        if not stat.S_ISREG(mode):
            raise ImageError("is a pipe or device; save the picture to a file first")
        with open(path, "rb") as stream:
            return read_stream(stream, target)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(missing(path)) from error
    except PermissionError as error:
        raise ImageError("may not be read; change its permissions (chmod +r)") from error
    except (OSError, ValueError, RuntimeError) as error:
        # a loop of links, a name that is too long or holds a null byte
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"cannot be opened ({reason}); check the path") from error


def missing(path: Path) -> str:
    """What to say of a path that does not exist: its folder, or the files with similar names."""
    if not path.parent.is_dir():
        return f"no such file: the folder {path.parent} does not exist; check the path"
    try:
        names = [entry.name for entry in islice(path.parent.iterdir(), 10_000)]
    except OSError:
        names = []
    return "no such file." + (nearest(path.name, names) or " Check the path.")


def read_stream(stream: BinaryIO, target: int | None) -> tuple[Image.Image, str]:
    head = stream.read(1100)
    stream.seek(0)
    if not head:
        raise ImageError("the file is empty; save or download it again")
    with strict_pillow:
        try:
            image = Image.open(stream, formats=FORMATS)
        except UnidentifiedImageError as error:
            raise ImageError(f"is {kind_of(head)}; {CONVERT}") from error
        except Image.DecompressionBombError as error:
            raise ImageError(TOO_LARGE) from error
        except Exception as error:  # a damaged header can fail in any way
            raise ImageError(damaged(error)) from error
        return decode(image, target)


def kind_of(head: bytes) -> str:
    for pattern, kind in OTHER_KINDS:
        if re.match(pattern, head):
            return f"{kind}, not a picture" if "picture" not in kind else f"{kind}, not supported"
    text = head.isascii() and b"\0" not in head
    return "a text file, not a picture" if text else "not a picture of a known format, or damaged"


def damaged(error: Exception) -> str:
    return f"is damaged or cut short ({error}); save or download it again"


class StrictPillow:
    """Decoding without Pillow's warnings, and never half a picture.

    Another library may have set LOAD_TRUNCATED_IMAGES, which fills the missing rest with grey.
    Both are globals of the process: the first thread that decodes sets them, the last restores.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0

    def __enter__(self) -> None:
        with self.lock:
            self.users += 1
            if self.users == 1:
                self.half_allowed = ImageFile.LOAD_TRUNCATED_IMAGES
                ImageFile.LOAD_TRUNCATED_IMAGES = False
                self.filters = warnings.catch_warnings()
                self.filters.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(self, *error: Any) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = self.half_allowed
                self.filters.__exit__(*error)


strict_pillow = StrictPillow()


def decode(image: Image.Image, target: int | None) -> tuple[Image.Image, str]:
    """An opened picture as RGB, and the note."""
    check_size(*image.size)
    with strict_pillow:
        try:
            note = frames_note(image)
            if target and image.format in ("JPEG", "MPO"):
                image.draft(None, (2 * target, 2 * target))
            image.load()
            return to_rgb(upright(image)), note
        except ImageError:
            raise
        except Image.DecompressionBombError as error:
            raise ImageError(TOO_LARGE) from error
        except Exception as error:  # damaged data fails in whatever way the decoder meets it
            raise ImageError(damaged(error)) from error


def check_size(width: int, height: int) -> None:
    size = f"{width} x {height} pixels"
    if width * height > MAX_PIXELS:
        raise ImageError(f"{size}: {TOO_LARGE}")
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{size} is too small; use a picture of at least {MIN_SIDE} x {MIN_SIDE}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(
            f"{size} is longer than {MAX_ASPECT} times its width; crop it or cut it into pieces"
        )


def frames_note(image: Image.Image) -> str:
    frames = getattr(image, "n_frames", 1)
    if frames <= 1 or image.format == "MPO":  # the other frames of an MPO are previews
        return ""
    used = "the first one" if image.tell() == 0 else f"number {image.tell() + 1}"
    if image.format == "TIFF":
        return f"TIFF with {frames} pages: {used} is used"
    return f"animated {image.format} with {frames} frames: {used} is used"


def upright(image: Image.Image) -> Image.Image:
    """`image` turned as its EXIF data says; damaged EXIF data says nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(to_8_bit(np.asarray(image), image.mode)).convert("RGB")
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        white = Image.new("RGBA", layers.size, "white")
        return Image.alpha_composite(white, layers).convert("RGB")
    return image.convert("RGB")


def to_8_bit(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey values of Pillow's modes I;16 (16 bit), I (integers) and F (floats) as uint8.

    A file does not state the range of I and F: values up to 1 (F), 255 or 65535 are taken as such.
    """
    if not np.isfinite(values).all():
        raise ImageError("holds values that are not finite; replace them first")
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise ImageError(f"has values from {low:g} to {high:g}; scale them to 0..65535 first")
    if mode.startswith("I;16"):
        top = 65535
    elif mode == "F" and high <= 1:
        top = 1
    else:
        top = 255 if high <= 255 else 65535
    return np.rint(values.astype(np.float32) * (255 / top)).astype(np.uint8)


def from_array(array: np.ndarray) -> Image.Image:
    """The RGB picture of an array, see `load_image`."""
    shape = array.shape
    if len(shape) == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        raise ImageError(f"shape {shape} has the channels first; use array.transpose(1, 2, 0)")
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise ImageError(f"shape {shape} is not (H, W) or (H, W, 1 | 3 | 4); give one picture")
    check_size(shape[1], shape[0])
    if array.dtype == np.uint16:
        array = np.rint(array.astype(np.float32) / 257).astype(np.uint8)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ImageError("the array holds values that are not finite; replace them first")
        if array.min() < 0 or array.max() > 1:
            raise ImageError(
                f"a float array must lie in [0, 1], not {array.min():g} to {array.max():g}; "
                "divide it by 255, or give it as uint8"
            )
        array = np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(f"dtype {array.dtype} is not supported; use uint8, uint16 or float")
    return to_rgb(Image.fromarray(array[:, :, 0] if array.shape[2:] == (1,) else array))


def fetch(url: str, allow_urls: bool) -> bytes:
    """The bytes behind an http(s) URL, at most MAX_BYTES, within TOTAL_SECONDS."""
    if not re.match(r"(?i)https?://", url):
        raise ImageError("only http and https URLs are read; give a path or the bytes instead")
    if not allow_urls:
        raise ImageError("URLs are not read unless asked; pass allow_urls=True or download it")
    opener = urllib.request.OpenerDirector()
    for part in WEB_PARTS:
        opener.add_handler(part())
    deadline = time.monotonic() + TOTAL_SECONDS
    parts, size = [], 0
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "mmdiff"})
        with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
            while part := response.read1(1 << 20):
                parts.append(part)
                size += len(part)
                if size > MAX_BYTES:
                    raise ImageError(f"is larger than {MAX_BYTES >> 20} MB; use a smaller picture")
                if time.monotonic() > deadline:
                    raise ImageError(f"took over {TOTAL_SECONDS} s to load; download it first")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ImageError(f"cannot be loaded ({error}); check the URL") from error
    return b"".join(parts)
