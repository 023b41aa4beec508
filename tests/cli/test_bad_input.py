"""Everything that people feed to a command by mistake: one line on stderr, exit code 2."""

import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file


def png_of_size(width, height):
    """The bytes of a PNG that says to be of this size, cheaply."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows)


def truncated(path):
    Image.effect_noise((64, 64), 80).save(path)
    path.write_bytes(path.read_bytes()[:1000])


BAD_PICTURES = {
    "missing": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "empty": (lambda path: path.touch(), "empty"),
    "truncated": (truncated, "cut short"),
    "text": (lambda path: path.write_text("hello"), "a text file, not a picture"),
    "bomb": (lambda path: path.write_bytes(png_of_size(30_000, 30_000)), "million pixels"),
    "thin": (lambda path: Image.new("RGB", (1, 5000)).save(path), "1 x 5000"),
}


def one_line(outcome, *words):
    assert outcome.code == 2
    assert outcome.err.startswith("mmdiff: error: ")
    assert outcome.err.count("\n") == 1
    for word in words:
        assert word in outcome.err


@pytest.fixture
def command(run, checkpoint):
    """A verb with the tiny model and a short answer."""

    def go(verb, *arguments):
        return run(verb, *arguments, "--model", checkpoint, "max_new_tokens=2")

    return go


@pytest.mark.parametrize("kind", BAD_PICTURES)
@pytest.mark.parametrize("verb", ["caption", "answer", "chat", "demo"])
def test_a_bad_picture(command, tmp_path, kind, verb):
    make, words = BAD_PICTURES[kind]
    path = tmp_path / "bad.png"
    make(path)
    rest = {"answer": ["what?"]}.get(verb, [])
    given = ["--image", path] if verb == "chat" else [path]
    outcome = command(verb, *given, *rest)
    one_line(outcome, words, "bad.png")
    assert outcome.out == ""


def test_a_picture_that_may_not_be_read(command, picture, monkeypatch):
    """Root may read everything, so the refusal is played."""
    import builtins

    plain_open = builtins.open

    def refused(file, *rest, **more):
        if str(file) == picture:
            raise PermissionError(13, "Permission denied", picture)
        return plain_open(file, *rest, **more)

    monkeypatch.setattr("builtins.open", refused)
    one_line(command("caption", picture), "may not be read")


def test_one_bad_file_does_not_lose_the_others(command, picture, tmp_path):
    missing = str(tmp_path / "missing.png")
    outcome = command("caption", picture, missing, picture, "--json")
    one_line(outcome, "missing.png")
    assert [row["file"] for row in outcome.rows] == [picture, missing, picture]
    assert ["error" in row for row in outcome.rows] == [False, True, False]
    assert list(outcome.rows[1]) == ["file", "error"]


def cmyk(path):
    Image.new("CMYK", (40, 30), (0, 255, 255, 0)).save(path)


def transparent_palette(path):
    image = Image.new("P", (40, 30), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(path, transparency=1)


def rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30), "red").save(path, exif=exif)


@pytest.mark.parametrize(
    ("name", "make"),
    [("cmyk.jpg", cmyk), ("palette.png", transparent_palette), ("rotated.jpg", rotated)],
)
def test_unusual_pictures_work(command, tmp_path, name, make):
    make(tmp_path / name)
    outcome = command("caption", tmp_path / name)
    assert (outcome.code, outcome.err) == (0, "")


def test_a_16_bit_png_is_not_white(command, tmp_path):
    from mmdiff.images import load_image

    path = tmp_path / "deep.png"
    ramp = np.linspace(0, 65535, 48 * 48).astype(np.uint16).reshape(48, 48)
    Image.fromarray(ramp).save(path)
    assert command("caption", path).code == 0
    values = np.asarray(load_image(path).image)
    assert abs(values.mean() - 127.5) < 1


def test_of_an_animation_the_first_frame_is_used_and_it_is_said(command, tmp_path):
    path = tmp_path / "moving.gif"
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue", "green")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    outcome = command("caption", path)
    assert outcome.code == 0
    assert "animated GIF with 3 frames: the first one is used" in outcome.err
    assert "note" not in outcome.out


@pytest.mark.parametrize("token", ["<|mask|>", "<|image|>", "<|end|>", "<image>", "[MASK:3]"])
def test_special_tokens_in_a_question_are_plain_text(command, picture, token):
    assert command("answer", picture, f"is {token} here?").code == 0
    assert command("caption", picture, "--prompt", token).code == 0


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question(command, picture, question):
    one_line(command("answer", picture, question), "the question is empty")


def test_an_empty_prompt(command, picture):
    one_line(command("caption", picture, "--prompt", " "), "--prompt is empty")


def test_a_question_of_100_000_characters(command, picture):
    outcome = command("answer", picture, "why? " * 20_000)
    one_line(outcome, "this model holds 256")
    assert len(outcome.err) < 300


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("stepz=3", "Did you mean steps or stop?"),
        ("steps=many", "steps must be"),
        ("steps=0", "at least 1"),
        ("order=confidense", "Did you mean confidence?"),
        ("accept=treshold", "Did you mean threshold?"),
        ("cache=prefiks", "Did you mean prefix"),
        ("stop=nome", "Did you mean none?"),
        ("schedule=liner", "Did you mean linear?"),
        ("a.b=1", "unknown setting a"),
    ],
)
def test_a_wrong_setting_is_told_before_a_file_is_read(command, setting, words):
    outcome = command("caption", "missing.png", setting)
    one_line(outcome, words)
    assert "missing.png" not in outcome.err


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:3:4"])
def test_a_device_that_is_not_here(command, device):
    one_line(command("caption", "missing.png", "--device", device), f"device {device}: ")


def test_no_picture_at_all(run):
    one_line(run("caption"), "Missing argument")
    one_line(run("caption", "steps=3"), "there is no picture")


# Models


def test_an_unknown_model_names_the_nearest(run):
    outcome = run("caption", "missing.png", "--model", "mmdiff/tny")
    one_line(outcome, "Did you mean mmdiff/tiny?")
    assert "missing.png" not in outcome.err
    one_line(run("info", "mmdiff/tny"), "Did you mean mmdiff/tiny?")


@pytest.fixture
def copy(checkpoint, tmp_path):
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


WEIGHT = "backbone.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop(WEIGHT), "lacks the weight"),
        (lambda tensors: tensors.update(extra=tensors[WEIGHT] + 1), "that the model has not"),
        (lambda tensors: tensors.update({WEIGHT: tensors[WEIGHT][1:].clone()}), "wrong shape"),
    ],
)
def test_a_checkpoint_with_wrong_weights(run, copy, picture, change, words):
    rewrite(copy, change)
    outcome = run("caption", picture, "--model", copy)
    one_line(outcome, words)
    assert outcome.out == ""


def test_damaged_weights(run, copy, picture):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    one_line(run("caption", picture, "--model", copy), str(copy))
    one_line(run("info", copy), "cannot be read")


def test_no_weights(run, copy, picture):
    (copy / "model.safetensors").unlink()
    one_line(run("caption", picture, "--model", copy), str(copy))
    one_line(run("info", copy), "the weights are missing")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"model_type": "gpt2"}'])
def test_a_corrupt_config(run, copy, text):
    (copy / "config.json").write_text(text)
    one_line(run("caption", "missing.png", "--model", copy), "config.json")
    one_line(run("info", copy), "config.json")


def test_a_config_of_impossible_sizes(run, copy, picture):
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["num_attention_heads"] = 0
    (copy / "config.json").write_text(json.dumps(config))
    one_line(run("caption", picture, "--model", copy), str(copy))
    one_line(run("info", copy), "describes no model")


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json"])
def test_damaged_processor_files(run, copy, picture, name):
    (copy / name).write_text("{")
    one_line(run("caption", picture, "--model", copy), str(copy))


def test_missing_processor_files(run, copy, picture):
    (copy / "processor_config.json").unlink()
    one_line(run("caption", picture, "--model", copy), "processor")


def test_a_folder_without_config_and_a_file(run, tmp_path, picture):
    one_line(run("caption", picture, "--model", tmp_path), "no config.json")
    one_line(run("caption", picture, "--model", picture), "not a file")
