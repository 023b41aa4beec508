"""The samplers of published accelerators: ids, calls, and what each call recomputes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

import mmdiff
import mmdiff.model as model_file
from mmdiff.decoding.choose import ACCEPTS
from mmdiff.decoding.draws import top
from mmdiff.decoding.loop import decode
from mmdiff.decoding.settings import make_decoding
from mmdiff.diffusion.schedule import reveal_counts
from mmdiff.raw_ids import canvas_from_ids, extend_canvas
from tests.walk.core import Entry, Json, NotSupported

GROW = {
    "factor": "expansion_factor",
    "end": "eos_confidence_threshold",
    "keep": "expand_eos_confidence_threshold",
    "low": "low_conf_threshold",
    "check": "eos_check_tokens",
    "most": "max_gen_length",
}
CACHES = {"plain": "none", "prefix": "suffix", "dual": "dual"}


def accepted(args: Json) -> Json:
    """Fast-dLLM's arguments: a threshold, else a factor, else so many steps."""
    if args.get("threshold") is not None:
        return {"accept": "threshold", "threshold": args["threshold"]}
    if args.get("factor") is not None:
        return {"accept": "factor", "factor": args["factor"], "compat": "fast_dllm"}
    return {"steps": args["steps"]}


def settings_of(case: Json) -> Json:
    args, (family, kind) = case["args"], case["name"].split(".")[:2]
    made: Json = {"block_length": args.get("block_length"), "cache": "none", "stop": "none"}
    made["max_new_tokens"] = args.get("gen_length")
    if family == "llada":
        made |= {"steps": args["steps"], "cfg_scale": args.get("cfg_scale", 0.0)}
    elif family.startswith("fast"):
        made |= accepted(args) | {"cache": CACHES[kind]}
    elif family == "dkv":
        reload = args.get("cache_reloading_step")
        made |= {"steps": args["steps"], "cache": f"delayed:reload={reload}" if reload else "none"}
    elif family == "prophet":
        start = args["answer_start_pos"] - len(case["prompt"][0])
        options = {"start": start, "cells": args.get("answer_length", 5)}
        options |= args["early_exit_thresholds"]
        made |= {"steps": args["steps"]}
        made["stop"] = "prophet:" + ",".join(f"{k}={v}" for k, v in options.items())
    elif family == "saber":
        n = args["n"]
        made |= {"accept": f"saber:n={n}", "remask": f"drop:least={n // 2}", "compat": "saber"}
    elif family == "daedal":
        grow = {ours: args[theirs] for ours, theirs in GROW.items()}
        made |= {"max_new_tokens": args["initial_gen_length"], "compat": "llada"}
        made |= {"accept": "threshold", "threshold": args["high_conf_threshold"]}
        made["length"] = "grow:" + ",".join(f"{k}={v}" for k, v in grow.items())
    else:
        raise NotSupported(f"{family} is not there yet")
    return made


def opened(entry: Entry) -> Any:
    """The entry's model, whose files have names of their own."""
    with TemporaryDirectory() as folder:
        config = json.loads(entry.path("config").read_text()) | {"model_type": "llada"}
        (Path(folder) / "config.json").write_text(json.dumps(config))
        shutil.copy(entry.path("weights"), Path(folder) / "model.safetensors")
        return mmdiff.load(folder)


def run(model: Any, case: Json, settings: Json) -> tuple[Any, list[list[int]]]:
    """What decoding made, and the (rows, columns) of every backbone call."""
    shapes: list[list[int]] = []
    plain = model_file.run_decoder

    def noting(decoder: Any, embeds: Tensor, *rest: Any) -> Tensor:
        shapes.append(list(embeds.shape[:2]))
        return plain(decoder, embeds, *rest)

    prompt = torch.tensor(case["prompt"])
    holes = torch.full((len(prompt), settings["max_new_tokens"]), model.config.mask_token_id)
    model_file.run_decoder = noting
    try:
        canvas = extend_canvas(canvas_from_ids(model, prompt), holes, model.config.mask_token_id)
        reported = case.get("peer_reported")
        end_id = reported.get("eos_token_id") if isinstance(reported, dict) else None  # of DAEDAL
        return decode(model, canvas, make_decoding({"trace": True}, settings), end_id), shapes
    finally:
        model_file.run_decoder = plain


def decided_by(filled: Any, masked: Tensor) -> list[list[int]]:
    """By row and cell, the step that decided it last; -1 for the prompt."""
    made = torch.full(masked.shape, -1)
    before = masked
    for number, step in enumerate(filled.trace):
        after = before.clone()
        after[step.rows] = step.masked
        made[before & ~after] = number
        before = after
    return made.tolist()


def compare_case(entry: Entry, model: Any, case: Json, name: str) -> None:
    settings = settings_of(case)
    filled, shapes = run(model, case, settings)
    rows, tokens = len(case["prompt"]), filled.canvas.ids.tolist()
    masked = filled.canvas.writable
    wrong = {"tokens": tokens != case["tokens"]}
    if "length" not in settings:
        wrong["unmasked_by_call"] = decided_by(filled, masked) != case["unmasked_by_call"]
    if settings.get("cfg_scale"):  # the published code stacks both halves of a guided call
        shapes = [[2 * b, n] for b, n in shapes[::2]]
    if rows == 1:
        wrong["call_shapes"] = shapes != case["call_shapes"]
        wrong["nfe"] = len(shapes) != case["nfe"]
    elif wrong.get("unmasked_by_call"):
        # Published rows wait for each other at block ends; ours take the calls they need.
        needed = [len(set(row) - {-1}) for row in case["unmasked_by_call"]]
        wrong["unmasked_by_call"] = False
        wrong["nfe"] = filled.nfe.tolist() != needed
    failed = [what for what, is_wrong in wrong.items() if is_wrong]
    status = "failed" if failed else "passed"
    entry.note(name, status, list(wrong), float(len(failed)), failed=failed)


def compare_rules(entry: Entry, table: Json) -> None:
    """One step of a rule on a stored table of logits (B, L, V)."""
    logits = torch.tensor(table["logits"], dtype=torch.float64)
    x = torch.tensor(table["x"])
    masked = x == table["mask_id"]
    probability = torch.tensor(table["confidence"], dtype=torch.float64)
    computed = logits.softmax(-1).amax(-1)
    close = torch.allclose(computed, probability, rtol=0, atol=1e-12)
    entry.note("one_step confidence", "passed" if close else "failed", ["confidence"])
    score = torch.where(masked, probability, float("-inf"))
    for number, result in enumerate(table["results"]):
        got = taken_by(result, score, probability)
        rows = min(len(got), len(result["transfer"]))
        same = got[:rows].int().tolist() == result["transfer"]
        entry.note(f"one_step {number} {result['rule']}", "passed" if same else "failed", ["one"])


def taken_by(result: Json, score: Tensor, probability: Tensor) -> Tensor:
    if "k" in result:
        return top(score, torch.full((len(score),), result["k"]))
    name = "factor" if "factor" in result else "threshold"
    compat = {"compat": "fast_dllm"} if name == "factor" else {}
    rule: Any = ACCEPTS.get(name)(make_decoding({"accept": name} | compat), None)  # type: ignore
    setattr(rule, name, result[name])  # published thresholds may lie above 1
    rows = torch.arange(len(score))
    return rule(score, probability, None, rows, None)


@torch.inference_mode()
def samplers(entry: Entry) -> None:
    fixtures = json.loads(entry.path("fixtures").read_text())
    model = opened(entry)
    for number, case in enumerate(fixtures["cases"]):
        name = f"{case['name']} {number}"
        try:
            compare_case(entry, model, case, name)
        except NotSupported as missing:
            entry.skip(name, str(missing))
    for counts in fixtures["num_transfer_tokens"]:
        made = reveal_counts(counts["masked"], counts["steps"])
        made += [0] * (counts["steps"] - len(made))
        good = made == counts["transfer"]
        entry.note(f"num_transfer_tokens {counts['masked']}", "passed" if good else "failed", ["n"])
    compare_rules(entry, fixtures["one_step"])
