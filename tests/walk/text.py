"""LLaDA and Dream text checkpoints against published numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import mmdiff
from mmdiff.diffusion.schedule import reveal_counts, timestep_counts
from tests.walk import forward
from tests.walk.core import Entry, Json

LLADA_ORDERS = {"low_confidence": "confidence", "random": "random", "margin": "margin"}
LLADA_ORDERS["entrophy"] = "entropy"
DREAM_ORDERS = {"entropy": "entropy", "topk_margin": "margin", "maskgit_plus": "confidence"}


EXTRA = {
    "log_likelihood": forward.log_likelihood,
    "forward_process": forward.forward_process,
}


def llada_settings(kwargs: Json, ids: dict[str, int]) -> Json:
    """LLaDA's and LLaDA-V's `generate` arguments in our words."""
    made = {
        "max_new_tokens": kwargs["gen_length"],
        "steps": kwargs["steps"],
        "block_length": kwargs["block_length"],
        "cfg_scale": kwargs.get("cfg_scale", 0.0),
        "temperature": kwargs.get("temperature", 0.0),
        "order": LLADA_ORDERS[kwargs.get("remasking", "low_confidence")],
        "remask": "none",
        "cache": "none",
        "stop": "none",
        "compat": "llada",
    }
    if kwargs.get("logits_eos_inf"):
        made["forbid"] = [ids["eos"]]
    if kwargs.get("confidence_eos_eot_inf"):
        made["late"] = [ids["eos"], ids["eot"]]
    return made


def dream_settings(kwargs: Json) -> Json:
    """Dream's `diffusion_generate` arguments in our words."""
    origin = kwargs["alg"] == "origin"
    return {
        "max_new_tokens": kwargs["max_new_tokens"],
        "steps": kwargs["steps"],
        "order": "confidence" if origin else DREAM_ORDERS[kwargs["alg"]],
        "accept": "origin" if origin else "schedule",
        "schedule": "timestep",
        "eps": kwargs.get("eps", 1e-3),
        "order_temperature": kwargs.get("alg_temp") or 0.0,
        "temperature": kwargs.get("temperature") or 0.0,
        "top_p": kwargs.get("top_p") or 1.0,
        "top_k": kwargs.get("top_k") or 0,
        "cache": "none",
        "stop": "none",
        "compat": "dream",
    }


def generated(entry: Entry, model: Any, case: Json, settings: Json, **more: Any) -> Tensor:
    """The answer region of one generation, seeded as the case says."""
    prompt = entry.inputs[case["prompt"]]
    mask = case.get("attention_mask")
    mask = entry.inputs[mask] if mask not in (None, "ones") else None
    if case.get("seed") is not None:
        torch.manual_seed(case["seed"])
    out = model.generate(prompt, attention_mask=mask, **settings, **more)
    cells = settings["max_new_tokens"] + len(more.get("suffix_ids", ()))
    return out.sequences[:, -cells:]


def with_masks(entry: Entry, prompt: Tensor, cells: int) -> Tensor:
    holes = torch.full((len(prompt), cells), entry.ids["mask"])
    return torch.cat([prompt, holes], dim=1)


def hidden_states(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """Embeddings, the input of layer 1 and the state after the final norm, of one full forward."""
    kept: dict[str, Tensor] = {}
    layers = model.backbone.layers
    handle = layers[1].register_forward_pre_hook(
        lambda _m, args, kwargs: kept.update(layer1=args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    last = model.backbone.norm.register_forward_hook(lambda _m, _a, out: kept.update(final=out))
    with torch.inference_mode():
        model(input_ids=ids)
        kept["embed"] = model.get_input_embeddings()(ids)
    handle.remove()
    last.remove()
    return {name: state[0] for name, state in kept.items()}


def llada(entry: Entry) -> None:
    model = mmdiff.load(entry.folder)

    def generate(entry: Entry, case: Json) -> None:
        settings = llada_settings(case["kwargs"], entry.ids)
        entry.compare(case["output"], generated(entry, model, case, settings))

    def extra(entry: Entry, case: Json) -> None:
        if case["function"] in EXTRA:
            return EXTRA[case["function"]](entry, model, case)
        counts = reveal_counts(case["n_masked"], case["steps"])
        entry.compare(case["output"], counts + [0] * (case["steps"] - len(counts)))

    entry.cases(generate)
    with torch.inference_mode():
        entry.cases(extra, "extra_cases")
    noisy = entry.inputs["noisy"]
    with torch.inference_mode():
        logits = model(input_ids=noisy).logits[0]
        entry.compare("logits_noisy", logits)
        rows = len(entry.outputs["logits_noisy_masked"])
        entry.compare("logits_noisy_masked", logits[-rows:])
        padded = entry.inputs["padded"]
        cells = entry.outputs["logits_padded_with_mask"].shape[1]
        ids = with_masks(entry, padded, cells)
        mask = torch.cat(
            [entry.inputs["padded_attention_mask"], torch.ones(len(ids), cells).long()], dim=1
        )
        # Any padding mask makes the published network causal: see docs/checkpoints.md.
        causal = model(input_ids=ids, attention_mask=mask, attention_layout="causal").logits
        entry.compare("logits_padded_with_mask", causal[:, -cells:])
        entry.compare("logits_padded_without_mask", model(input_ids=ids).logits[:, -cells:])
    states = hidden_states(model, noisy)
    entry.compare("hidden_embed", states["embed"])
    entry.compare("hidden_layer1_in", states["layer1"])
    entry.compare("hidden_final_norm", states["final"])


def dream(entry: Entry) -> None:
    model = mmdiff.load(entry.folder)

    def generate(entry: Entry, case: Json) -> None:
        settings = dream_settings(case["kwargs"])
        entry.compare(case["output"], generated(entry, model, case, settings))

    def extra(entry: Entry, case: Json) -> None:
        counts = timestep_counts(case["n_masked"], case["steps"], case["eps"], at_least=False)
        entry.compare(case["output"], counts)

    entry.cases(generate)
    entry.cases(extra, "extra_cases")
    with torch.inference_mode():
        logits = model(input_ids=entry.inputs["noisy"]).logits[0]
        entry.compare("logits_noisy_shifted", logits)
        model.config.shift = False
        entry.compare("logits_noisy_raw", model(input_ids=entry.inputs["noisy"]).logits[0])


@torch.inference_mode()
def rediff(entry: Entry) -> None:
    model = mmdiff.load(entry.folder)
    model.config.mask_token_id = entry.ids["mask"]

    def generate(entry: Entry, case: Json) -> None:
        kwargs = case["kwargs"]
        settings = llada_settings(kwargs, entry.ids) | {"forbid": entry.ids["forbidden"]}
        if kwargs.get("revise"):
            top, start = kwargs.get("revise_topk"), kwargs.get("revise_start", 1.0)
            settings["remask"] = f"revise:top={1.0 if top is None else top},start={start}"
        stops = case.get("stop_token_ids") or []
        if stops:
            settings |= {"stop": "cut", "stop_ids": stops}
        more: Json = {"suffix_ids": case.get("suffix_ids") or ()}
        if case.get("fake_answer"):
            given = entry.inputs[case["fake_answer"]]
            cells = settings["max_new_tokens"] - given.shape[1]
            more |= {"draft_tokens": with_masks(entry, given, cells), "draft_fixed": False}
        entry.compare(case["output"], until(generated(entry, model, case, settings, **more), stops))

    entry.cases(generate)
    entry.compare("logits", model(input_ids=entry.inputs["loss_ids"]).logits)
    entry.cases(lambda entry, case: forward.rediff(entry, model, case), "extra_cases")


def until(made: Tensor, stops: list[int]) -> list[int]:
    """The ids of the only row before the first that stops."""
    ids = made[0].tolist()
    return ids[: min((ids.index(stop) for stop in stops if stop in ids), default=len(ids))]
