"""LaViDa and LLaDA-V checkpoints against published numbers: tiles, towers, merging, generation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import mmdiff
from mmdiff.decoding.cache import PrefixCache
from mmdiff.diffusion.schedule import reveal_counts
from mmdiff.encoders.vision.tiles import cut, merge, pool
from mmdiff.raw_ids import canvas_from_ids, extend_canvas
from tests.walk import forward
from tests.walk.core import Entry, Json
from tests.walk.text import (
    DREAM_ORDERS,
    LLADA_ORDERS,
    generated,
    llada_settings,
    until,
    with_masks,
)

PICTURE = "image_{}_uint8_hwc"


def lavida_llada_settings(kwargs: Json) -> Json:
    """LaViDa's `generate` arguments: steps follow from the length, `steps` itself is ignored."""
    length = kwargs["max_new_tokens"]
    block = kwargs.get("block_length") or length
    blocks = length // block
    steps = length // blocks
    if kwargs.get("step_per_block"):
        steps = min(kwargs["step_per_block"], block)
    if kwargs.get("step_ratio"):
        steps = int(steps * kwargs["step_ratio"])
    return {
        "max_new_tokens": length,
        "steps": steps * blocks,
        "block_length": block,
        "temperature": kwargs.get("temperature", 0.0),
        "order": LLADA_ORDERS[kwargs.get("remasking", "low_confidence")],
        "compat": "llada",
    } | lavida_common(kwargs, "linear")


def lavida_dream_settings(kwargs: Json) -> Json:
    steps = length = kwargs["max_new_tokens"]
    steps = int(length * kwargs["step_ratio"]) if kwargs.get("step_ratio") else kwargs["steps"]
    return {
        "max_new_tokens": length,
        "steps": steps,
        # Without a schedule the first part of the time grid of all the steps is walked.
        "eps": 1 - (1 - kwargs.get("eps", 1e-3)) * steps / kwargs["steps"],
        "order": DREAM_ORDERS[kwargs["alg"]],
        "order_temperature": kwargs.get("alg_temp") or 0.0,
        "temperature": kwargs.get("temperature") or 0.0,
        "top_p": kwargs.get("top_p") or 1.0,
        "top_k": kwargs.get("top_k") or 0,
        "compat": "lavida_dream",
    } | lavida_common(kwargs, "timestep")


def lavida_common(kwargs: Json, without: str) -> Json:
    schedule = kwargs.get("schedule")
    known = ("shift", "cosine", "logit_normal")
    schedule = without if schedule is None else schedule if schedule in known else "identity"
    return {
        "schedule": schedule,
        "shift": (kwargs.get("schedule_kwargs") or {}).get("shift", 3.0),
        "cache": "prefix" if kwargs.get("prefix_lm") else "none",
        "stop": "none",
    }


def schedule_counts(entry: Entry, case: Json) -> None:
    named = lavida_common(case, "linear")
    counts = reveal_counts(case["n_masked"], case["steps"], named["schedule"], named["shift"])
    if case["schedule"] is None:  # the published list goes on with zeros
        counts = counts + [0] * (case["steps"] - len(counts))
    entry.compare(case["output"], counts)


def picture(entry: Entry, name: str) -> Image.Image:
    return Image.fromarray(entry.inputs[PICTURE.format(name)].numpy())


def compare_tiles(entry: Entry, model: Any, names: list[str]) -> dict[str, Any]:
    """Every picture's tiles; returns what `cut` made of them, by name."""
    made = {}
    for name in names:
        made[name] = cut(picture(entry, name), model.tiling)
        entry.compare(f"pixels_{name}_uint8", ((made[name].pixels + 1) * 127.5).round().byte())
    return made


def compare_tower(entry: Entry, model: Any, tiles: Tensor) -> Tensor:
    """The tower's and the projector's features of a picture's tiles (n, T, D)."""
    seen = model.vision(tiles)
    tokens = model.projector(seen)
    entry.compare("tower_features_tile0", seen[0], **entry.tolerance("hidden"))
    entry.compare("projected_tile0", tokens[0], **entry.tolerance("hidden"))
    return tokens


def embedded(entry: Entry, model: Any, prompt: str, names: list[str]) -> Tensor:
    """(L, D) embeddings of a prompt with its pictures in place."""
    pictures = [entry.inputs[PICTURE.format(name)] for name in names]
    canvas = canvas_from_ids(model, entry.inputs[prompt], None, pictures)
    return model.embed(canvas)[0]


def stats(embeds: Tensor) -> Tensor:
    return torch.stack([embeds.mean(1), embeds.pow(2).mean(1).sqrt()])


@torch.inference_mode()
def lavida(entry: Entry, settings: Any) -> None:
    model = mmdiff.load(entry.folder)
    hidden = entry.tolerance("hidden")

    def generate(entry: Entry, case: Json) -> None:
        more = {"pixel_values": [entry.inputs[name] for name in case["images"]] or None}
        if case.get("draft_tokens"):
            more["draft_tokens"] = entry.inputs[case["draft_tokens"]]
        made = generated(entry, model, case, settings(case["kwargs"]), **more)
        entry.compare(case["output"], made)

    entry.cases(generate)

    def extra(entry: Entry, case: Json) -> None:
        if case["function"] == "train_forward":
            return forward.lavida(entry, model, case)
        return schedule_counts(entry, case)

    entry.cases(extra, "extra_cases")
    tiles = compare_tiles(entry, model, ["wide", "tall"])["wide"].pixels
    tokens = compare_tower(entry, model, tiles)
    first = entry.outputs["projected_tile1_first_64_tokens"]
    entry.compare("projected_tile1_first_64_tokens", tokens[1, : len(first)], **hidden)
    entry.compare("pooled_bilinear", pool(tokens, "bilinear"), **hidden)
    entry.compare("pooled_average_tile0", pool(tokens[:1], "average"), **hidden)
    one = embedded(entry, model, "input_ids_one_image", ["wide"])
    entry.compare("merged_embeds_one_image", one, **hidden)
    two = embedded(entry, model, "input_ids_two_images", ["wide", "tall"])
    entry.compare("merged_embeds_two_images_stats", stats(two), **hidden)
    lavida_answers(entry, model)
    lavida_low_resolution(entry, model)


def lavida_answers(entry: Entry, model: Any) -> None:
    """Logits of masked answers, with and without the prompt's cache. Stored rows are the model's
    own, so the shift is switched off."""
    pictures = [entry.inputs[PICTURE.format("wide")]]
    stored = entry.outputs["logits_full_attention_answer_region"]
    cells = len(stored) - 1
    prompt = entry.inputs["input_ids_one_image"]
    shift, model.config.shift = model.config.shift, False
    logits = model(input_ids=with_masks(entry, prompt, cells), pixel_values=pictures).logits[0]
    entry.compare("logits_full_attention_answer_region", logits[-len(stored) :])
    canvas = canvas_from_ids(model, prompt, None, pictures)
    canvas = extend_canvas(canvas, torch.full((1, cells), entry.ids["mask"]), entry.ids["mask"])
    cached = PrefixCache(model, canvas).score(canvas, canvas.masked)
    entry.compare("logits_prefix_cache_answer_region", cached)
    model.config.shift = shift
    if "prefill_last_logits" in entry.outputs:
        last = PrefixCache(model, canvas).last
        entry.compare("prefill_last_logits", model.head(last))
    if "cache_key_layer0_first_8" in entry.outputs:
        layer = model.backbone.layers[0]
        stored = entry.outputs["cache_key_layer0_first_8"]
        embeds = model.embed(canvas)[0, : stored.shape[1]]
        keys = layer.self_attn.k_proj(layer.input_layernorm(embeds))
        keys = keys.unflatten(1, (stored.shape[0], -1)).transpose(0, 1)
        entry.compare("cache_key_layer0_first_8", keys, **entry.tolerance("hidden"))


def lavida_low_resolution(entry: Entry, model: Any) -> None:
    """One padded tile per picture, not pooled."""
    tiling = replace(model.tiling, aspect="pad", pinpoints=(), pool=None)
    made = cut(picture(entry, "wide"), tiling)
    entry.compare("lowres_pixels_uint8", ((made.pixels + 1) * 127.5).round().byte())
    tokens = model.projector(model.vision(made.pixels))
    block = merge(tokens, made.grid, made.size, tiling, model.image_newline)
    ids = entry.inputs["input_ids_one_image"][0]
    at = ids.tolist().index(entry.facts["image_placeholder"])
    words = model.get_input_embeddings()(ids.clamp(min=0))
    embeds = torch.cat([words[:at], block, words[at + 1 :]])
    hidden = entry.tolerance("hidden")
    for name in ("merged_embeds_lowres_first_32", "merged_embeds_lowres_last_16"):
        n = len(entry.outputs[name])
        entry.compare(name, embeds[:n] if "first" in name else embeds[-n:], **hidden)


@torch.inference_mode()
def llada_v(entry: Entry) -> None:
    model = mmdiff.load(entry.folder)
    model.config.mask_token_id = entry.ids["mask"]  # the published config.json does not name it
    forbid = [entry.ids[name] for name in ("eos", "bos", "start_header", "end_header")]

    def generate(entry: Entry, case: Json) -> None:
        settings = llada_settings(case["kwargs"], entry.ids) | {"forbid": forbid}
        stops = case.get("stop_token_ids") or []
        if stops:
            settings |= {"stop": "cut", "stop_ids": stops}
        pictures = [entry.inputs[name] for name in case["images"]] or None
        suffix = case.get("suffix_ids") or ()
        made = generated(entry, model, case, settings, pixel_values=pictures, suffix_ids=suffix)
        entry.compare(case["output"], until(made, stops))

    entry.cases(generate)
    entry.cases(lambda entry, case: forward.llada_v(entry, model, case), "extra_cases")
    forward.turns(entry)
    tiles = compare_tiles(entry, model, ["small", "big"])
    compare_tower(entry, model, tiles["small"].pixels)
    for name in tiles:
        embeds = embedded(entry, model, "input_ids_one_image", [name])
        limits = entry.tolerance("logits_big" if name == "big" else "hidden")
        entry.compare(f"merged_embeds_{name}_stats", stats(embeds), **limits)
        if name == "big":
            last = entry.outputs["merged_embeds_big_last_30"]
            entry.compare("merged_embeds_big_last_30", embeds[-len(last) :], **limits)
        stored = entry.outputs[f"logits_answer_region_{name}"]
        ids = with_masks(entry, entry.inputs["input_ids_one_image"], len(stored))
        shown = [entry.inputs[PICTURE.format(name)]]
        logits = model(input_ids=ids, pixel_values=shown).logits[0, -len(stored) :]
        entry.compare(f"logits_answer_region_{name}", logits, **limits)
    text = entry.inputs["input_ids_text"]
    stored = entry.outputs["logits_text"]
    ids = with_masks(entry, text, len(stored) - text.shape[1])
    entry.compare("logits_text", model(input_ids=ids).logits[0])
