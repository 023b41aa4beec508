"""Every way a picture can be odd or bad."""

import contextlib
import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image, ImageFile

from mmdiff import images
from mmdiff.errors import ImageError
from mmdiff.images import FORMATS, load_image


def gradient(height=20, width=30):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 9, columns * 7, rows + columns], 2).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(source, **options):
    return np.asarray(load_image(source, **options).image)


def refusal(source, **options):
    """The message, which must be one line and name a fix."""
    with pytest.raises(ImageError) as caught:
        load_image(source, **options)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500
    return text


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_and_truncation(kind, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8))
    data = encoded(noise, kind)
    picture = load_image(data)
    assert picture.image.mode == "RGB" and picture.image.size == (96, 64) and picture.note == ""
    path = tmp_path / f"a.{kind.lower()}"
    for part in (0.1, 0.5, 0.9):
        path.write_bytes(data[: int(len(data) * part)])
        text = refusal(path)
        assert str(path) in text and "damaged" in text


def test_truncation_is_refused_when_pillow_was_told_to_allow_it(monkeypatch):
    data = encoded(Image.fromarray(gradient(200, 200)), "JPEG", quality=95)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert "damaged" in refusal(data[: len(data) // 2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_progressive_jpeg_cut_short():
    data = encoded(Image.fromarray(gradient(200, 200)), "JPEG", progressive=True, quality=95)
    assert "damaged" in refusal(data[: len(data) // 2])


def test_damaged_bytes_never_escape_as_other_errors():
    rng = np.random.default_rng(1)
    for kind in ("PNG", "GIF", "JPEG", "TIFF", "WEBP", "BMP"):
        data = np.frombuffer(encoded(Image.fromarray(gradient()), kind), np.uint8)
        for _ in range(40):
            broken = data.copy()
            broken[rng.integers(0, len(data), 6)] = rng.integers(0, 256, 6)
            with contextlib.suppress(ImageError):
                load_image(broken.tobytes())


def test_paths(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "kitchen.png")
    assert (pixels(tmp_path / "kitchen.png") == gradient()).all()
    assert load_image(str(tmp_path / "kitchen.png")).name == str(tmp_path / "kitchen.png")
    text = refusal(tmp_path / "kitchn.png", where="row 3")
    assert text.startswith("row 3: ") and "Did you mean kitchen.png?" in text
    assert "the folder" in refusal(tmp_path / "no" / "kitchen.png")
    assert "no such file" in refusal(tmp_path / "kitchen.png" / "x.png")
    assert "is a folder" in refusal(tmp_path)
    assert "the path is empty" in refusal("")
    assert "cannot be opened" in refusal("a\0b.png")
    assert "cannot be opened" in refusal(tmp_path / ("x" * 400))
    (tmp_path / "empty.png").touch()
    assert "is empty" in refusal(tmp_path / "empty.png")


def test_links_and_pipes(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert "cannot be opened" in refusal(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe.png")
    assert "pipe or device" in refusal(tmp_path / "pipe.png")
    assert "pipe or device" in refusal("/dev/zero")


def test_permission(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(gradient()).save(path)
    if os.geteuid() != 0:
        path.chmod(0)
        assert "permissions" in refusal(path)

    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(images, "open", forbidden, raising=False)
    assert "permissions" in refusal(path)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"hello, this is text\n" * 9, "a text file"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"<?xml version='1.0'?>\n<svg xmlns='x'></svg>", "an SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "an AVIF"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "a video"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (bytes(range(256)), "not a picture of a known format"),
    ],
)
def test_other_kinds_of_file(head, kind, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(head)
    text = refusal(path)
    assert kind in text and "convert it to PNG, JPEG" in text


def test_formats_in_a_fresh_process(tmp_path):
    path = tmp_path / "a.tiff"
    Image.fromarray(gradient()).save(path)
    code = "import sys; from mmdiff.images import load_image as f; print(f(sys.argv[1]).image.size)"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.stdout == "(30, 20)\n", done.stderr


def test_multi_picture_jpeg():
    data = encoded(Image.fromarray(gradient()), "MPO", save_all=True, append_images=[])
    assert load_image(data).note == ""


def test_formats_outside_the_list_are_not_decoded():
    assert "known format" in refusal(encoded(Image.fromarray(gradient()), "ICO"))


@pytest.mark.parametrize("depth_mode", ["I;16", "I", "F"])
def test_deep_grey(depth_mode):
    deep = np.linspace(0, 65535, 20 * 30).reshape(20, 30)
    expected = np.rint(deep.astype(np.uint16) / 257)
    if depth_mode == "I;16":
        source = encoded(Image.fromarray(deep.astype(np.uint16)), "PNG")
    else:
        kind = np.int32 if depth_mode == "I" else np.float32
        source = encoded(Image.fromarray(deep.astype(np.uint16).astype(kind)), "TIFF")
    got = pixels(source)
    assert np.abs(got[..., 0] - expected).max() <= 1 and (got[..., 0] == got[..., 2]).all()


def test_ranges_of_integer_and_float_grey():
    dark = np.full((8, 8), 200, np.uint16)
    assert pixels(encoded(Image.fromarray(dark))).max() == 1
    assert pixels(Image.fromarray(dark.astype(np.int32))).max() == 200
    assert pixels(Image.fromarray(np.full((8, 8), 0.5, np.float32))).max() == 128
    assert "scale them" in refusal(Image.fromarray(np.full((8, 8), 10**6, np.int32)))
    assert "scale them" in refusal(Image.fromarray(np.full((8, 8), -1, np.int32)))
    assert "not finite" in refusal(Image.fromarray(np.full((8, 8), np.nan, np.float32)))


def test_16_bit_rgb_png():
    deep = (gradient().astype(">u2") * 257).reshape(20, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in deep)

    def chunk(tag, data):
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30, 20, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    assert (pixels(data) == gradient()).all()


def test_transparency_is_laid_on_white():
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, 4:, 3] = 255  # the left half is clear, the right half black
    expected = np.where(np.arange(8) < 4, 255, 0)
    layered = Image.fromarray(rgba)
    palette = layered.convert("RGB").convert("P")
    palette.putpixel((0, 0), 5)
    clear = encoded(palette, transparency=palette.getpixel((1, 1)))
    for source in (layered, encoded(layered), encoded(layered.convert("LA")), rgba):
        assert (pixels(source)[3] == expected[:, None]).all()
    assert (pixels(clear)[3] == 255).all()
    half = np.full((8, 8, 4), 128, np.uint8)
    assert abs(int(pixels(half)[0, 0, 0]) - 191) <= 1


def test_cmyk_grey_and_one_bit():
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    near = pixels(encoded(red.convert("CMYK"), "JPEG"))[8, 8].astype(int)
    assert np.abs(near - [254, 0, 0]).max() < 8
    assert (pixels(red.convert("L"))[0, 0] == 76).all()
    assert set(
        np.unique(pixels(encoded(Image.fromarray(gradient()[..., 1] > 99).convert("1"))))
    ) == {
        0,
        255,
    }


def test_exif_rotation():
    image = Image.fromarray(gradient())
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise shows it upright
    for kind in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        got = pixels(encoded(image, kind, exif=exif, **options))
        assert (got == np.rot90(gradient(), -1)).all(), kind
    broken = encoded(image, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert (pixels(broken) == gradient()).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animation(kind):
    frames = [Image.new("RGB", (16, 12), color) for color in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    picture = load_image(data)
    assert picture.image.getpixel((0, 0)) == (255, 0, 0)
    assert picture.note.endswith(": the first one is used") and " 3 " in picture.note


def test_size_is_checked_from_the_header(monkeypatch):
    def header_only(width, height):
        body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
        return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\x04IDAT"

    def decoded(*_):
        raise AssertionError("a picture of refused size was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in ((30_000, 30_000), (10_001, 10_000), (2**31 - 1, 2**31 - 1)):
            assert "more than 100 million pixels" in refusal(header_only(*size))
    assert limit == Image.MAX_IMAGE_PIXELS
    assert "too small" in refusal(header_only(1, 5000))
    assert "longer than 50 times" in refusal(header_only(10, 501))


def test_size_of_objects():
    assert "more than 100 million" in refusal(np.broadcast_to(np.uint8(0), (20_000, 20_000)))
    assert "too small" in refusal(np.zeros((0, 7), np.uint8))
    assert "too small" in refusal(Image.new("RGB", (3, 3)))


def test_warnings_stay_as_they_were():
    before = list(warnings.filters)
    threads = [threading.Thread(target=load_image, args=(gradient(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_arrays():
    array = gradient()
    assert (pixels(array) == array).all()
    assert (pixels(array[:, :, :1]) == array[:, :, :1]).all()
    assert (pixels(array.astype(np.uint16) * 257) == array).all()
    assert (pixels(array / 255) == array).all()
    assert (pixels((array / 255).astype(np.float16)) == array).mean() > 0.99
    assert (pixels(array[::-1, ::2]) == array[::-1, ::2]).all()
    assert set(np.unique(pixels(array[..., 0] > 90))) == {0, 255}
    for bad, text in [
        (array / 99, "[0, 1]"),
        (array - 300.0, "[0, 1]"),
        (np.full((8, 8), np.inf), "not finite"),
        (array.astype(np.int64), "dtype int64"),
        (array.transpose(2, 0, 1), "channels first"),
        (array[None], "shape (1, 20, 30, 3)"),
        (array[..., :2], "shape (20, 30, 2)"),
        (np.zeros(9, np.uint8), "shape (9,)"),
        (np.array(["a"]), "shape (1,)"),
    ]:
        assert text in refusal(bad)


def test_objects():
    assert "a NoneType is not a picture" in refusal(None)
    assert load_image(Image.fromarray(gradient())).name == "picture"
    assert load_image(gradient()).name == "array"
    image = Image.open(io.BytesIO(encoded(Image.new("RGB", (900, 900)), "JPEG")))
    load_image(image, target=32)
    assert image.size == (900, 900)


def test_target_decodes_a_jpeg_smaller(tmp_path):
    data = encoded(Image.fromarray(gradient(800, 1200)), "JPEG")
    small = load_image(data, target=64).image
    assert min(small.size) >= 128 and small.size[0] < 1200
    assert load_image(data).image.size == (1200, 800)
    assert load_image(data, target=500).image.size == (1200, 800)


@pytest.fixture
def server():
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/file":
                self.send_response(302)
                self.send_header("Location", "file:///etc/hostname")
                self.end_headers()
                return
            self.send_response(200 if self.path != "/none" else 404)
            self.end_headers()
            self.wfile.write(
                b"x" * 5000 if self.path == "/big" else encoded(Image.fromarray(gradient()))
            )

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_urls(server, monkeypatch):
    assert "allow_urls=True" in refusal(server + "/a.png")
    assert (pixels(server + "/a.png", allow_urls=True) == gradient()).all()
    assert "404" in refusal(server + "/none", allow_urls=True)
    assert "cannot be loaded" in refusal(server + "/file", allow_urls=True)
    assert "cannot be loaded" in refusal("http://127.0.0.1:1/a.png", allow_urls=True)
    assert "cannot be loaded" in refusal("http://[bad/a.png", allow_urls=True)
    for url in ("file:///etc/passwd", "ftp://a/b.png", "data:image/png;base64," + "A" * 9999):
        assert "only http and https" in refusal(url, allow_urls=True)
    monkeypatch.setattr(images, "MAX_BYTES", 1 << 10)
    assert "is larger than" in refusal(server + "/big", allow_urls=True)
