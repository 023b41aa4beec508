"""The decoding loop on a tiny random model: rows on their own, counts, seeds, refusals."""

import pytest
import torch

from mmdiff.decoding.loop import decode
from mmdiff.decoding.settings import Decoding
from mmdiff.errors import MMDiffError, SettingError
from tests.decoding.helpers import (
    ACCEPTS,
    HOLES,
    REQUESTS,
    RULES,
    answers,
    batch,
    fill,
    make_row,
    requests,
)


@pytest.mark.parametrize("cache", ["none", "prefix"])
@pytest.mark.parametrize(
    ("layout", "apart"), [("full", False), ("prefix", True), ("prefix", False), ("block", True)]
)
def test_a_batch_equals_its_rows_alone(model, layout, apart, cache):
    """Alone nothing is padded, so this is also padded == unpadded."""
    model.config.attention_layout, model.config.picture_apart = layout, apart
    seen = set()
    for rule in RULES:
        together = fill(model, *requests(model), cache=cache, seed=(5, 6, 7), **rule)
        seen.add(str(answers(together)))
        for i, row in enumerate(requests(model)):
            alone = fill(model, row, cache=cache, seed=5 + i, **rule)
            assert answers(alone)[0] == answers(together)[i], rule
            assert int(alone.nfe[0]) == int(together.nfe[i]), rule
        assert together.calls == int(together.nfe.max())
        assert not bool(together.canvas.masked.any())
    assert len(seen) > 8  # the rules do matter


def test_the_picture_and_the_question_matter(model):
    one, other = (make_row(model.processor, "a", colour) for colour in ("red", "blue"))
    asked = make_row(model.processor, "b", "red")
    made = answers(fill(model, one, other, asked))
    assert made[0] != made[1]
    assert made[0] != made[2]


@pytest.mark.parametrize("rule", [RULES[0], RULES[-1]], ids=["greedy", "sampled"])
def test_only_holes_are_filled(model, rule):
    rows = [make_row(model.processor, *r, holes=h) for r, h in zip(REQUESTS, HOLES, strict=True)]
    before = batch(model, *rows)
    filled = fill(model, *rows, **rule)
    given = ~before.masked
    assert torch.equal(filled.canvas.ids[given], before.ids[given])
    assert not bool(filled.canvas.masked.any())
    assert not bool((filled.canvas.ids[before.masked] == model.processor.mask_id).any())


def test_nfe_counts_the_calls_a_row_took_part_in(model):
    rows = [make_row(model.processor, *r, holes=h) for r, h in zip(REQUESTS, HOLES, strict=True)]
    filled = fill(model, *rows, steps=4)
    assert filled.nfe.tolist() == [4, 3, 1]
    assert filled.calls == 4
    made = fill(model, *rows, accept="threshold", threshold=0.3, trace=True)
    for i in range(3):
        assert int(made.nfe[i]) == sum(int((step.rows == i).sum()) for step in made.trace)
    assert made.calls == len(made.trace)


def test_a_row_without_holes_costs_nothing(model):
    row = make_row(model.processor, *REQUESTS[0], holes=[False] * 3)
    filled = fill(model, row)
    assert (filled.nfe.tolist(), filled.calls) == ([0], 0)


def test_the_backbone_runs_as_often_as_reported(model, monkeypatch):
    calls, run = [], type(model).hidden

    def count(self, *args, **kwargs):
        calls.append(1)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "hidden", count)
    for cache, prefill in (("none", 0), ("prefix", 1)):
        calls.clear()
        filled = fill(model, *requests(model), cache=cache, steps=3)
        assert len(calls) == filled.calls + prefill == 3 + prefill


def test_the_trace_tells_the_story(model):
    filled = fill(model, *requests(model), steps=3, block_length=3, max_new_tokens=6, trace=True)
    masked = batch(model, *requests(model)).masked
    for step in filled.trace:
        assert torch.equal(step.masked, masked[step.rows] & ~step.accepted)
        assert bool((step.probability[step.accepted] > 0).all())
        masked[step.rows] = step.masked
    assert not bool(masked.any())


def test_blocks_are_filled_from_left_to_right(model):
    filled = fill(model, *requests(model), block_length=2, trace=True, temperature=1.0)
    start = filled.canvas.prompt_length
    order = [step.accepted[0, start:].nonzero().tolist()[0][0] for step in filled.trace]
    assert [cell // 2 for cell in order] == [0, 0, 1, 1, 2, 2]


def test_left_to_right_order(model):
    filled = fill(model, *requests(model), order="left_to_right", trace=True)
    start = filled.canvas.prompt_length
    for i, step in enumerate(filled.trace):
        assert step.accepted[:, start:].nonzero()[:, 1].tolist() == [i] * 3


@pytest.mark.parametrize("temperature", [0.0, 1e6])
def test_reserved_ids_are_never_generated(model, temperature):
    used = model.backbone.config.vocab_size - 200
    model.config.vocab_used = used
    reserved = set(model.forbidden().tolist())
    special = model.processor.tokenizer.convert_tokens_to_ids
    assert {special(t) for t in ("<|mask|>", "<|image|>", "<|user|>", "<|assistant|>")} <= reserved
    made = set()
    for seed in range(12):
        rows = [make_row(model.processor, *r, [True] * 12) for r in REQUESTS]
        settings = {"temperature": temperature, "seed": seed, "steps": 2}
        made.update(*answers(fill(model, *rows, **settings)))
    assert not made & reserved
    assert max(made) < used
    if temperature:
        # Nearly uniform over what is allowed, the end of text too.
        assert len(made) > (used - len(reserved)) // 2


# Noise


def test_a_seed_for_all_rows_or_one_per_row(model):
    rows, sampled = requests(model), {"temperature": 1.0, "order": "random"}
    same = answers(fill(model, *rows, seed=3, **sampled))
    assert answers(fill(model, *rows, seed=3, **sampled)) == same
    assert answers(fill(model, *rows, seed=[3, 3, 3], **sampled)) == same
    other = answers(fill(model, *rows, seed=[3, 4, 3], **sampled))
    assert [a == b for a, b in zip(same, other, strict=True)] == [True, False, True]


def test_equal_rows_with_equal_seeds_agree_wherever_they_stand(model):
    first, second, _ = requests(model)
    made = answers(fill(model, first, second, first, second, temperature=1.0, seed=2))
    assert made[0] == made[2]
    assert made[1] == made[3]
    spread = answers(fill(model, first, first, first, temperature=1.0, seed=[1, 2, 3]))
    assert len({str(a) for a in spread}) > 1


def test_temperature_zero_does_not_know_the_seed(model):
    made = [answers(fill(model, *requests(model), seed=s)) for s in (0, 1)]
    assert made[0] == made[1]


# End of text, masks and what is refused


def test_end_of_text_fills_the_rest(model):
    row = make_row(model.processor, *REQUESTS[0], [True] * 12)
    sampled = {"order": "left_to_right", "temperature": 2.0}
    long = answers(fill(model, row, **sampled))[0]
    third = long[2]  # let the third token of this answer be the end
    assert third not in long[:2]
    settings = Decoding(max_new_tokens=12, **sampled)
    filled = decode(model, batch(model, row), settings, third)
    assert answers(filled)[0] == [*long[:2], *[third] * 10]
    assert filled.nfe.tolist() == [3]


def test_a_mask_token_that_was_typed_is_plain_text(model):
    processor = model.processor
    assert processor.mask_id not in processor.prompt_ids(
        [{"role": "user", "content": "what is <|mask|>?"}]
    )
    # Even as an id among the given cells it stays where it is and costs no step.
    template = [processor.mask_id, processor.mask_id, 30]
    row = make_row(processor, *REQUESTS[0], holes=[False, True, False], template=template)
    filled = fill(model, row)
    made = answers(filled)[0]
    assert (made[0], made[2], filled.nfe.tolist()) == (processor.mask_id, 30, [1])
    assert made[1] != processor.mask_id


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"order": "confidense"}, "Did you mean confidence"),
        ({"accept": "treshold"}, "Did you mean threshold"),
        ({"cache": "prefx"}, "Did you mean prefix"),
        ({"stop": "end_of_txt"}, "Did you mean end_of_text"),
        ({"schedule": "cosin"}, "Did you mean cosine"),
        ({"seed": [1, 2]}, "2 seeds for 1 rows"),
    ],
)
def test_unknown_names_are_refused(model, settings, words):
    with pytest.raises(SettingError, match=words):
        fill(model, requests(model)[0], **settings)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("rule", ACCEPTS, ids=["schedule", "threshold"])
def test_a_broken_model_is_an_error_not_an_endless_loop(model, monkeypatch, rule):
    size = model.backbone.config.vocab_size
    monkeypatch.setattr(
        type(model), "head", lambda self, hidden: torch.full((len(hidden), size), torch.nan)
    )
    with pytest.raises(MMDiffError, match="not finite"):
        fill(model, requests(model)[0], **rule)
