"""MMaDA and Lumina-DiMOO asked about pictures: their codes stand in the prompt as published."""

import io
import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

import mmdiff
from mmdiff.cli.main import main
from mmdiff.encoders.codes.magvit import Magvit
from mmdiff.errors import InputError, SettingError
from mmdiff.heads.base import HEADS
from mmdiff.heads.run import compose_canvas
from tests.checkpoints.helpers import random_weights, tiny, write, write_config, write_tokenizer
from tests.checkpoints.test_answers import CODES, END, LLADA, LUMINA, START, USED, roomy

AROUND = {
    "mmada": [*LLADA, "<|mmu|>", "<|soi|>", "<|eoi|>"],
    "lumina": [*LUMINA, "<IMAGE>", "</IMAGE>", "<end-of-line>"],
}
SYSTEM = (
    "<system>You are a multimodal model that can process both text and images. Answer the following"
    " question based on the provided images. Analyze each image and combine relevant details to "
    "answer.</system>"
)
LIGHT, DARK = Image.new("RGB", (70, 50), "white"), Image.new("RGB", (50, 50), "black")
QUICK = {"max_new_tokens": 4, "steps": 2}
MASK = 300


class Mosaic:
    """A codec whose codes are the brightness of squares, in CODES steps."""

    def __init__(self, factor=32, size=CODES):
        self.factor, self.size = factor, size

    def encode(self, pixels):
        means = F.avg_pool2d(pixels.mean(1), self.factor)
        return ((means + 1) / 2 * self.size).long().clamp(max=self.size - 1)


BRIGHT = USED + CODES - 1  # the id of white


def folder_of(name, path):
    config = roomy(tiny(name))
    write_config(path, config)
    save_file(random_weights(config), path / "model.safetensors")
    write_tokenizer(path, USED, dict(enumerate(AROUND[name], start=MASK)))
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model of each family with a codec; Lumina-DiMOO's own codes lie beyond a tiny table."""
    made = {}
    for name in AROUND:
        path = folder_of(name, tmp_path_factory.mktemp("looking") / name)
        made[name] = mmdiff.load(path, device="cpu")
        made[name].processor.codec = Mosaic()
        made[name].config.codes = [USED, CODES]
    return made


@pytest.fixture(params=AROUND)
def model(request, models):
    return models[request.param]


def spell(model, text):
    """The ids of text with special tokens in it, and of nothing else."""
    return model.processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def canvas_of(model, pictures, question, cells=3):
    example = HEADS.get("answer")().compose(model.processor, pictures, question)
    canvas = compose_canvas(model, model.processor, [example], cells)
    assert canvas.features is None and bool(canvas.valid.all())
    return canvas


def test_mmada_puts_the_picture_before_the_conversation(models):
    model = models["mmada"]
    mmu, soi, eoi = (spell(model, f"<|{word}|>")[0] for word in ("mmu", "soi", "eoi"))
    canvas = canvas_of(model, [LIGHT], "how many <|soi|>? ")
    picture = [mmu, soi, *[BRIGHT] * 256, eoi]  # 512 pixels square
    begin = spell(model, f"<|startoftext|>{START}user{END}\n")
    typed = model.processor.encode("how many <|soi|>?")
    end = spell(model, f"<|eot_id|>{START}assistant{END}\n")
    assert canvas.ids[0].tolist() == picture + begin + typed + end + [MASK] * 3
    assert soi not in typed
    assert canvas.masked[0].tolist() == [False] * canvas.prompt_length + [True] * 3
    assert canvas.position[0].tolist() == list(range(canvas.shape[1]))


def lumina_picture(model, code, height, width):
    boi, eoi, newline = (spell(model, word)[0] for word in ("<IMAGE>", "</IMAGE>", "<end-of-line>"))
    return [boi, *([code] * width + [newline]) * height, eoi]


def test_lumina_puts_pictures_behind_the_question(models):
    model = models["lumina"]
    close = spell(model, "</answer>")
    for picture, height, width in ((DARK, 32, 32), (LIGHT.resize((400, 100)), 16, 64)):
        code = USED if picture is DARK else BRIGHT
        shown = lumina_picture(model, code, height, width)
        prompt = spell(model, f"{SYSTEM}<user>why?") + shown + spell(model, "</user><answer>")
        canvas = canvas_of(model, [picture], "why?")
        assert canvas.ids[0].tolist() == prompt + [MASK] * 3 + close
        assert canvas.masked[0].tolist() == [False] * len(prompt) + [True] * 3 + [False]
        assert canvas.writable[0].tolist() == canvas.masked[0].tolist()
    both = lumina_picture(model, BRIGHT, 13, 18) + lumina_picture(model, USED, 16, 16)
    prompt = spell(model, f"{SYSTEM}<user>which?") + both + spell(model, "</user><answer>")
    assert canvas_of(model, [LIGHT, DARK], "which?").ids[0].tolist() == prompt + [MASK] * 3 + close
    words = spell(model, "<user>why?</user><answer>")
    assert canvas_of(model, [], "why?").ids[0].tolist() == words + [MASK] * 3 + close


def test_lumina_as_published_breaks_rows_twice(models):
    model = models["lumina"]
    whole, newline = lumina_picture(model, BRIGHT, 13, 18), spell(model, "<end-of-line>")
    twice = [cell for row in range(13) for cell in whole[18 * row : 18 * (row + 1)] + newline]
    example = HEADS.get("answer")().compose(model.processor, [LIGHT, DARK], "which?")
    ids = compose_canvas(model, model.processor, [example], 3, "lumina").ids[0].tolist()
    start = len(spell(model, f"{SYSTEM}<user>which?"))
    assert ids[start : start + len(twice)] == twice


def test_lumina_in_a_conversation(models):
    """Pictures stand in their own turn; a system message of the user's replaces the usual one."""
    model, image = models["lumina"], {"type": "image"}
    messages = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": [image, {"type": "text", "text": "one?"}]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [{"type": "text", "text": "and "}, image]},
    ]
    example = HEADS.get("chat")().compose(model.processor, [DARK, LIGHT], messages)
    ids = compose_canvas(model, model.processor, [example], 1).ids[0].tolist()
    first, second = lumina_picture(model, USED, 16, 16), lumina_picture(model, BRIGHT, 13, 18)
    words = "<system>be short</system><user>one?", "</user><answer>yes</answer><user>and "
    expected = spell(model, words[0]) + first + spell(model, words[1]) + second
    assert ids == expected + spell(model, "</user><answer>") + [MASK, *spell(model, "</answer>")]


def test_a_folder_with_a_chat_template_of_its_own(tmp_path):
    """Lumina-DiMOO's code writes its prompts without it; MMaDA's uses it."""
    for name in AROUND:
        folder = folder_of(name, tmp_path / name)
        said = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(said | {"chat_template": "own"}))
        processor = mmdiff.load(folder, device="cpu").processor
        own = processor.tokenizer.decode(processor.prompt_ids([{"role": "user", "content": "x"}]))
        assert own == {"mmada": "own", "lumina": "<user>x</user><answer>"}[name]


def test_a_batch_is_its_rows(model):
    rows = [([LIGHT], "why?"), ([], "and you?"), ([DARK], "how many are there?")]
    if model.config.family == "lumina":
        rows.append(([DARK, LIGHT], "which?"))
    together = model.run("answer", rows, **QUICK)
    alone = [model.run("answer", [row], **QUICK)[0] for row in rows]
    assert [(g.ids, g.length, g.nfe) for g in together] == [(g.ids, g.length, g.nfe) for g in alone]


def test_the_picture_is_seen(model):
    """What the model thinks of an answer's first cell depends on the picture."""
    logits = []
    for picture in (LIGHT, DARK):
        canvas = canvas_of(model, [picture.resize((64, 64))], "why?")
        logits.append(model.score(canvas, canvas.masked))
    assert not torch.allclose(*logits, atol=1e-3)


def test_every_verb(model):
    assert model.answer(LIGHT, "why?", **QUICK).nfe <= 2
    assert [g.nfe <= 2 for g in model.caption([LIGHT, DARK], **QUICK)] == [True, True]
    image = {"type": "image", "image": DARK}
    message = {"role": "user", "content": [image, {"type": "text", "text": "why?"}]}
    assert model.chat([message], **QUICK).nfe <= 2
    assert model.infill("a [MASK:2] on a table", images=LIGHT, steps=1).nfe == 1
    assert not set(model.answer(DARK, "why?", **QUICK).ids) & set(range(USED, USED + CODES))


def test_what_cannot_be_looked_at(model, monkeypatch):
    def fails(words, error=InputError, pictures=LIGHT):
        with pytest.raises(error, match=words) as caught:
            model.answer(pictures, "why?", **QUICK)
        assert "\n" not in str(caught.value)

    if model.config.family == "mmada":
        fails("MMaDA reads one picture, got 2", pictures=[LIGHT, DARK])
    for codec, words in (
        (None, "this model: the codec .* is not there"),
        (Mosaic(size=8), "the codec has 8 codes, but this model has 16"),
        (Mosaic(factor=48), "factor 48 does not divide"),
    ):
        monkeypatch.setattr(model.processor, "codec", codec)
        fails(words)
    monkeypatch.setattr(model.processor, "codec", Mosaic())
    monkeypatch.setattr(model.config, "codes", None)
    fails(r"set model.config.codes = \[first id, how many\]")


def test_a_tokenizer_without_the_tokens_around_pictures(tmp_path):
    config = roomy(tiny("mmada"))
    save_file(random_weights(config), write_config(tmp_path, config) / "model.safetensors")
    write_tokenizer(tmp_path, USED, dict(enumerate(LLADA, start=MASK)))
    model = mmdiff.load(tmp_path, device="cpu")
    with pytest.raises(InputError, match=r"needs the id 126089, but this model has \d+ rows"):
        model.answer(LIGHT, "why?", codec=Mosaic(), **QUICK)


def test_a_codec_that_nobody_uses_or_that_is_not_there(tmp_path):
    write(tmp_path, "llada")
    write_tokenizer(tmp_path, 62, {60: "<|mdm_mask|>", 61: "<|endoftext|>"})
    with pytest.raises(SettingError, match="reads no pictures as codes; leave it out"):
        mmdiff.load(tmp_path, device="cpu").answer(None, "why?", codec=Mosaic())
    model = mmdiff.load(folder_of("mmada", tmp_path / "mmada"), device="cpu")
    with pytest.raises(InputError, match=r"here/or/there: the codec .* is not there"):
        model.answer(LIGHT, "why?", codec="here/or/there")
    codec = Mosaic()
    assert model.answer(LIGHT, "why?", codec=codec, **QUICK) and model.processor.codec is codec


@pytest.fixture(scope="module")
def magvit(tmp_path_factory):
    """A folder with a tiny MAGVIT-v2 of its own sizes."""
    folder = tmp_path_factory.mktemp("codec") / "magvitv2"
    levels = [1] * 6
    sizes = {"ch": 32, "ch_mult": levels, "num_res_blocks": levels, "z_channels": 4}
    torch.manual_seed(0)
    net = Magvit(sizes, sizes)
    write_config(folder, {"encoder": sizes, "decoder": sizes})
    save_file(net.state_dict(), folder / "model.safetensors")
    return folder


def test_on_the_command_line(magvit, tmp_path, capsys, monkeypatch):
    folder, picture = folder_of("mmada", tmp_path / "model"), tmp_path / "picture.png"
    LIGHT.save(picture)
    model = ["--model", str(folder), "--json", "max_new_tokens=4", "steps=2"]
    assert main(["answer", str(picture), "why?", *model]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{folder}/magvitv2: the codec" in error
    assert "codec=FOLDER" in error and "showlab/magvitv2" in error
    assert main(["answer", "why?", *model]) == 0  # words need no codec
    assert main(["answer", str(picture), "why?", f"codec={magvit}", *model]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[-1]["file"] == str(picture) and 1 <= rows[-1]["nfe"] <= 2
    magvit.rename(folder / "magvitv2")  # beside the model it is found
    assert main(["caption", str(picture), *model]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("why?\nand?\n"))
    assert main(["chat", "--image", str(picture), *model]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [1 <= row["nfe"] <= 2 for row in rows] == [True] * 3


def test_lumina_with_its_own_codec(models, tmp_path, capsys):
    """The folder `vqvae` beside the weights, as published; here saved in our own layout."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: mmdiff[codes]")
    folder, picture = tmp_path / "model", tmp_path / "picture.png"
    models["lumina"].save_pretrained(folder)
    torch.manual_seed(0)
    diffusers.VQModel(
        block_out_channels=(32,) * 6,
        down_block_types=("DownEncoderBlock2D",) * 6,
        up_block_types=("UpDecoderBlock2D",) * 6,
        latent_channels=8,
        num_vq_embeddings=CODES,
        lookup_from_codebook=True,
    ).save_pretrained(folder / "vqvae")
    LIGHT.resize((40, 160)).save(picture)
    model = ["--model", str(folder), "--json", "max_new_tokens=4", "steps=2"]
    assert main(["answer", str(picture), "why?", *model]) == 0
    assert 1 <= json.loads(capsys.readouterr().out)["nfe"] <= 2
