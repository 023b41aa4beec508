"""MMaDA and Lumina-DiMOO: recognised, packed, painting with a tokenizer of their own."""

import json
import shutil

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import mmdiff
from mmdiff.checkpoints import lumina, mmada
from mmdiff.checkpoints.base import find
from mmdiff.encoders.codes import load_codec
from mmdiff.encoders.codes.magvit import Magvit
from mmdiff.errors import InputError
from tests.checkpoints.helpers import write
from tests.checkpoints.published_configs import PUBLISHED
from tests.walk.core import ROOT

GOLDEN = ROOT / "tests" / "golden" / "vlmo"
IDS = mmada.Ids(bos=1, eos=2, soi=3, eoi=4, t2i=5, mmu=6, r2i=7, pad=8, end_header=9)
SIZES = {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": [1, 1], "z_channels": 4}
TOKENS = {
    "mmada": ["<|t2i|>", "<|soi|>", "<|eoi|>", "<|startoftext|>"],
    "lumina": [
        *("<system>", "</system>", "<user>", "</user>", "<uncondition>"),
        *("<answer>", "</answer>", "<IMAGE>", "</IMAGE>", "<end-of-line>"),
    ],
}
QUICK = {"steps": 3, "size": (4, 6)}  # codes are 2 x 2 pixels


def tiny_folder(name, folder):
    """A tiny checkpoint with a word tokenizer whose special tokens have the published names."""
    write(folder, name)
    words = ["[UNK]", "a", "red", "cup", "blue", *TOKENS[name]]
    words += [f"w{i}" for i in range(len(words), 40)]
    table = {word: i for i, word in enumerate(words)} | {"<|mdm_mask|>": 60, "<|endoftext|>": 61}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([*TOKENS[name], "<|mdm_mask|>", "<|endoftext|>"])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", unk_token="[UNK]"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["mmada", "lumina"])
def painter(request, tmp_path_factory):
    model = mmdiff.load(tiny_folder(request.param, tmp_path_factory.mktemp("m") / "model"))
    model.config.codes = [40, 16]
    model.config.vocab_used = 64
    return model


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    return Magvit(SIZES, SIZES).eval()


@pytest.mark.parametrize("name", ["llada", "mmada", "lumina"])
def test_each_is_recognised(name):
    assert find(PUBLISHED[name], "here")[0] == name


def test_codes_follow_the_words():
    assert mmada.config(PUBLISHED["mmada"])["codes"] == [126349, 8192]
    assert lumina.config(PUBLISHED["lumina"])["codes"] == [126356, 8192]
    small = json.loads((GOLDEN / "mmada" / "config.json").read_text())
    assert mmada.config(small)["codes"] == [104, 24]


@pytest.mark.parametrize("text", [[], [20], [1, 20, 9, 21], list(range(20, 40))])
def test_rows_of_every_task(text):
    codes, length = [50, 51], 7
    row = mmada.text_to_image(text, codes, length, IDS)
    assert row.ids[-4:] == [3, 50, 51, 4] and len(row.ids) == len(row.mask) == length + 5
    head = row.ids[: length + 1]
    assert head[-1] == IDS.eos and head.count(IDS.t2i) == 1
    assert [i == IDS.pad for i in head] == [m == 0 for m in row.mask[: length + 1]]
    assert all(label == (i if seen else -100) for i, label, seen in
               zip(row.ids, row.labels, row.mask, strict=True))  # fmt: skip
    for row, words, prompt in (
        (mmada.image_to_text(codes, text, length, IDS), slice(5, None), 5),
        (mmada.reasoning_to_image(text, codes, length, IDS), slice(1, 1 + length), 1),
    ):
        told = row.ids[words]
        assert len(told) == length and told[0] == IDS.bos and told[-1] == IDS.eos
        if 9 in told:
            assert sum(row.mask[words]) == told.index(9) + 1
        assert row.mask[:prompt] == [1] * prompt
    line = mmada.language(text, length, IDS)
    assert len(line.ids) == length and line.labels == line.ids
    assert sum(line.mask) == (line.ids.index(9) + 1 if 9 in line.ids else 0)


def test_rows_of_a_picture_end_with_a_newline():
    assert lumina.rows_of([1, 2, 3, 4, 5, 6], 3, 0) == [1, 2, 3, 0, 4, 5, 6, 0]


def test_a_picture_row(painter):
    row = mmdiff.checkpoints.base.FAMILIES.get(painter.config.family).pictures.row(
        painter.processor, "a red <|mdm_mask|> cup", (2, 3)
    )
    spell = painter.processor.tokenizer.convert_ids_to_tokens
    assert row.draft.count(60) == 6 and 60 not in row.prompt
    if painter.config.family == "mmada":
        start = ["<|t2i|>", "<|startoftext|>"]
        assert spell(row.negative) == [*start, "<|endoftext|>", "<|soi|>"]
        assert spell(row.prompt)[:4] == [*start, "a", "red"]
        assert spell(row.suffix) == ["<|eoi|>"]
    else:
        end = ["</user>", "<answer>", "<IMAGE>"]
        assert spell(row.negative)[-5:] == ["<user>", "<uncondition>", *end]
        assert spell(row.prompt)[-4:] == ["cup", *end]
        assert spell(row.draft) == [*["<|mdm_mask|>"] * 3, "<end-of-line>"] * 2
        assert spell(row.suffix) == ["</IMAGE>", "</answer>"]


def test_painting(painter, codec):
    made = painter.paint(["a red cup", "blue"], codec, seed=[3, 4], **QUICK)
    for i, text in enumerate(["a red cup", "blue"]):
        assert made[i].image.size == (6, 4) and made[i].codes.shape == (2, 3)
        assert 0 <= int(made[i].codes.min()) <= int(made[i].codes.max()) < 16
        alone = painter.paint(text, codec, seed=3 + i, **QUICK)
        assert torch.equal(alone.codes, made[i].codes) and alone.nfe == made[i].nfe == 6
        pixels = codec.decode(made[i].codes[None])[0].detach().permute(1, 2, 0)
        expected = ((pixels + 1) * 127.5).round().clamp(0, 255).numpy()
        assert np.array_equal(np.asarray(made[i].image), expected.astype("uint8"))
    assert not torch.equal(made[0].codes, painter.paint("a red cup", codec, seed=9, **QUICK).codes)


def test_text_never_holds_codes(painter):
    made = painter.chat([{"role": "user", "content": "a cup"}], temperature=1e6, max_new_tokens=20)
    assert made.ids and not set(made.ids) & set(range(40, 56))


def test_what_cannot_be_painted(painter, codec, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="both must be multiples of 2"):
        painter.paint("a cup", codec, size=(4, 5))
    with pytest.raises(InputError, match="the text is empty"):
        painter.paint(" ", codec, **QUICK)
    monkeypatch.setattr(painter.config, "codes", [40, 8])
    with pytest.raises(InputError, match="the codec has 16 codes, but this model has 8"):
        painter.paint("a cup", codec, **QUICK)
    write(tmp_path / "llada", "llada")
    with pytest.raises(InputError, match="paints no pictures"):
        mmdiff.load(tmp_path / "llada").paint("a cup", codec)
    write(tmp_path / "mmada", "mmada")
    with pytest.raises(InputError, match="no processor files"):
        mmdiff.load(tmp_path / "mmada").paint("a cup", codec)


def test_a_codec_by_its_folder(tmp_path):
    shutil.copy(GOLDEN / "mmada" / "vq.safetensors", tmp_path / "model.safetensors")
    config = json.loads((GOLDEN / "mmada" / "vq_config.json").read_text())
    assert load_codec("magvit", tmp_path, config).factor == 2
