"""A LLaVA file with good rows among bad ones of every kind, made by the test that needs it."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Line = bytes | dict[str, Any]


def png(side: int = 12, height: int | None = None, seed: int = 0) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (height or side, side, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


def bomb() -> bytes:
    """A PNG whose header promises 40,000 x 40,000 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + png()[33:]


def write_pictures(folder: Path) -> None:
    """The folder images/, and one picture beside it, out of its reach."""
    images = folder / "images"
    images.mkdir(parents=True)
    (images / "a.png").write_bytes(png())
    (images / "b.png").write_bytes(png(seed=1))
    (images / "cut.png").write_bytes(png(64)[:-600])
    (images / "bomb.png").write_bytes(bomb())
    (images / "dot.png").write_bytes(png(2))
    (images / "strip.png").write_bytes(png(400, 5))
    (images / "empty.png").write_bytes(b"")
    (images / "page.png").write_bytes(b"<html><body>not found</body></html>")
    (images / "folder.png").mkdir()
    (images / "link.png").symlink_to(folder / "secret.png")
    (images / "wild.tif").write_bytes(tiff_with_nan())
    (folder / "secret.png").write_bytes(png())


def tiff_with_nan() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(stream, "TIFF")
    return stream.getvalue()


def row(
    name: str, image: Any = "a.png", asked: Any = "<image>\nwhat?", said: Any = "a cat"
) -> dict:
    """A good row unless told otherwise; no image for None."""
    made = {
        "id": name,
        "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": said}],
    }
    return made if image is None else made | {"image": image}


def talk(name: str, *turns: tuple[Any, Any], **fields: Any) -> dict:
    said = [{"from": role, "value": text} for role, text in turns]
    return {"id": name, "conversations": said, **fields}


def raw(made: dict, old: str, new: str) -> bytes:
    """The row's JSON with a piece replaced; latin-1, so that any byte can be asked for."""
    text = json.dumps(made)
    assert old in text
    return text.replace(old, new).encode("latin-1")


H, G = "human", "gpt"
ASK = (H, "<image>\nwhat?")
GOOD: list[Callable[[str], Line]] = [
    lambda n: row(n),
    lambda n: row(n, ["a.png"]),
    lambda n: row(n, ["a.png", "b.png"], "<image> and <image>: which?"),
    lambda n: row(n, None, "how are you?"),
    lambda n: row(n, asked="what is this?\n<image>"),
    lambda n: row(n, asked="<image>"),
    lambda n: talk(n, ASK, (G, "a"), (H, "and?"), (G, "b"), image="a.png"),
    lambda n: talk(n, ("system", "be brief"), ASK, (G, "a"), image="b.png"),
    lambda n: talk(
        n, (H, "<image> one"), (G, "a"), (H, "<image> two"), (G, "b"), images=["a.png"] * 2
    ),
    lambda n: row(n, said="ein K\u00e4se, \u732b \U0001f600 <|mask|> <|end|>"),
    lambda n: json.dumps(row(n, said="\u732b"), ensure_ascii=False).encode(),
    lambda n: row(n, "data:image/png;base64," + base64.b64encode(png()).decode()),
    lambda n: row(n, "../images/a.png"),
    lambda n: row(n) | {"id": int(n[1:]) + 10_000, "source": "web", "score": None},
    lambda n: {
        "id": n,
        "image": "a.png",
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
            {"role": "assistant", "content": "a cat"},
        ],
    },
]
BAD: dict[str, list[Callable[[str], Line]]] = {
    "encoding": [
        lambda n: raw(row(n, said="caf@"), "caf@", "caf\xe9"),
        lambda n: raw(row(n, said="half@"), "half@", "half \\ud83d"),
        lambda n: raw(row(n) | {"source": "@@"}, "@@", "\xff\xfe"),
    ],
    "broken_json": [
        lambda n: json.dumps(row(n)).encode()[:-7],
        lambda n: raw(row(n), '"image": ', '"image" '),
        lambda n: b"id,image,text",
        lambda n: b"[" * 100_000,
        lambda n: raw(row(n), f'"{n}"', "9" * 5000),
    ],
    "not_an_object": [lambda n: b"[1, 2]", lambda n: b'"text"', lambda n: b"null", lambda n: b"7"],
    "duplicate_key": [lambda n: raw(row(n), '"image": ', '"image": "b.png", "image": ')],
    "no_conversation": [
        lambda n: {"id": n, "image": "a.png"},
        lambda n: {"id": n, "image": "a.png", "text": "a cat"},
        lambda n: {},
        lambda n: row(n) | {"conversations": None},
    ],
    "ambiguous": [
        lambda n: row(n) | {"images": ["a.png"]},
        lambda n: row(n) | {"messages": [{"role": "user", "content": "x"}]},
    ],
    "conversation_type": [
        lambda n: row(n) | {"conversations": []},
        lambda n: row(n) | {"conversations": "what? a cat"},
        lambda n: row(n) | {"conversations": {"from": H, "value": "x"}},
    ],
    "message_type": [
        lambda n: row(n, said=None),
        lambda n: row(n, said=["a cat"]),
        lambda n: row(n, asked=3),
        lambda n: row(n) | {"conversations": ["what?", "a cat"]},
        lambda n: row(n) | {"conversations": [{"value": "<image>"}, {"value": "a cat"}]},
        lambda n: {"id": n, "messages": [{"role": "user", "content": [{"type": "table"}]}]},
    ],
    "id_type": [lambda n: row(n) | {"id": [n]}, lambda n: row(n) | {"id": 1.5}],
    "image_type": [lambda n: row(n, 7), lambda n: row(n, [["a.png"]]), lambda n: row(n, {"a": 1})],
    "empty_image_name": [lambda n: row(n, ""), lambda n: row(n, [" "])],
    "image_url": [lambda n: row(n, "https://example.org/a.png"), lambda n: row(n, "file:///a.png")],
    "bad_base64": [lambda n: row(n, "data:image/png;base64,%%%"), lambda n: row(n, "data:,x")],
    "other_media": [lambda n: row(n, None, "what?") | {"video": "a.mp4"}],
    "unknown_role": [
        lambda n: talk(n, ("robot", "hi"), (G, "a")),
        lambda n: {"id": n, "messages": [{"role": "tool", "content": "x"}]},
    ],
    "role_order": [
        lambda n: talk(n, (G, "a"), (H, "b")),
        lambda n: talk(n, (H, "a"), (H, "b"), (G, "c")),
        lambda n: talk(n, (H, "a"), (G, "b"), (G, "c")),
        lambda n: talk(n, (H, "a"), ("system", "x"), (G, "c")),
    ],
    "no_answer": [
        lambda n: talk(n, ASK, image="a.png"),
        lambda n: talk(n, (H, "a"), (G, "b"), (H, "c")),
        lambda n: talk(n, ("system", "x")),
    ],
    "empty_answer": [
        lambda n: row(n, said=""),
        lambda n: row(n, said=" \n"),
        lambda n: talk(n, ASK, (G, ""), (H, "and?"), (G, "b"), image="a.png"),
    ],
    "empty_question": [
        lambda n: row(n, None, " "),
        lambda n: talk(n, (H, "a"), (G, "b"), (H, ""), (G, "c")),
    ],
    "image_in_answer": [lambda n: row(n, "a.png", "what?", "<image> a cat")],
    "more_placeholders": [
        lambda n: row(n, None),
        lambda n: row(n, "a.png", "<image><image> what?"),
        lambda n: row(n, []),
    ],
    "fewer_placeholders": [
        lambda n: row(n, "a.png", "what?"),
        lambda n: row(n, ["a.png", "b.png"], "<image> what?"),
    ],
    "outside_root": [
        lambda n: row(n, "../secret.png"),
        lambda n: row(n, "link.png"),
        lambda n: row(n, "/etc/passwd"),
        lambda n: row(n, "../nowhere/x.png"),
    ],
    "missing_image": [lambda n: row(n, "no.png"), lambda n: row(n, "a.png/x.png")],
    "not_a_file": [
        lambda n: row(n, "folder.png"),
        lambda n: row(n, "a\0b.png"),
        lambda n: row(n, "x" * 5000),
    ],
    "empty_image": [lambda n: row(n, "empty.png"), lambda n: row(n, "data:image/png;base64,")],
    "not_an_image": [
        lambda n: row(n, "page.png"),
        lambda n: row(n, ["a.png", "page.png"], "<image><image>"),
    ],
    "damaged_image": [lambda n: row(n, "cut.png")],
    "image_too_large": [lambda n: row(n, "bomb.png")],
    "image_shape": [lambda n: row(n, "dot.png"), lambda n: row(n, "strip.png")],
    "image_values": [lambda n: row(n, "wild.tif")],
    "duplicate_id": [lambda n: row("n0")],
}


def write_lines(folder: Path, good: int, bad: int) -> tuple[Path, dict[str, str]]:
    """`good` rows and `bad` ones of all kinds in turn, mixed; returns the file and the kind of
    fault of each place, '' for good rows. The first row is good and has the id n0."""
    write_pictures(folder)
    path = folder / "train.jsonl"
    kinds = list(BAD)
    wanted: dict[str, str] = {}
    order = np.random.default_rng(0).permutation([True] * (good - 1) + [False] * bad).tolist()
    done = [0, 0]
    with open(path, "wb") as file:
        for number, fine in enumerate([True, *order]):
            turn = done[not fine]
            done[not fine] += 1
            kind = "" if fine else kinds[turn % len(kinds)]
            makers = GOOD if fine else BAD[kind]
            made = makers[(turn if fine else turn // len(kinds)) % len(makers)](f"n{number}")
            file.write(made if isinstance(made, bytes) else json.dumps(made).encode())
            file.write(b"\n")
            wanted[f"line {number + 1}"] = kind
    return path, wanted
