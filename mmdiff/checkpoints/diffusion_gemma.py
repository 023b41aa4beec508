"""DiffusionGemma: transformers' own network and denoising loop behind `load` and `generate`.

It has no mask token: a canvas starts as random ids, accepted cells are kept, the others drawn again
(uniform noise), and finished canvases pass through a causal encoder whose keys the decoder reads.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdiff.checkpoints import gemma_prompts
from mmdiff.checkpoints.base import NATIVES, Native
from mmdiff.checkpoints.weights import open_stock
from mmdiff.decoding.settings import Decoding, make_decoding, parse_rule, with_options, with_seed
from mmdiff.decoding.stop import answer_length
from mmdiff.errors import CheckpointError, InputError, SettingError, nearest
from mmdiff.heads.base import Example, Head
from mmdiff.heads.run import Generation, check_length
from mmdiff.heads.tasks import GenerateOutput, Tasks

NAME, TITLE = "gemma", "DiffusionGemma"
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
PARTS = ((".vision_tower.", "vision"), (".embed_vision.", "projector"))
FIXED = {"accept": "entropy_bound", "order": "entropy"}  # what its loop does, and nothing else


class DiffusionGemma(Tasks):
    """Rows are decoded one by one, each with the random numbers of its own seed, so that a batch
    equals its rows alone."""

    def __init__(self, network: Any, processor: gemma_prompts.GemmaProcessor | None) -> None:
        self.network = network
        self.config = network.config
        self.processor = processor

    @property
    def device(self) -> torch.device:
        device: torch.device = self.network.device
        return device

    def run(self, head: str, inputs: Any, **settings: Any) -> list[Generation]:
        if head == "infill":
            raise InputError("DiffusionGemma has no mask token; it cannot fill holes in a text")
        return super().run(head, inputs, **settings)

    def decoding(self, given: Mapping[str, Any], defaults: Mapping[str, Any] = {}) -> Decoding:
        return settings_of(self.config, self.network.generation_config, given, defaults)

    @torch.inference_mode()
    def fill(self, task: Head, examples: Sequence[Example], settings: Decoding) -> list[Generation]:
        """Decode examples one by one and read them."""
        assert self.processor is not None
        made = []
        for example, seed in zip(examples, with_seed(settings, len(examples)), strict=True):
            began = time.perf_counter()
            inputs = self.processor.inputs(example)
            limit = self.config.text_config.max_position_embeddings
            check_length(limit, inputs["input_ids"].shape[1], settings.max_new_tokens)
            prompt = inputs.pop("input_ids")[0].to(self.device)
            answer, nfe = self._one(prompt, settings, seed, inputs)
            ids = answer.tolist()
            made.append(
                Generation(
                    text=task.read(self.processor, ids, example),
                    nfe=nfe,
                    seconds=time.perf_counter() - began,
                    ids=ids,
                    length=int(answer_length(answer[None], self.processor.end_ids)),
                )
            )
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
        settings = self.decoding(decoding)
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
            answers.append(answer)
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
        """The `max_new_tokens` ids of one row's answer and the number of decoder calls."""
        calls: list[int] = []
        seen = {
            name: value.to(
                self.device, self.network.dtype if value.is_floating_point() else value.dtype
            )
            for name, value in pictures.items()
        }
        hook = self.network.model.decoder.register_forward_hook(lambda *_: calls.append(1))
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(seed)
                made = self.network.generate(
                    prompt[None], **arguments(settings, self.network), **seen
                )
        finally:
            hook.remove()
        answer = made.sequences[0, len(prompt) :][: settings.max_new_tokens]
        return padded(answer, settings, self.network), len(calls)


def settings_of(
    config: Any, generation: Any, given: Mapping[str, Any], defaults: Mapping[str, Any] = {}
) -> Decoding:
    """The settings `given` over the checkpoint's own over a task's `defaults`. SettingError for one
    that its loop does not have. `steps` are split evenly over the canvases."""
    for name in given:
        if name not in SETTINGS:
            known, hint = ", ".join(SETTINGS), nearest(name, SETTINGS)
            raise SettingError(f"DiffusionGemma has no setting {name!r}.{hint} Known: {known}")
    made = make_decoding(defaults, preset(config, generation), FIXED, given)
    if made.temperature == 0:
        raise SettingError("DiffusionGemma draws its tokens; set temperature above 0")
    stop_options(made)
    if made.steps is None:
        steps = getattr(generation, "max_denoising_steps", None) or STEPS
        made = replace(made, steps=steps * made.blocks)
    return made


def preset(config: Any, generation: Any) -> dict[str, Any]:
    """Our settings from config.json and generation_config.json, as far as these have any."""
    made = {
        "max_new_tokens": generation.max_new_tokens,
        "block_length": config.canvas_length,
        "temperature": generation.t_max,
        "temperature_end": generation.t_min,
        "entropy_bound": generation.sampler_config and generation.sampler_config.entropy_bound,
    }
    if generation.stability_threshold is not None and generation.confidence_threshold is not None:
        stability, confidence = generation.stability_threshold, generation.confidence_threshold
        made["stop"] = f"stable:stability={stability},confidence={confidence}"
    return DEFAULTS | {name: value for name, value in made.items() if value is not None}


def arguments(settings: Decoding, network: Any) -> dict[str, Any]:
    """What transformers' `generate` is called with."""
    from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor
    from transformers.generation import TemperatureLogitsWarper
    from transformers.models.diffusion_gemma import generation_diffusion_gemma as native

    falls = settings.temperature_end not in (None, settings.temperature)
    processors = [] if falls else [TemperatureLogitsWarper(float(settings.temperature))]
    forbidden = sorted({*settings.forbid, *picture_ids(network)})
    processors.append(SuppressTokensLogitsProcessor(forbidden, device=network.device))
    stop = stop_options(settings)
    confidence = stop.get("confidence")
    return {
        "max_new_tokens": settings.max_new_tokens,
        "max_denoising_steps": (settings.steps or STEPS) // settings.blocks,
        "sampler_config": native.EntropyBoundSamplerConfig(float(settings.entropy_bound)),
        "t_max": float(settings.temperature) if falls else None,
        "t_min": float(settings.temperature_end or 0) if falls else None,
        "stability_threshold": stop.get("stability"),
        "confidence_threshold": None if confidence is None else float(confidence),
        "eos_token_id": [*end_ids(network), *settings.stop_ids] or None,
        "logits_processor": LogitsProcessorList(processors),
    }


def stop_options(settings: Decoding) -> Mapping[str, Any]:
    """Options of the stop rule, none for stop=none; SettingError for a rule it has not."""
    name, options = parse_rule(settings.stop)
    if name not in ("stable", "none"):
        raise SettingError(f"DiffusionGemma has no stop={name}; use stable or none")
    default = {"stability": 1, "confidence": 0.005} if name == "stable" else {}
    return with_options(f"stop={name}", options, default)


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
    network = open_stock(class_of(folder), folder, device, dtype)
    processor = gemma_prompts.read(folder, network.config, end_ids(network))
    return DiffusionGemma(network, processor)


def class_of(folder: Path) -> Any:
    """transformers' class; CheckpointError where it is too old to have it."""
    import transformers

    network_class = getattr(transformers, CLASS, None)
    if network_class is None:
        raise CheckpointError(
            f"{folder}: DiffusionGemma needs transformers {SINCE} or newer, "
            f"{transformers.__version__} is installed; pip install -U transformers"
        )
    return network_class


def configs(folder: Path) -> tuple[Any, Any]:
    """config.json and generation_config.json as transformers reads them; CheckpointError for values
    that it cannot use."""
    network_class = class_of(folder)
    from transformers.models.diffusion_gemma import generation_diffusion_gemma as native

    try:
        config = network_class.config_class.from_pretrained(folder, local_files_only=True)
        generation = native.DiffusionGemmaGenerationConfig()
        if (folder / "generation_config.json").is_file():
            generation = generation.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever odd values make transformers raise
        raise _unfit(folder, "its config files cannot be used", error) from error
    return config, generation


def check(folder: Path, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Decoding:
    """As `settings_of`, before anything but the config files is read."""
    return settings_of(*configs(folder), given, defaults)


def describe(folder: Path) -> dict[str, Any]:
    """JSON-able facts for `mmdiff info`, from a network without storage."""
    from accelerate import init_empty_weights

    config, generation = configs(folder)
    try:
        with init_empty_weights(include_buffers=False):
            network = class_of(folder)(config)
    except Exception as error:  # whatever odd sizes make transformers raise
        raise _unfit(folder, "config.json describes no model", error) from error
    network.tie_weights()
    sizes = dict.fromkeys(("vision", "projector", "backbone"), 0)
    for name, parameter in network.named_parameters():
        part = next((ours for theirs, ours in PARTS if theirs in name), "backbone")
        sizes[part] += parameter.numel()
    text, vision = config.text_config, config.vision_config
    pictures = gemma_prompts.read_pictures(folder)
    return {
        "family": NAME,
        "title": TITLE,
        "parameters": {**sizes, "total": sum(sizes.values())},
        "backbone": {
            "kind": text.model_type,
            "layers": text.num_hidden_layers,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "max_tokens": text.max_position_embeddings,
        },
        "vision": {"kind": vision.model_type, "image_size": None, "width": vision.hidden_size},
        "projector": "linear",
        "tokens_per_picture": pictures.max_soft_tokens if pictures else 0,
        "vocabulary": {"rows": text.vocab_size, "used": text.vocab_size},
        "attention_layout": "block",
        "prompt_cache_exact": True,  # a causal encoder reads the prompt and every finished canvas
        "shift": False,
        "decoding": preset(config, generation),
    }


def _unfit(folder: Path, what: str, error: Exception) -> CheckpointError:
    reason = (str(error).strip() or repr(error)).splitlines()[0]
    return CheckpointError(f"{folder}: {what} ({reason})")


NATIVES.register(NAME)(
    Native(
        title=TITLE,
        model_type="diffusion_gemma",
        load=load,
        describe=describe,
        check=check,
        hub={"google/diffusiongemma-26B-A4B-it": "Apache-2.0"},
    )
)
