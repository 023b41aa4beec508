"""Training forwards and likelihoods of checkpoints against published numbers.

The draws are repeated in the published order: `seed`, then times, then one number per cell.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.diffusion.arrange import paired, turn_numbers
from mmdiff.diffusion.likelihood import bound, published_draws
from mmdiff.diffusion.losses import cross_entropy
from mmdiff.raw_ids import canvas_from_ids
from mmdiff.training.objective import batch_loss, noised
from tests.walk.core import Entry, Json
from tests.walk.training import batch_of, objective

IGNORED = -100


def draws(seed: int, rows: int, cells: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.rand(rows), torch.rand(rows, cells)


def every_logit(model: Any, canvas: Canvas) -> Tensor:
    every = torch.ones_like(canvas.masked)
    return model.score(canvas, every).view(*every.shape, -1)


def right_padded(canvas: Canvas) -> Canvas:
    """The same cells with every row's padding moved to its right."""
    length = canvas.shape[1]
    order = (~canvas.valid).long().argsort(dim=1, stable=True)
    columns: dict[str, Any] = {
        f.name: value.gather(1, order)
        for f in fields(canvas)
        if isinstance(value := getattr(canvas, f.name), Tensor)
    }
    features = canvas.features
    assert features is not None
    row, cell = features.cells // length, features.cells % length
    features = replace(features, cells=row * length + order.argsort(dim=1)[row, cell])
    return replace(canvas, features=features, **columns)


def lavida(entry: Entry, model: Any, case: Json) -> None:
    """Complementary pairs over pictures. Padding behind the shorter row is seen by everybody, as
    zero embeddings; end-of-text is supervised wherever it stands."""
    ids, labels = entry.inputs[case["input_ids"]], entry.inputs[case["labels"]]
    pictures = [entry.inputs[name] for name in case["images"]]
    canvas = right_padded(canvas_from_ids(model, ids, None, pictures))
    rows, length = canvas.shape
    text = canvas.valid.clone()
    text.view(-1)[canvas.features.cells] = False
    told = torch.full_like(canvas.ids, IGNORED)
    told[text] = labels[ids != entry.facts["image_placeholder"]]
    told = torch.where(text & (canvas.ids == entry.ids["eos"]), canvas.ids, told)
    real = canvas.valid.repeat(2, 1)[..., None]
    canvas.position = torch.arange(length).expand_as(told)
    canvas = replace(canvas, writable=told != IGNORED, valid=torch.ones_like(canvas.valid))
    batch = batch_of(paired(canvas), *draws(case["seed"], rows, length))
    rule = objective("lavida", compat="lavida")
    noisy = noised(batch, rule, model.config.mask_token_id)
    embed, model.embed = model.embed, lambda canvas: embed(canvas) * real
    logits = model.score(noisy.canvas, noisy.scored)
    loss = batch_loss(model, batch, rule)
    del model.embed
    names = case["outputs"]
    entry.compare(names["p_mask"], noisy.p[:rows, 0])
    entry.compare(names["masked"], noisy.canvas.masked)
    entry.compare(names["labels_after"], torch.where(noisy.scored, told.repeat(2, 1), IGNORED))
    entry.compare(names["token_nll"], cross_entropy(logits, noisy.targets[noisy.scored]))
    entry.compare(names["loss"], loss, **loss_limits(entry))


def llada_v(entry: Entry, model: Any, case: Json) -> None:
    """The 1/p loss over whole dialogues, with and without the mask of turns."""
    ids, labels = entry.inputs["train_ids"], entry.inputs["train_labels"]
    canvas = canvas_from_ids(model, ids, writable=labels != IGNORED)
    if case["mask"] == "dialogue_mask":
        canvas.block, canvas.layout = entry.inputs["train_conversation_ids"], "block"
    batch = batch_of(canvas, *draws(case["seed"], *ids.shape))
    rule = objective("llada_v")
    noisy = noised(batch, rule, model.config.mask_token_id)
    seed = f"seed{case['seed']}"
    entry.compare(f"train_p_mask_{seed}", noisy.p[:, 0])
    entry.compare(f"train_masked_positions_{seed}", noisy.canvas.masked)
    entry.compare(f"train_logits_{case['mask']}_row0", every_logit(model, noisy.canvas)[0])
    entry.compare(case["output"], batch_loss(model, batch, rule), **loss_limits(entry))


def turns(entry: Entry) -> None:
    made = turn_numbers(
        entry.inputs["conversation_labels_example"],
        header=entry.ids["start_header"],
        end=entry.ids["eot"],
        assistant=entry.ids["assistant_role"],
    )
    entry.compare("conversation_ids_example", made)


def rediff(entry: Entry, model: Any, case: Json) -> None:
    """The plain loss of drafts, and the revision loss with correction rows among the others."""
    ids, labels = entry.inputs["loss_ids"], entry.inputs["loss_labels"]
    faults = entry.inputs["loss_revise_indices"]
    time, u = draws(case["seed"], *ids.shape)
    other_u = torch.rand(ids.shape)
    words = torch.randint(case["random_token_low"], case["random_token_high"], ids.shape)
    entry.compare("draw_t", time)
    entry.compare("draw_mask_u", u)
    entry.compare("draw_revise_u", other_u)
    entry.compare("draw_revise_tokens", words)
    answer = labels != IGNORED
    canvas = canvas_from_ids(model, torch.where(answer, labels, ids), writable=answer)
    share, corrected = case["corrupt_probability"], faults.any(1)
    draft = ids != canvas.ids
    replaced = torch.where(corrected[:, None], faults, other_u < share)
    given = torch.where(corrected[:, None], ids, words)
    plain = replace(
        batch_of(canvas, time, u), given=ids, replaced=draft, corrected=corrected & False
    )
    revised = replace(plain, given=given, replaced=replaced, corrected=corrected)
    for name, batch, rule in (
        ("loss_plain", plain, objective("llada_v")),
        ("loss_revise", revised, objective("rediff", replace=share, compat="rediff")),
    ):
        noisy = noised(batch, rule, model.config.mask_token_id)
        entry.compare(f"{name}_logits", every_logit(model, noisy.canvas))
        entry.compare(name, batch_loss(model, batch, rule))


def log_likelihood(entry: Entry, model: Any, case: Json) -> None:
    prompt, answer = entry.inputs[case["prompt"]], entry.inputs[case["answer"]]
    torch.manual_seed(case["seed"])

    def score(masks: Tensor) -> Tensor:
        noisy = noisy_rows(prompt, answer, masks, model.config.mask_token_id)
        return model(input_ids=noisy).logits[:, -len(answer) :][masks]

    size = case["batch_size"]
    made = bound(score, answer, case["mc_num"], compat="llada", batch=size)
    entry.compare(case["output"], -made.nll, **loss_limits(entry))


def forward_process(entry: Entry, model: Any, case: Json) -> None:
    prompt, answer = entry.inputs["prompt"], entry.inputs["answer"]
    torch.manual_seed(case["seed"])
    masks, counts = published_draws(len(answer), case["rows"], case["rows"])
    ids, share = case["output"]
    noisy = noisy_rows(prompt, answer, masks, model.config.mask_token_id)
    entry.compare(ids, noisy)
    entry.compare(share, (counts / len(answer))[:, None].expand_as(noisy))


def noisy_rows(prompt: Tensor, answer: Tensor, masks: Tensor, mask_id: int) -> Tensor:
    """(samples, P + N) ids: the prompt, and the answer with `masks` (samples, N)."""
    return torch.cat([prompt.expand(len(masks), -1), torch.where(masks, mask_id, answer)], dim=1)


def loss_limits(entry: Entry) -> dict[str, float]:
    return {"atol": 0.0} | entry.facts["tolerance"]["loss"]
