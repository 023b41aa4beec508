"""Guided diffusion against a plain re-statement: one row, one token, no kept keys at a time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmdiff.decoding.agree import agrees, run
from mmdiff.decoding.guide_model import Reader, common
from mmdiff.decoding.translate import SameIds, spell
from mmdiff.errors import CheckpointError, SettingError
from tests.decoding.guides import other_tokenizer, save_guide
from tests.decoding.helpers import REQUESTS, answers, batch, fill, make_row

WORDS = ["many circles: are there? red blue square is a green", "star or a red circle."] * 20
HOLES = ([True] * 8, [True, False] * 4, [False, True, True, False, True, True, True, True])


@pytest.fixture(scope="module")
def same(_sharp_model, tmp_path_factory):
    tokenizer = _sharp_model.processor.tokenizer
    return save_guide(tmp_path_factory.mktemp("same"), _sharp_model.rows, tokenizer, end=0)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    tokenizer = other_tokenizer(WORDS, 300)
    folder = tmp_path_factory.mktemp("other")
    return *save_guide(folder, len(tokenizer), tokenizer, end=1), tokenizer


def rows_of(model):
    return [make_row(model.processor, *r, holes=h) for r, h in zip(REQUESTS, HOLES, strict=True)]


def no_letters(model):
    """Ids whose text is more than ASCII or no text: halves of characters, special tokens."""
    tokenizer = model.processor.tokenizer
    texts = [tokenizer.decode([i]) for i in range(model.rows)]
    special = set(tokenizer.all_special_ids) - set(model.processor.end_ids)
    return tuple(i for i, t in enumerate(texts) if not t.isascii() or not t or i in special)


def judged(network, ids, place, top, share):
    """Whether the guide agrees with ids[place]."""
    if place == 0:
        return False
    chance = network(torch.tensor([ids[:place]])).logits[0, -1].softmax(-1)
    better = int((chance > chance[ids[place]]).sum())
    return better < top and bool(chance[ids[place]] >= share * chance.max())


def by_ids(network, ids, cell, top, share):
    return judged(network, ids, cell, top, share)


def by_text(own, guide, end_ids):
    """The same with each letter looked up in both token lists; the guide begins with <s>."""

    def agrees_by_text(network, ids, cell, top, share):
        ended = [i for i in range(agrees_by_text.first, len(ids)) if ids[i] in end_ids]
        if ended and cell > ended[0]:
            return False
        stop = ended[0] if ended else len(ids)
        text = own.decode(ids[:stop], skip_special_tokens=False)
        made = guide(text, add_special_tokens=False, return_offsets_mapping=True)
        read = [0, *made["input_ids"]]
        if cell == stop:
            return judged(network, [*read, 1], len(read), top, share)
        before, behind = (
            len(own.decode(ids[:n], skip_special_tokens=False)) for n in (cell, cell + 1)
        )
        letters = set(range(before, behind))
        mine = [
            i + 1 for i, (a, b) in enumerate(made["offset_mapping"]) if letters & set(range(a, b))
        ]
        return bool(mine) and all(judged(network, read, i, top, share) for i in mine)

    return agrees_by_text


@torch.inference_mode()
def by_hand(model, row, network, agreed, forbid, top, share, width=99):
    """Answer and calls of one row, every block of `width` cells from the left."""
    canvas = batch(model, row)
    start, calls = canvas.prompt_length, 0
    pictured = canvas.features.cells.tolist() if canvas.features is not None else []
    while bool(canvas.masked.any()):
        calls += 1
        logits = model.head(model.hidden(canvas, model.embed(canvas)))[0]
        logits[:, [*forbid, *model.forbidden().tolist()]] = float("-inf")
        block = (int(canvas.masked[0].nonzero()[0]) - start) // width
        is_open = [
            i for i in canvas.masked[0].nonzero()[:, 0].tolist() if (i - start) // width == block
        ]
        draft = canvas.ids[0].clone()
        draft[is_open] = logits[is_open].argmax(1)
        told = [i for i in range(is_open[-1] + 1) if canvas.valid[0, i] and i not in pictured]
        ids = draft[told].tolist()
        agreed.first = told.index(is_open[0])
        count = 0
        while count < len(is_open) and agreed(network, ids, told.index(is_open[count]), top, share):
            count += 1
            if int(draft[is_open[count - 1]]) in model.processor.end_ids:
                break
        taken = is_open[: max(count, 1)]
        canvas.ids[0, taken] = draft[taken]
        canvas.masked[0, taken] = False
    return canvas.ids[0, start:].tolist(), calls


@pytest.mark.parametrize(
    ("top", "share", "width"), [(150, 0.0, None), (200, 0.02, 3), (1, 0, None)]
)
@pytest.mark.parametrize("kind", ["same", "other"])
def test_guided_answers(model, same, other, kind, top, share, width):
    forbid = no_letters(model)
    if kind == "same":
        (network, folder), agreed = same, by_ids
    else:
        network, folder, tokenizer = other
        agreed = by_text(model.processor.tokenizer, tokenizer, model.processor.end_ids)
    settings = {
        "speculate": f"guided:top={top},share={share}",
        "guide": folder,
        "order": "left_to_right",
        "forbid": forbid,
        "block_length": width,
        "max_new_tokens": 8,
    }
    made = fill(model, *rows_of(model), **settings)
    assert not made.canvas.masked.any()
    assert made.guide_nfe.tolist() == made.nfe.tolist()
    assert made.calls >= int(made.nfe.max())
    for i, row in enumerate(rows_of(model)):
        wanted = by_hand(model, row, network, agreed, forbid, top, share, width or 99)
        assert (answers(made)[i], int(made.nfe[i])) == wanted
        alone = fill(model, rows_of(model)[i], **settings)
        assert answers(alone)[0] == answers(made)[i]
        assert alone.guide_nfe.tolist() == [int(made.nfe[i])]
    if top > 1:
        assert int(made.nfe.sum()) < 18


def test_a_guide_that_always_agrees_and_one_that_never_does(model, same):
    rows = rows_of(model)
    ways = {"order": "left_to_right", "max_new_tokens": 8}
    guided = ways | {"guide": same[1]}
    at_once = fill(model, *rows, **guided, speculate=f"guided:top={model.rows}")
    assert at_once.nfe.tolist() == [1, 1, 1]
    assert answers(at_once) == answers(fill(model, *rows, **ways, steps=1))
    slow = fill(model, *rows, **guided, speculate="guided:top=1,share=1")  # as good as never
    assert slow.nfe.tolist() == [8, 4, 6]
    assert answers(slow) == answers(fill(model, *rows, **ways))


def test_drawn_answers_are_those_of_the_rows_alone(model, other):
    settings = {"order": "left_to_right", "guide": other[1], "speculate": "guided:top=150"}
    settings |= {"temperature": 1.0, "max_new_tokens": 8}
    made = fill(model, *rows_of(model), **settings, seed=(4, 5, 6))
    for i, row in enumerate(rows_of(model)):
        assert answers(fill(model, row, **settings, seed=4 + i))[0] == answers(made)[i]


@pytest.mark.parametrize(
    ("ranked", "agreed", "ends", "taken"),
    [
        ([3, 4, 6], (True, True, True), set(), [3, 4, 6]),
        ([3, 4, 6], (True, False, True), set(), [3]),
        ([3, 4, 6], (False, True, True), set(), [3]),
        ([3, 4, 6], (True, True, True), {4}, [3, 4]),  # nothing behind an end
        ([3, 6, 4], (True, True, True), set(), [3]),  # 4 holds a late id
        ([4, 6, 3], (True, True, True), set(), [4]),
    ],
)
def test_a_run(ranked, agreed, ends, taken):
    coming = [3, 4, 6]
    assert run(coming, [*ranked, 0, 1], dict(zip(coming, agreed, strict=True)), ends) == taken


def test_the_calls_of_both_models_are_told(model, same):
    settings = {"speculate": "guided", "guide": same[1], "order": "left_to_right"}
    out = model.generate(torch.tensor([[40, 50, 60]]), max_new_tokens=4, stop="none", **settings)
    assert out.guide_nfe.tolist() == out.nfe.tolist()
    told = model.answer(None, "is it red?", **settings)
    assert told.guide_nfe == told.nfe > 0
    assert model.generate(torch.tensor([[40]]), max_new_tokens=2).guide_nfe is None


@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0, 1))
def test_agreement(seed, top, share):
    logits = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(seed)) * 3
    ids = torch.tensor([[0, 1, 2, 3]])
    got = agrees(logits, ids, top, share)[0].tolist()
    for place, chance in enumerate(logits[0].double().softmax(-1).tolist()):
        own = chance[place]
        close = abs(own - share * max(chance)) < 1e-5
        wanted = own in sorted(chance)[-top:] and own >= share * max(chance)
        assert close or got[place] == wanted


@torch.inference_mode()
def test_kept_keys_change_nothing(same):
    network = same[0]
    reader, fresh = (
        Reader(network),
        lambda rows: [network(torch.tensor([r])).logits[0] for r in rows],
    )
    steps = [
        ([0, 1, 2], [[1, 2, 3, 4, 5], [6, 7, 8], [9, 8, 7, 6]], 2),
        ([0, 1, 2], [[1, 2, 3, 9, 5, 6], [6, 7, 8, 1], [9, 8, 7, 6]], 3),
        ([0, 2], [[1, 2, 3, 9, 5, 7, 8], [9, 8, 7, 1, 2]], 4),
        ([2], [[9, 8, 7, 1, 2, 3]], 1),
    ]
    for numbers, rows, first in steps:
        heard = reader(numbers, rows, first)
        for own, plain in zip(heard, fresh(rows), strict=True):
            n = len(plain) - first
            torch.testing.assert_close(own[:n], plain[first - 1 : -1])


def test_common():
    assert common([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common([1, 2], [1, 2, 4]) == 2
    assert common([], [1]) == 0


def test_ids_that_only_one_side_knows_are_left_out():
    read = SameIds({1, 2, 3}, begin=9)([1, 7, 2, 3], 1)
    assert read.ids == [9, 1, 2, 3]
    assert [list(span) for span in read.spans] == [[], [2], [3]]
    assert SameIds({1, 9}, begin=9)([9, 1], 0).ids == [9, 1]


@pytest.mark.parametrize("text", ["a red circle", "café 日本語 é!", "  two  spaces\n\n"])
def test_spelling_adds_up(model, text):
    tokenizer = model.processor.tokenizer
    ids = model.processor.encode(text)
    whole = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    for first in range(len(ids)):
        before, pieces = spell(tokenizer, ids, first)
        assert len(pieces) == len(ids) - first
        if not before.endswith("\ufffd"):
            assert before + "".join(pieces) == whole
            for n in range(len(pieces)):
                said = tokenizer.decode(ids[: first + n], clean_up_tokenization_spaces=False)
                if not said.endswith("\ufffd"):
                    assert before + "".join(pieces[:n]) == said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"guide": None}, "needs a small autoregressive model: guide=FOLDER"),
        ({"order": "confidence"}, "order must be left_to_right"),
        ({"accept": "threshold"}, "accept must be schedule"),
        ({"codes": (10, 20)}, "codes must be None"),
        ({"speculate": "guided:top=0"}, "top=0 must be a whole number"),
        ({"speculate": "guided:share=2"}, "share=2 must lie in"),
        ({"speculate": "freedave"}, "goes with speculate=guided alone"),
    ],
)
def test_what_does_not_go_together_is_refused(model, same, settings, words):
    given = {"speculate": "guided", "guide": same[1], "order": "left_to_right"} | settings
    with pytest.raises(SettingError, match=words):
        fill(model, rows_of(model)[0], **given)


def test_folders_that_are_no_guide(model, tmp_path):
    from transformers import MambaConfig, MambaForCausalLM

    ways = {"speculate": "guided", "order": "left_to_right"}
    with pytest.raises(CheckpointError, match="neither a folder nor"):
        fill(model, rows_of(model)[0], **ways, guide=str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        fill(model, rows_of(model)[0], **ways, guide="mmdiff/tiny")
    save_guide(tmp_path / "small", 77)
    with pytest.raises(SettingError, match=f"has 77 ids, this model's {model.rows}"):
        fill(model, rows_of(model)[0], **ways, guide=str(tmp_path / "small"))
    sizes = {"hidden_size": 8, "state_size": 2, "num_hidden_layers": 1, "vocab_size": 77}
    MambaForCausalLM(MambaConfig(**sizes)).save_pretrained(tmp_path / "mamba")
    with pytest.raises(CheckpointError, match="must forget rejected tokens"):
        fill(model, rows_of(model)[0], **ways, guide=str(tmp_path / "mamba"))
