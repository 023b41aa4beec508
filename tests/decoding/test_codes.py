"""Cells that hold image codes: the lane, MaskGIT's counts, the max-logit cache, other prompts."""

import math
from functools import partial

import pytest
import torch

from mmdiff.decoding.cache import CACHES, NoCache
from mmdiff.decoding.guide import Guided
from mmdiff.decoding.max_logit import MaxLogit
from mmdiff.decoding.published_codes import gumbel, lowest
from mmdiff.decoding.settings import Decoding
from mmdiff.errors import SettingError
from mmdiff.raw_ids import canvas_from_ids, extend_canvas
from tests.decoding.helpers import answers, batch, fill, make_row, requests

CODES = (100, 32)
PAINT = {"codes": CODES, "accept": "maskgit", "schedule": "cosine"}


def paint(model, *rows, **settings):
    return fill(model, *rows, **{**PAINT, "steps": 4, **settings})


@pytest.mark.parametrize("cache", ["none", "max_logit:ratio=0.6,warmup=0,refresh=3"])
@pytest.mark.parametrize("heat", [0.0, 1.0])
def test_a_batch_equals_its_rows_alone(model, cache, heat):
    settings = {"cache": cache, "temperature": heat, "order_temperature": heat, "cfg_scale": heat}
    together = paint(model, *requests(model), seed=(5, 6, 7), **settings)
    for i, row in enumerate(requests(model)):
        assert answers(paint(model, row, seed=5 + i, **settings))[0] == answers(together)[i]
    assert not bool(together.canvas.masked.any())


def test_cells_take_codes_alone_and_text_takes_none(model):
    model.config.codes = list(CODES)
    codes, text = set(range(100, 132)), set()
    for seed in range(3):
        heat = {"temperature": 1e6, "seed": seed}
        assert set().union(*answers(paint(model, *requests(model), **heat))) <= codes
        text |= set().union(*answers(fill(model, *requests(model), **heat)))
    assert text and not text & codes


@pytest.mark.parametrize("codes", [(100, 10**6), (-1, 4), (5, 0)])
def test_a_lane_outside_the_vocabulary_is_refused(model, codes):
    with pytest.raises(SettingError, match="codes="):
        paint(model, *requests(model), codes=codes)


@pytest.mark.parametrize(("cells", "steps"), [(20, 7), (6, 5), (4, 11), (7, 1)])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "pow2"])
def test_so_many_cells_stay_masked(model, cells, steps, schedule):
    row = make_row(model.processor, "a", None, [True] * cells)
    made = paint(model, row, steps=steps, schedule=schedule, max_new_tokens=cells, trace=True)
    ratio = {
        "cosine": lambda t: math.cos(math.pi / 2 * t),
        "linear": lambda t: 1 - t,
        "pow2": lambda t: 1 - t * t,
    }[schedule]
    left, expected = cells, []
    for k in range(1, steps + 1):
        goal = max(1, math.floor(cells * ratio(k / steps))) if k < steps else 0
        left = min(left - 1, goal)
        expected.append(left)
        if left == 0:
            break
    assert [int(step.masked.sum()) for step in made.trace] == expected


def test_the_surest_cells_are_decided(model):
    made = paint(model, *requests(model), trace=True)
    before = batch(model, *requests(model)).masked
    for step in made.trace:
        for row, number in enumerate(step.rows.tolist()):
            kept = step.probability[row][before[number] & ~step.accepted[row]]
            if len(kept):
                assert float(step.probability[row][step.accepted[row]].min()) >= float(kept.max())
            before[number] = step.masked[row]


def test_heat_changes_the_choice_and_falls_to_nothing(model):
    cold, hot = (paint(model, *requests(model), order_temperature=h) for h in (0.0, 50.0))
    assert answers(cold) != answers(hot)
    last = [paint(model, *requests(model), order_temperature=h, steps=1) for h in (0.0, 50.0)]
    assert answers(last[0]) == answers(last[1])


def test_blocks_are_refused(model):
    with pytest.raises(SettingError, match="maskgit has one block"):
        paint(model, *requests(model), block_length=2)


@pytest.mark.parametrize("options", ["ratio=0", "refresh=1", "warmup=1"])
def test_the_cache_that_computes_everything_is_exact(model, options):
    settings = {"temperature": 1.0, "cfg_scale": 1.5}
    plain = paint(model, *requests(model), cache="none", **settings)
    kept = paint(model, *requests(model), cache=f"max_logit:{options}", **settings)
    assert answers(plain) == answers(kept)


@torch.inference_mode()
def test_a_step_computes_the_unsure_columns_with_the_others_as_they_were(model):
    canvas = batch(model, make_row(model.processor, "a", "red"))
    need = canvas.writable
    best = model.head(model.hidden(canvas, model.embed(canvas)))[0, :, 100:132].amax(1)
    share = float((best < best[need[0]].median()).double().mean())
    options = {"ratio": 1 - share, "warmup": 0.0, "refresh": 2}
    cache = MaxLogit(model, canvas, Decoding(codes=CODES, steps=4), **options)
    first = cache.score(canvas, need)
    torch.testing.assert_close(first, model.score(canvas, need))
    unsure = (best <= best.quantile(share))[need[0]]
    assert 0 < int(unsure.sum()) < len(unsure)
    canvas.write(torch.full_like(canvas.ids, 110), canvas.masked)
    changed = (cache.score(canvas, need) != first).any(1)
    assert torch.equal(changed, unsure)
    torch.testing.assert_close(cache.score(canvas, need), model.score(canvas, need))  # refreshed


def test_caches_name_their_options(model):
    with pytest.raises(SettingError, match="no option 'rate'"):
        paint(model, *requests(model), cache="max_logit:rate=1")
    with pytest.raises(SettingError, match="cache=none has no option 'ratio'"):
        paint(model, *requests(model), cache="none:ratio=1")
    with pytest.raises(SettingError, match="must lie in"):
        paint(model, *requests(model), cache="max_logit:ratio=2")
    assert {"none", "prefix", "max_logit"} <= set(CACHES.names())


@torch.inference_mode()
def test_guidance_compares_with_another_prompt(model):
    """The other prompt may be longer; what stands behind the answer is the same."""
    model.config.attention_layout, model.config.picture_apart = "full", False
    draft = torch.full((1, 4), model.config.mask_token_id)
    draft[0, 1], draft[0, 3] = 30, 31
    mask_id = model.config.mask_token_id
    canvas, other = (
        extend_canvas(canvas_from_ids(model, torch.tensor([ids])), draft, mask_id)
        for ids in ([5, 6, 7], [8, 9, 10, 11, 12])
    )
    canvas.ids[0, 3] = 40  # decided since
    need = canvas.masked & (canvas.ids == mask_id)
    other_ids = torch.tensor([[8, 9, 10, 11, 12, 40, 30, mask_id, 31]])
    free = model(input_ids=other_ids).logits[0, 7]
    plain = model.score(canvas, need)[0]
    got = Guided(NoCache, model, canvas, 2.0, other).score(canvas, need)[0]
    torch.testing.assert_close(got, free + 3 * (plain - free))


def test_negative_prompts_of_unequal_length_in_a_batch(model):
    prompt, seen = torch.tensor([[5, 6, 7], [8, 9, 10]]), torch.tensor([[1, 1, 1], [0, 1, 1]])
    beside = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    negative = torch.tensor([[0, 11, 12, 13], [14, 15, 16, 17]])
    generate = partial(model.generate, cfg_scale=2.0, max_new_tokens=5, stop="none", steps=3)
    both = generate(
        prompt,
        attention_mask=seen,
        negative_prompt_ids=negative,
        negative_prompt_attention_mask=beside,
    )
    for i in range(2):
        alone = generate(
            prompt[i : i + 1, 3 - int(seen[i].sum()) :],
            negative_prompt_ids=negative[i : i + 1, 4 - int(beside[i].sum()) :],
        )
        assert torch.equal(alone.sequences[0, -5:], both.sequences[i, -5:])
    other = generate(prompt, attention_mask=seen)
    assert not torch.equal(other.sequences, both.sequences)


def test_lowest_leaves_ties_out():
    score = torch.tensor([[3.0, 1.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    picked = lowest(score, torch.tensor([1, 2]))
    assert picked.tolist() == [[False] * 4, [False, False, True, True]]
    assert bool(gumbel(torch.tensor([0.0, 0.5, 1.0])).isfinite().all())


@pytest.mark.parametrize("compat", ["mmada_image", "lumina_image"])
def test_published_image_samplers_need_codes(model, compat):
    row = make_row(model.processor, "a", None)
    settings = {"accept": "maskgit", "schedule": "cosine", "steps": 3, "compat": compat}
    with pytest.raises(SettingError, match="say codes="):
        fill(model, row, **settings)
    made = fill(model, row, codes=CODES, temperature=1.0, order_temperature=1.0, **settings)
    assert set(answers(made)[0]) <= set(range(100, 132))


def guided(model, prompt, other, answer, scale):
    """(B, N, codes) guided logits of raw answers (B, N) behind two prompts."""
    sides = []
    for ids in (prompt, other):
        logits = model(input_ids=torch.cat([ids, answer], dim=1)).logits.float()
        sides.append(logits[:, ids.shape[1] :, CODES[0] : sum(CODES)])
    return (1 + scale) * sides[0] - scale * sides[1]


def stay(log_p, keep, heat):
    """(B, n) bool: cells that stay masked, with noise from torch's generator."""
    noisy = log_p + heat * gumbel(torch.rand(log_p.shape))
    return noisy < noisy.sort(1).values.gather(1, keep)


def mmada_loop(model, prompt, other, cells, steps, scale, heat):
    """MMaDA's image sampler over whole tensors, as its paper's code goes."""
    mask = model.config.mask_token_id
    made = torch.full((len(prompt), cells), mask)
    for k in range(1, steps + 1):
        chance = guided(model, prompt, other, made, scale).softmax(2)
        drawn = torch.multinomial(chance.flatten(0, 1), 1).view(made.shape)
        is_open = made == mask
        drawn = torch.where(is_open, drawn, made - CODES[0])
        p = chance.gather(2, drawn[..., None])[..., 0]
        p = torch.where(is_open, p, torch.finfo(p.dtype).max)
        goal = math.floor(cells * float(torch.cos(torch.tensor(k / steps) * math.pi * 0.5)))
        keep = (is_open.sum(1, keepdim=True) - 1).clamp(max=goal).clamp(min=1)
        heat *= 1 - k / steps
        made = torch.where(stay(p.clamp(min=1e-20).log(), keep, heat), mask, drawn + CODES[0])
    return drawn + CODES[0]


def lumina_loop(model, prompt, other, cells, steps, scale, heat):
    """Lumina-DiMOO's image sampler: one row, draws for its open cells alone."""
    mask = model.config.mask_token_id
    made = torch.full((1, cells), mask)
    for k in range(1, steps + 1):
        is_open = made[0] == mask
        if not bool(is_open.any()):
            break
        logits = guided(model, prompt, other, made, scale)[0, is_open]
        noisy = logits / heat + gumbel(torch.rand(logits.shape)) if heat else logits
        drawn = noisy.argmax(1)
        log_p = logits.log_softmax(1).gather(1, drawn[:, None]).T
        goal = math.floor(cells * float(torch.cos(torch.tensor(k / steps) * math.pi * 0.5)))
        keep = min(max(goal, 1), len(drawn) - 1) if k < steps else 0
        masked = stay(log_p, torch.tensor([[keep]]), heat)[0]
        made[0, is_open] = torch.where(masked, mask, drawn + CODES[0])
    return made


@torch.inference_mode()
@pytest.mark.parametrize(("cells", "steps", "scale", "heat"),
    [(9, 4, 0.0, 1.0), (9, 5, 2.0, 0.7), (5, 8, 1.0, 1.0), (8, 3, 1.5, 0.0)])  # fmt: skip
@pytest.mark.parametrize("project", ["mmada", "lumina"])
def test_published_image_samplers_written_out(model, project, cells, steps, scale, heat):
    model.config.attention_layout, model.config.picture_apart = "full", False
    prompt, other = torch.tensor([[5, 6, 7], [8, 9, 10]]), torch.tensor([[11, 12], [13, 14]])
    loop = {"mmada": mmada_loop, "lumina": lumina_loop}[project]
    if project == "lumina":
        prompt, other = prompt[:1], other[:1]
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = loop(model, prompt, other, cells, steps, scale, heat)
        torch.manual_seed(seed)
        made = model.generate(
            prompt,
            negative_prompt_ids=other,
            codes=CODES,
            max_new_tokens=cells,
            steps=steps,
            accept="maskgit",
            schedule="cosine",
            temperature=heat if project == "lumina" else 1.0,
            order_temperature=heat,
            cfg_scale=scale,
            stop="none",
            cache="none",
            compat=f"{project}_image",
        )
        assert torch.equal(made.sequences[:, -cells:], expected)
