"""The recipes that start from a converted model: each runs, learns what it should, and decodes."""

import json

import pytest
import torch

import mmdiff
from mmdiff.checkpoints.start import Start, to_diffusion
from tests.checkpoints.starts import write_decoder, write_llava
from tests.data.malformed import png, row, talk

SHORT = [
    "max_steps=2",
    "batch_size=2",
    "workers=0",
    "save_every=2",
    "validate_every=2",
    "warmup_steps=0",
    "answer_cells=6",
    "row_cells=160",
    "precision=float32",
    "save_dtype=float32",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data: pictures, a conversation and text alone; and the sources of starts."""
    made = tmp_path_factory.mktemp("recipes")
    (made / "images").mkdir()
    for name in "abc":
        (made / "images" / f"{name}.png").write_bytes(png(32, seed=ord(name)))
    rows = [row(name, f"{name}.png", "<image>\nwhat?", "a circle") for name in "abc"]
    turns = ("human", "why?"), ("gpt", "so"), ("human", "sure?"), ("gpt", "yes")
    texts = [row("t1", None, "how?", "fine"), talk("t2", *turns)]
    (made / "train.json").write_text(json.dumps(rows + texts))
    (made / "pictures.json").write_text(json.dumps(rows))
    (made / "text.json").write_text(json.dumps([*texts, row("t3", None, "who?", "me")]))
    write_llava(made / "llava")
    write_decoder(made / "decoder", "qwen2")
    return made


def moved(one, other):
    """The parts in which two models differ."""
    one, other = (mmdiff.load(f, device="cpu").state_dict() for f in (one, other))
    assert one.keys() == other.keys()
    names = [name for name in one if not torch.equal(one[name], other[name])]
    return {name.partition(".")[0] for name in names}


def train(run, recipe, model, output, data, *more):
    start = ["train", recipe, f"model={model}", f"output={output}", f"data={data}"]
    done = run(*start, *SHORT, *more, "--json")
    assert done.code == 0, done.err
    assert [each["step"] for each in done.rows[:-1]] == [1, 2]
    assert done.rows[-1]["summary"]["validation"] > 0
    return output


def test_dimples_three_phases(run, folder, tmp_path):
    at = {name: tmp_path / name for name in ("start", "align", "instruct", "diffusion")}
    to_diffusion(folder / "llava", at["start"])
    phases = [
        ("ar_to_diffusion_align", "start", "align", {"projector"}),
        ("ar_to_diffusion_instruct", "align", "instruct", {"projector", "backbone", "lm_head"}),
        ("ar_to_diffusion", "instruct", "diffusion", {"backbone", "lm_head"}),
    ]
    for recipe, before, after, learnt in phases:
        # A step without pictures would teach the projector nothing.
        data = folder / ("pictures.json" if after == "align" else "train.json")
        train(run, recipe, at[before], at[after], data, "lr=1e-3", "clip=1")
        assert moved(at[before], at[after]) == learnt
    picture = folder / "images" / "a.png"
    answer = ["answer", picture, "what?", "--model", at["diffusion"], "max_new_tokens=4"]
    assert run(*answer).code == 0


@pytest.mark.parametrize("shift", [False, True])
def test_block_diffusion(run, folder, tmp_path, shift):
    to_diffusion(folder / "decoder", tmp_path / "start", Start("block_causal", shift))
    data = folder / "text.json"
    more = "objective.block=4", f"validation={data}"
    output = train(run, "block_diffusion", tmp_path / "start", tmp_path / "run", data, *more)
    answer = ["answer", "why?", "--model", output, "max_new_tokens=8", "block_length=4"]
    assert run(*answer).code == 0


def test_a_text_model_trains_with_the_prefix_layout_and_shift(run, folder, tmp_path):
    to_diffusion(folder / "decoder", tmp_path / "start", Start("prefix"))
    data = folder / "text.json"
    more = f"validation={data}", "objective.complementary=true"
    output = train(run, "ar_to_diffusion", tmp_path / "start", tmp_path / "run", data, *more)
    assert run("answer", "why?", "--model", output, "max_new_tokens=4", "cache=prefix").code == 0


@pytest.mark.parametrize("name", ["rediff", "dparallel"])
def test_recipes_for_a_diffusion_model(run, folder, checkpoint, tmp_path, name):
    more = ["lora.rank=2", "objective.frontier=2"] if name == "dparallel" else []
    output = train(run, name, checkpoint, tmp_path / "run", folder / "train.json", *more)
    assert (output / "adapter_config.json").is_file() == (name == "dparallel")
    decode = ["preset=dparallel", "block_length=4"] if name == "dparallel" else ["remask=revise"]
    picture = folder / "images" / "a.png"
    done = run("answer", picture, "what?", "--model", output, "max_new_tokens=4", *decode)
    assert done.code == 0, done.err


def test_next_tokens_need_a_model_with_shift(run, folder, tmp_path):
    to_diffusion(folder / "decoder", tmp_path / "start", Start(shift=False))
    start = ["train", "ar_to_diffusion_instruct", f"model={tmp_path / 'start'}"]
    data = folder / "text.json"
    done = run(*start, f"output={tmp_path / 'run'}", f"data={data}", f"validation={data}", *SHORT)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "start from a model with shift" in done.err
    assert not (tmp_path / "run").exists()
