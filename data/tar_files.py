"""webdataset tars: members with one name up to the first dot are one sample.

`KEY.json` is the row; its pictures are `KEY.jpg`, `KEY.png` ..., or `KEY.0.jpg`, `KEY.1.jpg` ... in
this order, unless the row names data: images itself. `KEY.txt` in place of a .json is a caption of
the picture. Nothing is ever unpacked to disk, and a tar is never held in memory.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from mmdiff.data.json_files import parse
from mmdiff.data.pictures import MAX_BYTES
from mmdiff.data.readers import READERS, Found
from mmdiff.data.rows import BadRow
from mmdiff.errors import DataError

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")


@READERS.register("tar")
class Tar:
    """An address is the byte at which a sample's first member begins."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def scan(self) -> Iterator[Found]:
        end, size = None, self.path.stat().st_size
        try:
            with tarfile.open(self.path, "r:") as tar:
                for key, members in groupby(_files(tar), key=_key):
                    listed = list(members)
                    first, end = listed[0].offset, listed[-1].name
                    yield Found(first, key, _sample_or_fault(tar, listed), first / size)
                    tar.members = []  # type: ignore[attr-defined]  # it keeps every member
                _check_end(tar)
        except tarfile.TarError as error:
            if end is None:
                hint = "; decompress it" if self.path.read_bytes()[:2] == b"\x1f\x8b" else ""
                raise DataError(f"{self.path}: not a tar file ({error}){hint}") from None
            yield Found(None, f"behind {end}", BadRow("broken_file", f"the tar breaks: {error}"))

    def fetch(self, address: Any) -> Any:
        with open(self.path, "rb") as file:
            file.seek(address)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                _, members = next(groupby(_files(tar), key=_key))
                return _sample(tar, list(members))


def _check_end(tar: tarfile.TarFile) -> None:
    """tarfile takes a damaged header, or the end of a file cut short, for the end of the tar, which
    is a block of zeros."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it has no end, so samples may be missing")


def _files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    return (member for member in tar if not member.isdir())


def _key(member: tarfile.TarInfo) -> str:
    folder, slash, name = member.name.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _ending(member: tarfile.TarInfo) -> str:
    return member.name.rpartition("/")[2].partition(".")[2].lower()


def _sample_or_fault(tar: tarfile.TarFile, members: list[tarfile.TarInfo]) -> Any:
    try:
        return _sample(tar, members)
    except BadRow as error:
        return error


def _sample(tar: tarfile.TarFile, members: list[tarfile.TarInfo]) -> dict[str, Any]:
    """The raw row of one sample. Raises BadRow."""
    found: dict[str, bytes] = {}
    for member in members:
        ending = _ending(member)
        if not member.isreg():
            raise BadRow("not_a_file", f"{member.name} is a link or device")
        if member.size > MAX_BYTES:
            raise BadRow("image_too_large", f"{member.name} has over {MAX_BYTES >> 20} MB")
        if ending in found:
            raise BadRow("duplicate_key", f"{member.name} stands twice")
        stream = tar.extractfile(member)
        found[ending] = stream.read() if stream else b""
        if len(found[ending]) < member.size:
            raise BadRow("broken_file", f"{member.name} is cut short")
    pictures = [found[e] for e in sorted(found, key=_order) if e.rpartition(".")[2] in PICTURES]
    key = _key(members[0])
    if "json" in found:
        row = parse(found["json"])
        if not isinstance(row, dict):
            raise BadRow("not_an_object", f"{key}.json must hold an object")
        own = {name: value for name, value in row.items() if name not in ("image", "images")}
        return type(row)({"id": key, **own, "images": pictures})
    if "txt" in found:
        text = found["txt"].decode("utf-8", "surrogateescape")
        return {"id": key, "images": pictures, "conversations": _caption(text, len(pictures))}
    raise BadRow("no_conversation", f"{key} has no .json and no .txt")


def _caption(text: str, pictures: int) -> list[dict[str, str]]:
    from mmdiff.heads.caption import PROMPT

    asked = "<image>" * pictures + PROMPT
    return [{"from": "human", "value": asked}, {"from": "gpt", "value": text}]


def _order(ending: str) -> tuple[int, str]:
    """0.jpg, 2.jpg, 10.jpg in this order, a plain jpg first."""
    number = ending.partition(".")[0]
    return (int(number) if number.isdigit() else -1, ending)
