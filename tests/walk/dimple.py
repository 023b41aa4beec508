"""Dimple checkpoints against published numbers: tower, positions, generation, losses."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

import mmdiff
from mmdiff.decoding.choose import ORDERS
from mmdiff.decoding.draws import DRAWS
from mmdiff.decoding.propose import propose
from mmdiff.decoding.settings import make_decoding
from mmdiff.diffusion.corrupt import masked_cells
from mmdiff.diffusion.losses import denominator, masked_loss
from mmdiff.diffusion.schedule import mask_probability
from mmdiff.positions import three_axes
from mmdiff.raw_ids import canvas_from_ids
from tests.walk.core import Entry, Json, NotSupported

NAMES = {
    "maskgit_plus": "confidence",
    "topk_margin": "margin",
    "entropy": "entropy",
    "autoregressive": "left_to_right",
    "origin": "random",
    "origin-ratio": "confidence",
}


def settings_of(kwargs: Json) -> Json:
    """Dimple's `diffusion_generate` arguments in our words."""
    alg, temperature = kwargs.get("alg", "origin"), kwargs.get("temperature") or 0.0
    made = {
        "max_new_tokens": kwargs["max_new_tokens"],
        "steps": kwargs.get("steps", 512),
        "eps": kwargs.get("eps", 1e-3),
        "order": NAMES[alg],
        "order_temperature": kwargs.get("alg_temp") or 0.0,
        "temperature": temperature,
        "top_p": kwargs.get("top_p") or 1.0,
        "top_k": kwargs.get("top_k") or 0,
        "cache": "prefill" if kwargs.get("use_cache") else "none",
        "stop": "none",
        "trace": True,
    }
    if kwargs.get("decoding_pipeline", "dim") == "dim":
        threshold = kwargs.get("alg_p_threshold") or 0.0
        original = kwargs.get("use_original_confidence", True)
        return made | {
            "accept": "confident_origin" if alg == "origin-ratio" else "confident",
            "threshold": threshold if 0 < threshold < 1 else 1.0,
            "compat": "dimple" if original else "dimple_filtered",
        }
    if temperature and alg == "autoregressive":
        raise NotSupported("Dimple's pipeline dream draws the tokens of accepted cells alone here")
    made |= {"accept": "schedule", "schedule": "timestep", "compat": "dimple_filtered"}
    return made | ({"accept": "origin", "order": "confidence"} if alg == "origin" else {})


def batch(entry: Entry, name: str) -> Json:
    """The arguments that show the model a batch."""
    roles = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
    return {role: entry.inputs.get(f"{name}_{role}") for role in roles}


def generate(entry: Entry, model: Any, case: Json) -> None:
    settings, given = settings_of(case["kwargs"]), batch(entry, case["batch"])
    if case.get("banned_id") is not None:
        settings["forbid"] = [case["banned_id"]]
    prompt, cells = given["input_ids"], settings["max_new_tokens"]
    draft = torch.full((len(prompt), cells), entry.ids["mask"])
    for offset, token in (case.get("pinned_answer_offsets") or {}).items():
        draft[:, int(offset)] = token
    if case.get("seed") is not None:
        torch.manual_seed(case["seed"])
    out = model.generate(**given, draft_tokens=draft, **settings)
    whole, frames = torch.cat([prompt, draft], dim=1), []
    for step in out.trace:
        whole = whole.clone()
        whole[step.rows, -cells:] = step.ids[:, -cells:]
        frames.append(whole)
    if "schedule" in settings:  # this pipeline goes on when all is done
        frames += [whole] * (settings["steps"] - len(frames))
    sequence, history = case["output"]
    entry.compare(sequence, out.sequences)
    entry.compare(history, torch.stack(frames))


def pictures(entry: Entry, model: Any, name: str) -> None:
    """Tower, projector, window order and borders of a batch's pictures."""
    given, seen = batch(entry, name), {}
    windowed = [i for i in range(len(model.vision.net.blocks))
                if i not in model.vision.net.fullatt_block_indexes]  # fmt: skip
    layer = model.vision.net.blocks[windowed[0]]
    handle = layer.register_forward_pre_hook(
        lambda _m, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    features = model.vision(given["pixel_values"], given["image_grid_thw"])
    handle.remove()
    entry.compare(f"{name}_visual", features)
    entry.compare(f"{name}_projected", model.projector(features))
    entry.compare(f"{name}_window_index", window_index(model.vision.net, given["image_grid_thw"]))
    borders = f"{name}_cu_window_seqlens"
    good = torch.equal(entry.outputs[borders].unique_consecutive(), seen["cu_seqlens"].long())
    entry.seen.add(borders)
    entry.note(borders, "passed" if good else "failed", [borders], reason="repeats left out")


def window_index(tower: Any, grids: Tensor) -> Tensor:
    """The order in which transformers' tower reads merged patches; found in its own code."""
    if hasattr(tower, "get_window_index"):
        return tower.get_window_index(grids)[0]
    from transformers.vision_utils import get_vision_window_index

    sizes = tower.spatial_merge_size, tower.window_size, tower.patch_size
    return get_vision_window_index(grids, *sizes)[0]


def forwards(entry: Entry, model: Any, name: str) -> None:
    """Positions and logits; stored logits are the model's own, so the shift is switched off."""
    given = batch(entry, name)
    canvas = canvas_from_ids(
        model, given["input_ids"], given["attention_mask"], given["pixel_values"],
        image_grid_thw=given["image_grid_thw"],
    )  # fmt: skip
    blocks = canvas.features.blocks if canvas.features is not None else []
    pictured = (canvas.ids == entry.ids["image"]) & bool(blocks)
    position, delta = three_axes(pictured, [block.grid for block in blocks], canvas.valid)
    # Published padding stands at 1, ours at 0; nobody sees it.
    entry.compare(f"{name}_position_ids", torch.where(canvas.valid, position, 1))
    entry.compare(f"{name}_rope_deltas", delta)
    assert torch.equal(canvas.position, position)
    shift, model.config.shift = model.config.shift, False
    for layout in ("full", "causal"):
        stored = entry.outputs[f"{name}_logits_{layout}"]
        logits = model(**given, attention_layout=layout).logits
        real = canvas.valid[..., None]  # padding is not to be compared
        entry.compare(f"{name}_logits_{layout}", torch.where(real, logits, stored))
    model.config.shift = shift


def chooser(entry: Entry, name: str) -> None:
    """One call of the token chooser at temperature 0; its flags stand in the name."""
    flags = {"margin": "margin", "negent": "entropy"}
    orders = [order for flag, order in flags.items() if flag in name.split("_")]
    settings: Json = {"order": (*orders, "confidence")[0]}
    for flag, setting, kind in (("topk", "top_k", int), ("topp", "top_p", float)):
        if found := re.search(rf"{flag}([\d.]+)", name):
            settings[setting] = kind(found[1])
    compat = "dimple_filtered" if "noorig" in name else "dimple"
    zeros = torch.zeros(len(entry.inputs["sample_logits"]), dtype=torch.long)
    draws = DRAWS.get(compat)(zeros, zeros, zeros)
    proposal = propose(entry.inputs["sample_logits"], draws, make_decoding(settings))
    by_order = ORDERS.get(settings["order"])(proposal, draws)
    plain = settings["order"] == "confidence"
    entry.compare(f"{name}_conf", proposal.probability if plain else by_order)
    entry.compare(f"{name}_x0", proposal.tokens)


def loss(entry: Entry, model: Any, name: str, seed: int) -> None:
    """The trainer's loss: mean cross-entropy over masked cells; `dual` adds the complement."""
    given = batch(entry, "A")
    pairs = 2 if name.endswith("dual") else 1
    given = {k: v.repeat(pairs, *[1] * (v.dim() - 1)) for k, v in given.items()}
    answer = entry.inputs["loss_answer"].expand(pairs, -1)
    ids = torch.cat([given["input_ids"], answer], dim=1)
    writable = torch.zeros_like(ids, dtype=torch.bool)
    writable[:, -answer.shape[1] :] = True
    copy = torch.arange(1, pairs + 1)[:, None].expand_as(ids)
    torch.manual_seed(seed)
    p = mask_probability(torch.rand(1, 1))
    masked = masked_cells(torch.rand(1, ids.shape[1]), p, writable, copy)
    noisy = torch.where(masked, entry.ids["mask"], ids)
    entry.compare(f"{name}_noisy_ids", noisy)
    given |= {"input_ids": noisy, "attention_mask": torch.ones_like(noisy)}
    logits = model(**given).logits[masked]
    share = denominator(writable, masked, copy, "masked").expand_as(ids)[masked]
    made = masked_loss(logits, ids[masked], torch.ones(len(logits)), share)
    entry.compare(name, made)


@torch.inference_mode()
def dimple(entry: Entry) -> None:
    model = mmdiff.load(entry.folder)
    entry.cases(lambda entry, case: generate(entry, model, case))
    for name in sorted(k.split("_")[0] for k in entry.inputs if k.endswith("_input_ids")):
        forwards(entry, model, name)
        if f"{name}_visual" in entry.outputs:
            pictures(entry, model, name)
    for name in sorted(k[:-3] for k in entry.outputs if re.fullmatch(r"sample_.*_x0", k)):
        chooser(entry, name)
    for case in entry.facts.get("extra_cases", []):
        for name in case["outputs"]:
            loss(entry, model, name, case["seed"])
