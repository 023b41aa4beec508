"""Block-by-block decoding: what is kept changes nothing, and rows do not know each other."""

import pytest
import torch

from mmdiff.decoding.loop import decode
from mmdiff.decoding.settings import make_decoding
from mmdiff.errors import SettingError
from mmdiff.raw_ids import canvas_from_ids, extend_canvas, left_padded
from tests.decoding.helpers import REQUESTS, RULES, answers, fill, make_row, requests
from tests.helpers import ids

BLOCKED = [rule for rule in RULES if rule["block_length"] == 4][::2]
BLOCKED += [{"accept": "dynamic", "threshold": 0.4, "schedule": "rate", "block_length": 3}]


def block_causal(model, block_size, shift=False):
    model.config.attention_layout, model.config.block_size = "block", block_size
    model.config.shift, model.config.picture_apart = shift, False
    return model


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("block_size", [None, 4])
def test_the_block_cache_is_exact(model, block_size, shift):
    block_causal(model, block_size, shift)
    for rule in BLOCKED:
        kept, plain = (fill(model, *requests(model), cache=c, trace=True, **rule)
                       for c in ("block", "none"))  # fmt: skip
        assert answers(kept) == answers(plain), rule
        assert kept.nfe.tolist() == plain.nfe.tolist()
        for one, other in zip(kept.trace, plain.trace, strict=True):
            torch.testing.assert_close(one.probability, other.probability)


@pytest.mark.parametrize("block_size", [None, 4])
def test_a_batch_equals_its_rows_alone(model, block_size):
    """Prompts differ in length, so rows stand at different blocks; a hole-free block is skipped."""
    block_causal(model, block_size)
    holes = [[True] * 9, [True, False] + [True] * 7, [True] + [False] * 5 + [True] * 3]
    for rule in BLOCKED:

        def row(i):
            return make_row(model.processor, *REQUESTS[i], holes[i])

        together = fill(model, *map(row, range(3)), cache="block", seed=(5, 6, 7), **rule)
        for i in range(3):
            alone = fill(model, row(i), cache="block", seed=5 + i, **rule)
            assert answers(alone)[0] == answers(together)[i], rule
            assert int(alone.nfe[0]) == int(together.nfe[i]), rule


def test_a_step_feeds_the_open_block_alone(model, monkeypatch):
    """And, once, the block before it."""
    fed, run = [], type(model).hidden

    def count(self, canvas, embeds, *args, **kwargs):
        fed.append(embeds.shape[1])
        return run(self, canvas, embeds, *args, **kwargs)

    monkeypatch.setattr(type(model), "hidden", count)
    block_causal(model, 4)
    prompt = ids(1, 10)
    model.generate(prompt, max_new_tokens=10, block_length=4, stop="none")
    # 2 cells of the prompt begin the first of three blocks.
    assert fed == [10, 4, 4, 8, 4, 4, 4, 8, 4, 4, 4]


def by_hand(model, row, cells, length):
    """Greedy, one cell a step, most probable first, every call on all blocks so far."""
    known, prompt = row.tolist(), len(row)
    total = prompt + cells
    while len(known) < total:
        end = min(total, (len(known) // length + 1) * length)
        block = known + [None] * (end - len(known))
        while None in block:
            filled = [model.config.mask_token_id if i is None else i for i in block]
            logits = model(input_ids=torch.tensor([filled])).logits[0]
            logits[:, model.forbidden()] = float("-inf")
            chance, tokens = logits.softmax(1).max(1)
            best = max((i for i, x in enumerate(block) if x is None), key=lambda i: chance[i])
            block[best] = int(tokens[best])
        known = block
    return known


@torch.inference_mode()
def test_generate_equals_the_loop_by_hand(model):
    block_causal(model, 4)
    settings = {"max_new_tokens": 9, "block_length": 4, "stop": "none"}
    for cells in (3, 8, 10):
        prompt = ids(1, cells, seed=cells)
        made = model.generate(prompt, **settings).sequences[0].tolist()
        assert made == by_hand(model, prompt[0], 9, 4)


@torch.inference_mode()
def test_logits_of_a_prompt_are_block_causal(model):
    """A later block changes nothing before it, a later cell of the same block does."""
    block_causal(model, 4)
    one = ids(1, 10)
    other = one.clone()
    other[0, 6] += 1
    changed = (model(input_ids=one).logits != model(input_ids=other).logits).any(2)[0]
    assert changed.tolist() == [False] * 4 + [True] * 6


def test_padded_prompts_with_pictures_keep_them_in_the_first_block(model):
    """A block long enough reaches into the picture's cells."""
    block_causal(model, 32)
    made = [fill(model, *requests(model), cache=c, block_length=32) for c in ("block", "none")]
    assert answers(made[0]) == answers(made[1])


def test_the_block_after_an_end_stays_masked(model):
    block_causal(model, 4)
    canvas = canvas_from_ids(model, ids(1, 6))
    draft = torch.full((1, 10), model.config.mask_token_id)

    def run(end, **more):
        start = extend_canvas(left_padded(canvas), draft, model.config.mask_token_id)
        settings = make_decoding({"max_new_tokens": 10, "block_length": 4, **more})
        return decode(model, start, settings, end)

    plain = answers(run(None, stop="none"))[0]
    end = plain[3]  # in the second of the blocks of 2, 4 and 4 cells
    assert end not in plain[:2]
    stopped = run(end, stop="block")
    assert answers(stopped)[0] == plain[:6] + [model.config.mask_token_id] * 4
    assert stopped.nfe.tolist() == [6]


def test_other_layouts_are_refused(model):
    model.config.attention_layout, model.config.block_size = "prefix", None
    with pytest.raises(SettingError, match=r"block-causal attention, this one's is prefix"):
        fill(model, requests(model)[0], cache="block")


def test_published_code_takes_one_row(model):
    block_causal(model, 4)
    with pytest.raises(SettingError, match="one row"):
        fill(model, *requests(model), compat="sdar", block_length=4)
