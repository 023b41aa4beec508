"""DiffusionGemma: transformers' own network and denoising loop behind `load` and `generate`.

It has no mask token: a canvas starts as random ids, accepted cells are kept, the others drawn again
(uniform noise), and finished canvases pass through a causal encoder whose keys the decoder reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from mmdiff.checkpoints.base import NATIVES, Native
from mmdiff.decoding.settings import Decoding, make_decoding, parse_rule, with_options, with_seed
from mmdiff.decoding.stop import answer_length
from mmdiff.errors import CheckpointError, InputError, SettingError, nearest
from mmdiff.heads.tasks import GenerateOutput, Tasks

CLASS = "DiffusionGemmaForBlockDiffusion"
SINCE = "5.11"
STEPS = 48  # per canvas
DEFAULTS: dict[str, Any] = {
    "max_new_tokens": 256,
    "temperature": 0.8,
    "temperature_end": 0.4,
    "entropy_bound": 0.1,
    "stop": "stable:stability=1,confidence=0.005",
}
SETTINGS = (*DEFAULTS, "steps", "forbid", "stop_ids", "seed")
FIXED = {"accept": "entropy_bound", "order": "entropy"}  # what its loop does, and nothing else


class DiffusionGemma(Tasks):
    """`generate` on raw ids; rows are decoded one by one, each with the random numbers of its own
    seed, so that a batch equals its rows alone."""

    processor = None

    def __init__(self, network: Any) -> None:
        self.network = network
        self.config = network.config

    @property
    def device(self) -> torch.device:
        device: torch.device = self.network.device
        return device

    def run(self, *_: Any, **__: Any) -> NoReturn:
        raise InputError(
            "DiffusionGemma takes raw ids; make them with transformers' AutoProcessor and use "
            "generate(input_ids=...)"
        )

    def settings(self, given: Mapping[str, Any]) -> Decoding:
        """The checkpoint's defaults under the `given` settings; SettingError for one that its loop
        does not have. `steps` are split evenly over the canvases."""
        for name in given:
            if name not in SETTINGS:
                known = ", ".join(SETTINGS)
                hint = nearest(name, SETTINGS)
                raise SettingError(f"DiffusionGemma has no setting {name!r}.{hint} Known: {known}")
        length = self.config.canvas_length
        made = make_decoding(DEFAULTS, FIXED, {"block_length": length}, published(self.network))
        made = make_decoding(vars(made), given)
        if made.temperature == 0:
            raise SettingError("DiffusionGemma draws its tokens; set temperature above 0")
        if made.steps is None:
            steps = getattr(self.network.generation_config, "max_denoising_steps", None) or STEPS
            made = replace(made, steps=steps * made.blocks)
        return made

    @torch.inference_mode()
    def generate(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_position_ids: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        **decoding: Any,
    ) -> GenerateOutput:
        """Append `max_new_tokens` ids to prompts (B, P), padded on either side.

        The picture inputs are those of transformers' processor, for a single row. `nfe` (B,) counts
        decoder calls. Behind an end of text stand padding ids.
        """
        settings = self.settings(decoding)
        named = {
            "pixel_values": pixel_values,
            "image_position_ids": image_position_ids,
            "mm_token_type_ids": mm_token_type_ids,
        }
        pictures = {name: value for name, value in named.items() if value is not None}
        if pictures and len(input_ids) > 1:
            raise InputError("DiffusionGemma takes one row with pictures at a time")
        valid = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        ends = (*end_ids(self.network), *settings.stop_ids)
        answers, calls = [], []
        for row, seed in enumerate(with_seed(settings, len(input_ids))):
            answer, count = self._one(input_ids[row, valid[row].bool()], settings, seed, pictures)
            answers.append(padded(answer[: settings.max_new_tokens], settings, self.network))
            calls.append(count)
        answer = torch.stack(answers)
        nfe = torch.tensor(calls, device=input_ids.device)
        return GenerateOutput(
            sequences=torch.cat([input_ids, answer], dim=1),
            nfe=nfe,
            calls=sum(calls),
            tokens_per_forward=answer_length(answer, ends) / nfe.clamp(min=1),
        )

    def _one(
        self, prompt: Tensor, settings: Decoding, seed: int, pictures: dict[str, Tensor]
    ) -> tuple[Tensor, int]:
        """The new ids of one row, whole canvases of them, and the number of decoder calls."""
        calls: list[int] = []
        hook = self.network.model.decoder.register_forward_hook(lambda *_: calls.append(1))
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(seed)
                made = self.network.generate(
                    prompt[None], **arguments(settings, self.network), **pictures
                )
        finally:
            hook.remove()
        return made.sequences[0, len(prompt) :], len(calls)


def published(network: Any) -> dict[str, Any]:
    """Our settings from a folder's generation_config.json, as far as it has any."""
    config = network.generation_config
    made = {
        "max_new_tokens": config.max_new_tokens,
        "temperature": config.t_max,
        "temperature_end": config.t_min,
        "entropy_bound": config.sampler_config and config.sampler_config.entropy_bound,
    }
    if config.stability_threshold is not None and config.confidence_threshold is not None:
        stability, confidence = config.stability_threshold, config.confidence_threshold
        made["stop"] = f"stable:stability={stability},confidence={confidence}"
    return {name: value for name, value in made.items() if value is not None}


def arguments(settings: Decoding, network: Any) -> dict[str, Any]:
    """What transformers' `generate` is called with; SettingError for a stop rule it has not."""
    from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor
    from transformers.generation import TemperatureLogitsWarper
    from transformers.models.diffusion_gemma import generation_diffusion_gemma as native

    falls = settings.temperature_end not in (None, settings.temperature)
    processors = [] if falls else [TemperatureLogitsWarper(float(settings.temperature))]
    forbidden = sorted({*settings.forbid, *picture_ids(network)})
    processors.append(SuppressTokensLogitsProcessor(forbidden, device=network.device))
    name, options = parse_rule(settings.stop)
    if name not in ("stable", "none"):
        raise SettingError(f"DiffusionGemma has no stop={name}; use stable or none")
    default = {"stability": 1, "confidence": 0.005} if name == "stable" else {}
    chosen: Mapping[str, Any] = with_options(f"stop={name}", options, default)
    confidence = chosen.get("confidence")
    return {
        "max_new_tokens": settings.max_new_tokens,
        "max_denoising_steps": (settings.steps or STEPS) // settings.blocks,
        "sampler_config": native.EntropyBoundSamplerConfig(float(settings.entropy_bound)),
        "t_max": float(settings.temperature) if falls else None,
        "t_min": float(settings.temperature_end or 0) if falls else None,
        "stability_threshold": chosen.get("stability"),
        "confidence_threshold": None if confidence is None else float(confidence),
        "eos_token_id": [*end_ids(network), *settings.stop_ids] or None,
        "logits_processor": LogitsProcessorList(processors),
    }


def end_ids(network: Any) -> tuple[int, ...]:
    """Ids that end a text: those of generation_config.json, else of config.json."""
    ends = network.generation_config.eos_token_id
    ends = network.config.text_config.eos_token_id if ends is None else ends
    return () if ends is None else tuple(ends) if isinstance(ends, (list, tuple)) else (ends,)


def picture_ids(network: Any) -> list[int]:
    """The ids around and in place of pictures, which are never generated."""
    config, rows = network.config, network.config.text_config.vocab_size
    named = (config.image_token_id, config.boi_token_id, config.eoi_token_id)
    return [i for i in named if i is not None and 0 <= i < rows]


def padded(answer: Tensor, settings: Decoding, network: Any) -> Tensor:
    """(N,) ids: an answer that ended early is filled up with padding, or its end where there is
    none; what follows the end in its last canvas, too."""
    ends = (*end_ids(network), *settings.stop_ids)
    fill = network.config.text_config.pad_token_id
    fill = ends[0] if fill is None and ends else fill or 0
    out = answer.new_full((settings.max_new_tokens,), fill)
    length = int(answer_length(answer[None], ends)) if len(answer) else 0
    out[:length] = answer[:length]
    return out


def load(folder: Path, device: torch.device, dtype: torch.dtype) -> DiffusionGemma:
    """Opens a folder strictly. Raises CheckpointError where transformers is too old for the class,
    or a tensor is missing, unknown or of the wrong shape."""
    import transformers

    network_class = getattr(transformers, CLASS, None)
    if network_class is None:
        raise CheckpointError(
            f"{folder}: DiffusionGemma needs transformers {SINCE} or newer, "
            f"{transformers.__version__} is installed; pip install -U transformers"
        )
    try:
        network, report = network_class.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # whatever odd files make transformers raise
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(f"{folder}: cannot be loaded ({reason})") from error
    for kind, word in (
        ("missing_keys", "lacks the weight"),
        ("unexpected_keys", "holds a weight that the model has not"),
        ("mismatched_keys", "holds a weight of the wrong shape"),
    ):
        if report.get(kind):
            first = min(str(key) for key in report[kind])
            raise CheckpointError(f"{folder}: the checkpoint {word}: {first}")
    return DiffusionGemma(network.to(device).eval())


NATIVES.register("gemma")(
    Native(
        title="DiffusionGemma",
        model_type="diffusion_gemma",
        load=load,
        hub={"google/diffusiongemma-26B-A4B-it": "Apache-2.0"},
    )
)
