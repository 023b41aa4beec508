"""MMaDA and Lumina-DiMOO against published numbers: pictures as codes, their packing and losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import mmdiff
from mmdiff.backbone import run_decoder
from mmdiff.checkpoints import mmada as rows
from mmdiff.decoding.published_codes import gumbel, lowest
from mmdiff.diffusion.corrupt import exact_cells
from mmdiff.diffusion.losses import cell_weight, denominator, masked_loss, visible_weight
from mmdiff.diffusion.schedule import mask_ratio, reveal_counts
from mmdiff.encoders.codes import load_codec
from mmdiff.encoders.codes.lfq import to_codes, to_latents
from tests.walk.core import Entry, Json
from tests.walk.text import llada_settings

NO_LABEL = rows.NO_LABEL


def extra(entry: Entry, function: str) -> Json:
    return next(case for case in entry.facts["extra_cases"] if case["function"] == function)


def picture_settings(kwargs: Json, scale: str, steps: int) -> Json:
    """What both image samplers share; `temperature` is that of the choice of cells."""
    return {
        "steps": steps,
        "accept": "maskgit",
        "order_temperature": kwargs.get("temperature", 1.0),
        "cfg_scale": kwargs.get(scale, 0.0),
        "cache": "none",
        "stop": "none",
    }


@torch.inference_mode()
def mmada(entry: Entry) -> None:
    model = mmdiff.load(entry.folder)

    def generate(entry: Entry, case: Json) -> None:
        draw = mmada_picture if case["function"] == "t2i_generate" else mmada_text
        draw(entry, model, case)

    entry.cases(generate)
    forwards(entry, model)
    losses(entry, model)
    prompts(entry)
    codec(entry)
    training_parts(entry)


def mmada_text(entry: Entry, model: Any, case: Json) -> None:
    kwargs, prompt = case["kwargs"], entry.inputs[case["prompt"]]
    names = {"gen_length": kwargs.get("max_new_tokens", 128)}
    names |= {name: kwargs.get(name, 128) for name in ("steps", "block_length")}
    settings = llada_settings(kwargs | names, entry.ids) | {"compat": "mmada"}
    end = model.config.eos_token_id
    if kwargs.get("eot_token") is not None and case["function"] == "mmu_generate_fast":
        settings |= {"stop": "batch_block_end", "stop_ids": [kwargs["eot_token"]]}
        model.config.eos_token_id = None  # only that id ends
    mask = None
    if case.get("masked_prefix"):
        mask = torch.ones_like(prompt)
        mask[:, : case["masked_prefix"]] = 0
    if case.get("seed") is not None:
        torch.manual_seed(case["seed"])
    made = model.generate(prompt, attention_mask=mask, **settings).sequences
    model.config.eos_token_id = end
    entry.compare(case["output"], made)


def mmada_picture(entry: Entry, model: Any, case: Json) -> None:
    layout, kwargs = extra(entry, "t2i_layout"), case["kwargs"]
    given = {
        name: entry.inputs[f"t2i_{name}"][: case["rows"]]
        for name in ("cond", "cond_mask", "uncond", "uncond_mask")
    }
    start, cells = layout["text_part"] + 1, layout["n_image_tokens"]
    assert model.config.codes == [layout["text_vocab"], layout["codebook"]]
    settings = picture_settings(kwargs, "guidance_scale", kwargs["timesteps"])
    torch.manual_seed(case["generator_seed"])
    made = model.generate(
        given["cond"][:, :start],
        attention_mask=given["cond_mask"][:, :start],
        draft_tokens=given["cond"][:, start : start + cells],
        suffix_ids=given["cond"][0, start + cells :].tolist(),
        negative_prompt_ids=given["uncond"][:, :start],
        negative_prompt_attention_mask=given["uncond_mask"][:, :start],
        codes=model.config.codes,
        schedule=case["schedule"],
        temperature=1.0,
        compat="mmada_image",
        trace=True,
        **settings,
    )
    codes = made.sequences[:, start : start + cells] - layout["text_vocab"]
    entry.compare(case["output"], codes)
    entry.compare(f"{case['output']}_final_input_ids", made.trace[-1].ids)


def forwards(entry: Entry, model: Any) -> None:
    """Every way to pass a padding mask; padded cells are of no interest."""
    ids, keep = entry.inputs["fwd_ids"], entry.inputs["fwd_keep"]

    def compare(name: str, logits: Tensor) -> None:
        real = keep[..., None].bool()
        entry.compare(name, torch.where(real, logits, entry.outputs[name]))

    entry.compare("fwd_logits", model(input_ids=ids).logits)
    compare("fwd_logits_boolbias", model(input_ids=ids, attention_mask=keep).logits)
    causal = model(input_ids=ids, attention_mask=keep, attention_layout="causal")
    compare("fwd_logits_attnmask", causal.logits)
    entry.compare("fwd_logits_floatbias", added_mask(model, ids, keep))


def added_mask(model: Any, ids: Tensor, keep: Tensor) -> Tensor:
    """Logits where the 0 and 1 of a mask are added to the scores, as in the published training."""
    bias = (keep[:, :, None] & keep[:, None, :]).float()[:, None]
    position = torch.arange(ids.shape[1]).expand_as(ids)
    embeds = model.get_input_embeddings()(ids)
    return model.head(run_decoder(model.backbone, embeds, position, bias))


def losses(entry: Entry, model: Any) -> None:
    """Rows of three kinds, two each: text to image, language, image to text."""
    given = {name[5:]: value for name, value in entry.inputs.items() if name.startswith("loss_")}
    ids, labels = given["input_ids"], given["labels"]
    pictures, texts, images = slice(0, 2), slice(2, 4), slice(4, 6)
    keep = torch.ones_like(ids)
    keep[pictures] = given["t2i_masks"]
    logits = added_mask(model, ids, keep)
    entry.compare("loss_logits", logits)
    masked = ids == entry.ids["mask"]
    masked[pictures] = labels[pictures] != NO_LABEL
    n = ids.shape[1]
    answers = torch.ones_like(masked)
    answers[images] = torch.arange(n) >= n - given["answer_lengths"]

    def loss(part: slice, weight: str, kind: str, p: Tensor) -> Tensor:
        where, copy = masked[part], torch.zeros_like(ids[part])
        below = denominator(answers[part], where, copy, kind).expand_as(p)[where]
        weights = cell_weight(p, copy, weight)[where]
        return masked_loss(logits[part][where], labels[part][where], weights, below)

    none = torch.ones_like(given["p_lm"])
    entry.compare("loss_t2i", loss(pictures, "one", "masked", none))
    entry.compare("loss_lm", loss(texts, "inverse_p", "batch", given["p_lm"]))
    entry.compare("loss_mmu", loss(images, "inverse_p", "row", given["p_mmu"]))


def prompts(entry: Entry) -> None:
    given = entry.settings("prompt_inputs")
    named = given["reserved"]
    names = {name: named[f"<|{name}|>"] for name in ("soi", "eoi", "t2i", "mmu", "r2i")}
    ids, length = rows.Ids(**names, pad=named["[iPAD]"]), given["max_text_len"]
    both = list(zip(given["texts"], given["image_rows"], strict=True))
    line = entry.outputs["prompt_lm_0"].shape[1]
    made = {
        "t2i": [rows.text_to_image(text, codes, length, ids) for text, codes in both],
        "lm_chat": [rows.language(text, line, ids) for text in given["texts"]],
        "mmu": [rows.image_to_text(codes, text, length, ids) for text, codes in both],
        "r2i": [rows.reasoning_to_image(text, codes, length, ids) for text, codes in both],
    }
    made |= {"t2i_gen": made["t2i"], "lm": made["lm_chat"]}
    for task, packed in made.items():
        parts = [[p.ids for p in packed], [p.mask for p in packed], [p.labels for p in packed]]
        if task == "lm":  # every cell is visible, and none is prompt
            parts[1] = [[1] * line for _ in packed]
        for number, part in enumerate(parts[: 2 if task == "t2i_gen" else 3]):
            entry.compare(f"prompt_{task}_{number}", torch.tensor(part))


def codec(entry: Entry) -> None:
    z = entry.inputs["lfq_z"]
    codes = to_codes(z)
    entry.compare("lfq_indices", codes[:, None])
    entry.compare("lfq_entry", to_latents(codes, z.shape[1]))
    net = load_codec("magvit", entry.path("vq_weights"), entry.settings("vq_config"))
    pixels = entry.inputs["vq_pixels"]
    entry.compare("vq_latent", net.encoder(pixels))
    codes = net.encode(pixels)
    entry.compare("vq_code", codes.flatten(1))
    entry.compare("vq_recon", net.decode(codes))


def training_parts(entry: Entry) -> None:
    t = entry.inputs["sched_t"]
    for name in [n for n in entry.outputs if n.startswith("sched_")]:
        entry.compare(name, mask_ratio(t, name.removeprefix("sched_")))
    masks = entry.inputs["ntt_mask"].sum(1).tolist()
    for name in [n for n in entry.outputs if n.startswith("ntt_")]:
        steps = int(name.removeprefix("ntt_"))
        counts = [reveal_counts(n, steps) for n in masks]
        entry.compare(name, torch.tensor([c + [0] * (steps - len(c)) for c in counts]))
    case, log_p = extra(entry, "mask_by_random_topk"), entry.inputs["topk_probs"].log()
    for name in case["outputs"]:
        torch.manual_seed(case["seed"])
        noise = float(name.rpartition("T")[2]) * gumbel(torch.rand_like(log_p))
        entry.compare(name, lowest(log_p + noise, entry.inputs["topk_len"][:, 0]))
    ids = entry.inputs["mrr_image_tokens"]
    torch.manual_seed(extra(entry, "mask_or_random_replace")["seed"])
    p = mask_ratio(torch.rand(len(ids)), "cosine")
    # The published code compares a permutation, not the ranks that it sorts by.
    permuted = torch.rand(ids.shape).argsort(dim=1).float()
    masked = exact_cells(permuted, p[:, None], torch.ones_like(ids).bool())
    entry.compare("mrr_mask_prob", p)
    entry.compare("mrr_labels", torch.where(masked, ids, NO_LABEL))
    entry.compare("mrr_rr_labels", ids)
    entry.compare("mrr_rr_weight", visible_weight(p[:, None], masked))
    for name in ("mrr_input_ids", "mrr_rr_input_ids"):  # random ids are asked for, but never come
        entry.compare(name, torch.where(masked, entry.ids["mask"], ids))


@torch.inference_mode()
def lumina(entry: Entry) -> None:
    model = mmdiff.load(entry.folder)
    grid = entry.facts["grid"]
    model.config.codes = [grid["text_vocab"], grid["codebook"]]

    def generate(entry: Entry, case: Json) -> None:
        draw = lumina_picture if case["function"] == "generate_image" else lumina_text
        draw(entry, model, case)

    entry.cases(generate)
    case = extra(entry, "train_loss")
    texts = [entry.inputs[name][0] for name in case["inputs"]]
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    length = torch.tensor([len(text) for text in texts])[:, None]
    column = torch.arange(ids.shape[1])
    known = torch.tensor(case["unlabelled_prefix"])[:, None]
    answer = (column >= known) & (column < length)
    logits = model(input_ids=ids).logits[answer]  # the published network drops its padding mask
    one = torch.ones_like(ids[answer])
    entry.compare(case["output"], masked_loss(logits, ids[answer], one, answer.sum()))


def lumina_text(entry: Entry, model: Any, case: Json) -> None:
    prompt, start = entry.inputs[case["prompt"]], case["code_start"]
    settings = llada_settings(case["kwargs"], entry.ids) | {"compat": "lumina"}
    behind = prompt[0, start + settings["max_new_tokens"] :].tolist()
    if case.get("generator_seed") is not None:
        torch.manual_seed(case["generator_seed"])
    out = model.generate(prompt[:, :start], suffix_ids=behind, **settings)
    entry.compare(case["output"], out.sequences)


def lumina_picture(entry: Entry, model: Any, case: Json) -> None:
    prompt, start, kwargs = entry.inputs[case["prompt"]], case["code_start"], case["kwargs"]
    settings = picture_settings(kwargs, "cfg_scale", kwargs["timesteps"])
    # The published cache does nothing without guidance.
    if kwargs.get("use_cache") and settings["cfg_scale"]:
        ratio, refresh = kwargs.get("cache_ratio", 0.9), kwargs.get("refresh_interval", 5)
        warmup = kwargs.get("warmup_ratio", 0.3)
        settings["cache"] = f"max_logit:ratio={ratio},warmup={warmup},refresh={refresh}"
    torch.manual_seed(case["generator_seed"])
    out = model.generate(
        prompt[:, :start],
        draft_tokens=prompt[:, start:-2],
        suffix_ids=prompt[0, -2:].tolist(),
        negative_prompt_ids=torch.cat(
            [entry.inputs["t2i_uncon"], prompt[:, start - 2 : start]], dim=1
        ),
        codes=model.config.codes,
        schedule="cosine",
        temperature=kwargs.get("temperature", 1.0),
        compat="lumina_image",
        **settings,
    )
    made = out.sequences[0, start:-2]
    entry.compare(case["output"], made[made != entry.ids["newline"]])
