"""The speed of the decoding loop against a published one: `python -m tests.speed`.

One thread, random weights in LLaDA's layout; CPU seconds of the process, so that other work on the
machine counts little. All parts of a comparison are timed in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mmdiff.backbone import KeyValueCache, run_decoder
from mmdiff.decoding.loop import Filled, decode
from mmdiff.decoding.settings import make_decoding
from mmdiff.model import MMDiffConfig, MMDiffModel
from mmdiff.raw_ids import canvas_from_ids, extend_canvas
from tests.reference_loops import llada

PROMPT, CELLS, BLOCK, MASK = 512, 128, 32, 5
SIZES = {
    "model_type": "llama",
    "vocab_size": 126_464,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": PROMPT + CELLS,
}


def build(vocabulary: int) -> MMDiffModel:
    torch.manual_seed(0)
    config = MMDiffConfig(
        text_config=SIZES | {"vocab_size": vocabulary},
        mask_token_id=MASK,
        tie_word_embeddings=False,
    )
    return MMDiffModel(config).eval()


def seconds(work: Callable[[], Any], rounds: int = 3) -> float:
    """The median time of `rounds` runs behind a first one."""
    times = []
    for _ in range(rounds + 1):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times[1:])


def ours(model: MMDiffModel, prompt: Tensor, **settings: Any) -> Filled:
    holes = torch.full((len(prompt), CELLS), MASK)
    canvas = extend_canvas(canvas_from_ids(model, prompt), holes, MASK)
    made = make_decoding({"max_new_tokens": CELLS, "block_length": BLOCK, "stop": "none"}, settings)
    return decode(model, canvas, made, None)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


def against_llada(model: MMDiffModel, prompt: Tensor, steps: int, temperature: float) -> None:
    """Both loops on the same weights; at temperature 0 also the gain that is possible."""

    def logits_of(ids: Tensor) -> Tensor:
        return model(input_ids=ids).logits

    settings = {"steps": steps, "temperature": temperature, "cache": "none", "trace": True}
    ours(model, prompt, **settings | {"steps": CELLS // BLOCK})
    filled, own = timed(lambda: ours(model, prompt, **settings))
    ids, published = timed(lambda: llada(logits_of, prompt, CELLS, steps, BLOCK, temperature, MASK))
    share = 1 - filled.inside / filled.seconds
    print(f"\nT={temperature:g}, {steps} steps, no cache")
    print(f"  published loop {published:.2f} s, ours {own:.2f} s: {published / own:.2f}x")
    print(f"  outside the model and passes over the vocabulary: {share:.2%}")
    if temperature == 0:
        same = torch.equal(filled.canvas.ids, ids)
        possible = possible_gain(model, ids, steps)
        print(
            f"  ids {'the same' if same else 'DIFFERENT'}; possible gain {possible:.2f}x, ", end=""
        )
        print(f"reached {published / own / possible:.1%}")


def possible_gain(model: MMDiffModel, ids: Tensor, steps: int) -> float:
    """(body + head on all rows + softmax + argmax) / (body + head on the block's masked rows)."""
    canvas = canvas_from_ids(model, ids)
    embeds = model.embed(canvas)
    hidden = model.hidden(canvas, embeds)[0]
    body = seconds(lambda: model.hidden(canvas, embeds))
    head = seconds(lambda: model.head(hidden))
    logits = model.head(hidden)
    passes = seconds(lambda: logits.softmax(-1)) + seconds(lambda: logits.argmax(-1))
    each = steps // (CELLS // BLOCK)
    left = [BLOCK - BLOCK * step // each for step in range(each)]
    few = statistics.mean(seconds(lambda n=n: model.head(hidden[:n])) for n in left)
    return (body + head + passes) / (body + few)


def dual_step(model: MMDiffModel, prompt: Tensor) -> None:
    """A step of cache=dual against a bare forward of the same queries over the same keys and the
    head on its masked rows, from the steps of whole blocks, one cell each."""
    starts: list[tuple[float, int]] = []
    hidden_of = model.hidden

    def noting(canvas: Any, embeds: Tensor, *rest: Any, **named: Any) -> Tensor:
        starts.append((time.process_time(), embeds.shape[1]))
        return hidden_of(canvas, embeds, *rest, **named)

    ours(model, prompt, steps=CELLS // BLOCK, cache="dual")
    model.hidden = noting  # type: ignore[method-assign]
    filled = ours(model, prompt, steps=CELLS, cache="dual")
    model.hidden = hidden_of  # type: ignore[method-assign]
    steps = [b[0] - a[0] for a, b in pairwise(starts) if a[1] == b[1] == BLOCK]

    canvas = canvas_from_ids(model, filled.canvas.ids)
    store = KeyValueCache(canvas.shape[1])
    embeds = model.embed(canvas)
    model.hidden(canvas, embeds, cache=store)
    block, position = embeds[:, -BLOCK:], canvas.position[:, -BLOCK:]
    store.window(canvas.shape[1] - BLOCK, canvas.shape[1])
    out = run_decoder(model.backbone, block, position, None, store)[0]
    bare = seconds(lambda: run_decoder(model.backbone, block, position, None, store), 9)
    # Every block's first step feeds everything and takes one cell; the last is followed by it.
    head = statistics.mean(seconds(lambda n=n: model.head(out[:n])) for n in range(2, BLOCK))
    step = statistics.median(steps)
    print(f"\ncache=dual, {len(steps)} steps of {BLOCK} queries over {canvas.shape[1]} keys")
    print(
        f"  a step {step * 1e3:.1f} ms (median), bare forward {bare * 1e3:.1f} ms + head ", end=""
    )
    print(f"{head * 1e3:.1f} ms: {step / (bare + head):.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabulary", type=int, default=SIZES["vocab_size"])
    parser.add_argument("--steps", type=int, default=16, help="at T=0; T=1 takes half of them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        model = build(arguments.vocabulary)
        prompt = torch.randint(10, arguments.vocabulary, (1, PROMPT))
        against_llada(model, prompt, arguments.steps, 0.0)
        dual_step(model, prompt)
        against_llada(model, prompt, max(CELLS // BLOCK, arguments.steps // 2), 1.0)


if __name__ == "__main__":
    main()
