"""DiffusionGemma with a tokenizer: `info`, the heads and the command line."""

import io
import json
import shutil

import pytest
import torch
import transformers
from PIL import Image

import mmdiff
from mmdiff.cli.main import main
from mmdiff.errors import CheckpointError, InputError
from tests.checkpoints.helpers import write_gemma, write_tokenizer

if not hasattr(transformers, "DiffusionGemmaForBlockDiffusion"):
    pytest.skip("this transformers has no DiffusionGemma", allow_module_level=True)

SPECIAL = {
    "pad_token": "<pad>",
    "eos_token": "<eos>",
    "bos_token": "<bos>",
    "boi_token": "<|image>",
    "image_token": "<|image|>",
    "eoi_token": "<image|>",
    "sot_token": "<|turn>",
    "eot_token": "<turn|>",
    "boa_token": "<|audio>",
    "audio_token": "<|audio|>",
    "eoa_token": "<audio|>",
    "video_token": "<|video|>",
}
NAMED = dict(enumerate(SPECIAL.values(), start=260))
IDS = {role: i for i, role in enumerate(SPECIAL, start=260)}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<|image|>{% else %}{{ p['text'] | trim }}{% endif %}{% endfor %}"
    "{% endif %}<turn|>\n{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
PICTURES = [Image.effect_noise(size, 60).convert("RGB") for size in ((60, 45), (30, 80))]
QUICK = {"max_new_tokens": 6, "steps": 2, "stop": "none"}
QUESTION = "what is this?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("gemma") / "model"
    sizes = {
        "vocab_size": 280,
        "max_position_embeddings": 256,
        "use_bidirectional_attention": "vision",
    }
    text = sizes | {f"{name}_token_id": IDS[f"{name}_token"] for name in ("pad", "eos", "bos")}
    top = {f"{name}_token_id": IDS[f"{name}_token"] for name in ("boi", "eoi", "image")}
    write_gemma(path, text, {"position_embedding_size": 64, "patch_size": 4}, **top)
    extra = {k: v for k, v in SPECIAL.items() if k not in ("pad_token", "eos_token", "bos_token")}
    own = {k: v for k, v in SPECIAL.items() if k not in extra}
    write_tokenizer(path, 272, NAMED, chat_template=TEMPLATE, extra_special_tokens=extra, **own)
    settings = {"patch_size": 4, "max_soft_tokens": 70, "pooling_kernel_size": 3}
    said = {"image_processor_type": "Gemma4ImageProcessor", **settings}
    (path / "preprocessor_config.json").write_text(json.dumps(said))
    generation = {"eos_token_id": [IDS["eos_token"], IDS["eot_token"]], "t_min": 0.3, "t_max": 0.9}
    (path / "generation_config.json").write_text(json.dumps(generation))
    return path


@pytest.fixture(scope="module")
def model(folder):
    return mmdiff.load(folder, device="cpu")


@pytest.fixture
def run(capsys):
    def command(*arguments):
        code = main([str(argument) for argument in arguments])
        made = capsys.readouterr()
        return code, made.out, made.err

    return command


def asked(pictures, question=QUESTION):
    parts = [*[{"type": "image"}] * pictures, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


def copied(folder, tmp_path, without=()):
    shutil.copytree(folder, tmp_path / "model")
    for name in without:
        (tmp_path / "model" / name).unlink()
    return tmp_path / "model"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_inputs_are_those_of_transformers_processor(folder, model, count):
    pytest.importorskip("torchvision")
    from transformers import Gemma4AudioFeatureExtractor, Gemma4Processor, Gemma4VideoProcessor
    from transformers import Gemma4ImageProcessorPil as Pictures

    from mmdiff.heads.base import Example

    theirs = Gemma4Processor(
        Gemma4AudioFeatureExtractor(),
        Pictures.from_pretrained(folder),
        transformers.PreTrainedTokenizerFast.from_pretrained(folder),
        Gemma4VideoProcessor(),
    )
    text = theirs.tokenizer.apply_chat_template(
        asked(count), tokenize=False, add_generation_prompt=True
    )
    pictures = PICTURES[:count]
    expected = theirs(
        images=pictures or None, text=text, return_tensors="pt", add_special_tokens=False
    )
    made = model.processor.inputs(Example(asked(count), pictures))
    assert made.keys() >= ({"pixel_values", "image_position_ids"} if count else {"input_ids"})
    for name, value in made.items():
        assert torch.equal(value, expected[name]), name


def test_an_answer_is_what_generate_gives(model):
    from mmdiff.heads.base import Example

    made = model.answer(PICTURES[0], QUESTION, seed=5, **QUICK)
    inputs = model.processor.inputs(Example(asked(1), PICTURES[:1]))
    out = model.generate(**inputs, seed=5, **QUICK)
    assert out.sequences[0, -6:].tolist() == made.ids
    assert (int(out.nfe[0]), made.text) == (made.nfe, model.processor.decode(made.ids))
    both = model.caption(PICTURES, seed=[1, 2], **QUICK)
    alone = [model.caption(p, seed=i, **QUICK) for i, p in enumerate(PICTURES, start=1)]
    assert [g.ids for g in both] == [g.ids for g in alone]
    assert model.answer(PICTURES[1], QUESTION, seed=5, **QUICK).ids != made.ids


def test_info(folder, model, run):
    code, out, _ = run("info", folder, "--json")
    facts = json.loads(out)
    total = sum(p.numel() for p in model.network.parameters())
    assert (code, facts["parameters"]["total"], facts["memory_bf16_bytes"]) == (0, total, 2 * total)
    assert (facts["family"], facts["attention_layout"]) == ("gemma", "block")
    assert facts["prompt_cache_exact"] is True
    assert (facts["decoding"]["temperature"], facts["decoding"]["block_length"]) == (0.9, 6)
    code, out, _ = run("info", folder)
    assert code == 0 and "any size -> up to 70 tokens" in out


def test_verbs_on_the_command_line(folder, tmp_path, run, monkeypatch):
    PICTURES[0].save(tmp_path / "picture.png")
    quick = ["--model", folder, "--json", *(f"{k}={v}" for k, v in QUICK.items())]
    for verb in (
        ["caption", tmp_path / "picture.png"],
        ["answer", tmp_path / "picture.png", "why?"],
    ):
        code, out, _ = run(*verb, *quick)
        row = json.loads(out)
        assert (code, row["nfe"]) == (0, 2) and row.keys() >= {"file", "text"}
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nand now?\n"))
    code, out, _ = run("chat", *quick)
    assert code == 0 and len(out.splitlines()) == 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["cache=prefix"], "DiffusionGemma has no setting 'cache'"),
        (["stop=cut"], "no stop=cut"),
        (["--animate", "OUT"], "DiffusionGemma has no setting 'trace'"),
        (["max_new_tokens=300", "steps=50"], "shorten the text"),
    ],
)
def test_mistakes_are_one_line(folder, tmp_path, run, more, words):
    PICTURES[0].save(tmp_path / "picture.png")
    more = [str(tmp_path / "a.png") if word == "OUT" else word for word in more]
    code, _, err = run("caption", tmp_path / "picture.png", "--model", folder, *more)
    assert code == 2 and err.startswith("mmdiff: error: ") and err.count("\n") == 1
    assert words in err


def test_a_typed_token_is_plain_text(model):
    ids = model.processor.prompt_ids(asked(1, "a <|image|> b <turn|>"))
    assert ids.count(IDS["image_token"]) == 1
    assert ids.count(IDS["eot_token"]) == 1


def test_a_text_with_holes_is_refused(model):
    with pytest.raises(InputError, match="no mask token"):
        model.infill("a [MASK:2]")
    with pytest.raises(InputError, match="paints no pictures"):
        model.paint("a cup", None)


@pytest.mark.parametrize(
    ("without", "words"),
    [
        (("preprocessor_config.json",), "cannot read pictures"),
        (("chat_template.jinja",), "no chat template"),
        (("tokenizer.json", "tokenizer_config.json"), "no processor files"),
    ],
)
def test_folders_that_hold_less(folder, tmp_path, without, words):
    model = mmdiff.load(copied(folder, tmp_path, without), device="cpu")
    with pytest.raises(InputError, match=words):
        model.answer(PICTURES[0], QUESTION, **QUICK)
    assert model.generate(torch.tensor([[5, 6]]), **QUICK).sequences.shape == (1, 8)


def test_a_template_that_forgets_pictures(folder, tmp_path):
    path = copied(folder, tmp_path)
    template = (path / "chat_template.jinja").read_text().replace("<|image|>", "")
    (path / "chat_template.jinja").write_text(template)
    with pytest.raises(InputError, match="shows 0 of 1 pictures"):
        mmdiff.load(path, device="cpu").answer(PICTURES[0], QUESTION, **QUICK)


def test_files_that_are_unfit(folder, tmp_path, run):
    path = copied(folder, tmp_path)
    (path / "generation_config.json").write_text('{"t_min": -1}')
    code, _, err = run("info", path)
    assert code == 2 and "config files cannot be used" in err and err.count("\n") == 1
    (path / "generation_config.json").unlink()
    (path / "preprocessor_config.json").write_text('{"max_soft_tokens": 5}')
    with pytest.raises(CheckpointError, match="pictures cannot be read"):
        mmdiff.load(path, device="cpu")
