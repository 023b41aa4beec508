"""Packed training rows: equal to separate rows, and to the same requests in use."""

import dataclasses

import pytest
import torch
from PIL import Image

from mmdiff.backbone import PARTS, see_in_parts
from mmdiff.data.source import Sample, Turn
from mmdiff.errors import TrainingError
from mmdiff.heads.answer import Answer
from mmdiff.heads.run import compose_canvas
from mmdiff.processing import collate, packed_row
from mmdiff.training.batches import with_noise
from mmdiff.training.objective import batch_loss
from mmdiff.training.packing import encode_turns, pack, parts_of, separate
from mmdiff.training.recipe import Objective
from tests.helpers import PLACEHOLDER, pixels, separate_prefix


def pairs(model):
    """Expanded prompts with one picture and answers of two turns, as training makes them."""
    processor = model.processor
    image = [processor.image_token_id] * model.image_tokens
    return [
        ([7, *image, 30, 31, 32], [40, 41, 42, 1]),
        ([7, *image, 33], [43, 1, 1, 1, 1]),
        ([7, *image, 34, 35], [44, 1]),
    ]


def packed_and_separate(model, copies):
    made = []
    image_id, seed = model.processor.image_token_id, 3
    for pictures in (1, 2):
        rows = [pack(pairs(model), image_id, copies, 500, [n])[0] for n in range(pictures)]
        split = []
        for n in range(pictures):
            split += separate_prefix(pairs(model), copies, n, 1 + model.image_tokens)
        for group in (rows, split):
            owner = torch.arange(pictures).repeat_interleave(len(group) // pictures)
            canvas = collate(group, 1, pixels(pictures), image_id)
            made.append(with_noise(canvas, owner, seed))
    return made


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("weight", ["one", "inverse_p", "elbo"])
@pytest.mark.parametrize(
    ("layout", "shift"), [("prefix", False), ("prefix", True), ("block", False)]
)
@torch.inference_mode()
def test_a_packed_row_equals_separate_rows(model, layout, shift, weight, copies):
    model.config.attention_layout, model.config.shift = layout, shift
    for kind in ("answer", "masked", "row", "root", "group", "examples"):
        objective = Objective(complementary=copies == 2, weight=weight, denominator=kind)
        one, split, two, both = (
            float(batch_loss(model, batch, objective))
            for batch in packed_and_separate(model, copies)
        )
        assert one == pytest.approx(split, rel=1e-5)
        assert two == pytest.approx(both, rel=1e-5)


@pytest.mark.parametrize("parts", [2, 3])
def test_a_row_in_parts_has_the_loss_and_gradients_of_separate_rows(model, parts):
    """Through the attention that skips what lies between the parts, and through sdpa."""
    image_id, front = model.processor.image_token_id, 1 + model.image_tokens
    rows = [
        pack(pairs(model), image_id, 2, front + parts * 17, [n], parts=parts)[0] for n in range(2)
    ]
    split = [row for n in range(2) for row in separate_prefix(pairs(model), 2, n, front)]
    for row in split:  # turns 1 and 3 share a part, a filling follows, then turn 2
        row.segment = [{0: 0, 1: 1, 2: 4, 3: 2}[number] for number in row.segment]
    found = []
    for group, attention in ((rows, PARTS), (rows, "sdpa"), (split, "sdpa")):
        see_in_parts(model.backbone)
        model.backbone.set_attn_implementation(attention)
        owner = torch.arange(2).repeat_interleave(len(group) // 2)
        canvas = collate(group, 1, pixels(2), image_id)
        if group is rows:
            canvas.parts = parts_of(rows, parts)
            assert canvas.parts == (front, 17)
        model.zero_grad()
        loss = batch_loss(model, with_noise(canvas, owner, 3), Objective(denominator="row"))
        loss.backward()
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append((loss.detach(), torch.cat(grads)))
    for loss, grads in found[:2]:
        torch.testing.assert_close(loss, found[2][0])
        torch.testing.assert_close(grads, found[2][1], rtol=1e-4, atol=1e-6)


def test_parts_too_small_for_a_turn_and_rows_of_unlike_pictures_are_refused(model):
    image_id, front = model.processor.image_token_id, 1 + model.image_tokens
    with pytest.raises(TrainingError, match="raise row_cells or lower row_parts"):
        pack(pairs(model), image_id, 2, front + 20, [0], parts=2)
    rows = [pack(pairs(model), image_id, 2, front + 26, [n], parts=2)[0] for n in range(2)]
    rows[1].segment[front] = 0
    with pytest.raises(TrainingError, match="pictures of one size"):
        parts_of(rows, 2)


@pytest.mark.parametrize("layout", ["prefix", "block"])
@torch.inference_mode()
def test_a_request_is_seen_as_its_packed_training_row_was(model, layout):
    """The same cells, masks and picture give the same logits in training and in decoding."""
    model.config.attention_layout = layout
    image_id, mask = model.processor.image_token_id, model.processor.mask_id
    shared = 1 + model.image_tokens
    turns = [(p[shared:], [mask] * len(a)) for p, a in pairs(model)]
    canvas = collate(
        [packed_row(pairs(model)[0][0][:shared], turns, 1, [0])], 1, pixels(1), image_id
    )
    trained = model.score(canvas, canvas.writable).split([len(a) for _, a in turns])
    for (prompt, answer), logits in zip(pairs(model), trained, strict=True):
        raw = torch.tensor([[7, PLACEHOLDER, *prompt[shared:], *[mask] * len(answer)]])
        writable = torch.zeros(1, len(prompt) + len(answer)).bool()
        writable[:, len(prompt) :] = True
        asked = model(raw, pixel_values=pixels(1), writable=writable).logits[0, len(prompt) :]
        torch.testing.assert_close(asked, logits)
        model.config.picture_apart = False  # the picture sees the question, as in no training row
        other = model(raw, pixel_values=pixels(1), writable=writable).logits[0, len(prompt) :]
        model.config.picture_apart = True
        assert not torch.allclose(other, logits)


@torch.inference_mode()
def test_a_head_composes_what_training_packed(model):
    """From words and a picture, not from ids: every question about it has its training logits."""
    processor = model.processor
    picture = Image.new("RGB", (32, 32), "teal")
    turns = tuple(Turn(q, "a red circle", 8) for q in ("how many?", "is there a blue square?"))
    pairs = encode_turns(Sample(0, (picture,), turns), processor, 0)
    row, _left = pack(pairs, processor.image_token_id, 1, 500, [0])
    row.ids = [processor.mask_id if w else i for i, w in zip(row.ids, row.writable, strict=True)]
    canvas = collate([row], 1, processor.pixels([picture]), processor.image_token_id)
    trained = model.score(canvas, canvas.writable).split([len(a) for _, a in pairs])
    for turn, (_, answer), logits in zip(turns, pairs, trained, strict=True):
        example = Answer().compose(processor, [picture], turn.request)
        asked = compose_canvas(model, processor, [example], len(answer))
        torch.testing.assert_close(model.score(asked, asked.masked), logits)


@pytest.mark.parametrize("copies", [1, 2])
@torch.inference_mode()
def test_a_full_layout_pair_equals_single_rows(model, copies):
    model.config.attention_layout = "full"
    rows = separate(pairs(model), copies, [0])
    canvas = collate(rows, 1, pixels(1), model.processor.image_token_id)
    together = model.score(canvas, canvas.writable).split([sum(r.writable) for r in rows])
    for row, logits in zip(rows, together, strict=True):
        plain = dataclasses.replace(row, copy=[0] * len(row.ids), segment=[0] * len(row.ids))
        alone = collate([plain], 1, pixels(1), model.processor.image_token_id)
        torch.testing.assert_close(model.score(alone, alone.writable), logits)
