"""Say what is installed, broken or missing, and how to mend it."""

from __future__ import annotations

import json as json_module
import platform
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

# (distribution, module, extra); "" is the core, "optional" is used where present
PACKAGES = (
    ("torch", "torch", ""),
    ("transformers", "transformers", ""),
    ("accelerate", "accelerate", ""),
    ("safetensors", "safetensors", ""),
    ("tokenizers", "tokenizers", ""),
    ("huggingface_hub", "huggingface_hub", ""),
    ("numpy", "numpy", ""),
    ("pillow", "PIL", ""),
    ("pyyaml", "yaml", ""),
    ("torchvision", "torchvision", "vision"),
    ("timm", "timm", "vision"),
    ("open_clip_torch", "open_clip", "vision"),
    ("diffusers", "diffusers", "codes"),
    ("torchaudio", "torchaudio", "optional"),
)

CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
STYLES = {"ok": "green", "repaired": "yellow", "missing": "dim", "broken": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line of the report; `state` is ok, repaired, missing or broken."""

    name: str
    version: str
    state: str
    note: str = ""
    fix: str = ""


def doctor(
    json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> int:
    """Say what is installed, broken or missing, and how to mend it.

    Exit code 2 when a package of the core is missing or broken.
    """
    findings = [Finding("python", platform.python_version(), "ok", platform.platform())]
    findings += [examine(*package) for package in PACKAGES]
    core = {name for name, _, extra in PACKAGES if not extra}
    sick = [each for each in findings if each.name in core and each.state in ("missing", "broken")]
    if not any(each.name == "torch" for each in sick):
        findings.append(machine())
    if json:
        for finding in findings:
            print(json_module.dumps(asdict(finding)))
    else:
        show(findings)
    return 2 if sick else 0


def examine(distribution: str, module: str, extra: str) -> Finding:
    """Import one package and describe what happened."""
    from mmdiff import compat

    state, _, reason = compat.state(module).partition(": ")
    note = f"extra {extra}" if extra not in ("", "optional") else extra
    fix = ""
    if state == "missing" and extra != "optional":
        fix = f"pip install 'mmdiff[{extra}]'" if extra else "pip install mmdiff"
    elif state == "broken":
        note, fix = reason, f"pip install --force-reinstall {distribution}"
    elif state == "repaired":
        note = "built for another torch; its compiled operators are switched off"
        fix = f"pip install --force-reinstall --no-deps {distribution} --index-url {CPU_WHEELS}"
    return Finding(distribution, _version(distribution), state, note, fix)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def machine() -> Finding:
    """Threads, CUDA devices, and how fast this machine multiplies matrices."""
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    speeds = ", ".join(
        f"{name} {matmul_speed(getattr(torch, name)):.0f} GFLOP/s"
        for name in ("float32", "bfloat16")
    )
    note = f"{torch.get_num_threads()} CPU threads, {speeds}; {', '.join(devices) or 'no CUDA'}"
    return Finding("machine", platform.machine(), "ok", note)


def matmul_speed(dtype: torch.dtype, size: int = 512, seconds: float = 0.1) -> float:
    """GFLOP/s of square CPU matrix products."""
    import torch

    matrix = torch.ones(size, size, dtype=dtype)
    matrix @ matrix
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        matrix @ matrix
        count += 1
    return float(count * 2 * size**3 / elapsed / 1e9)


def show(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("", "version", "state", "note"):
        table.add_column(column, overflow="fold")
    for each in findings:
        state = Text(each.state, style=STYLES[each.state])
        table.add_row(each.name, each.version, state, Text(each.note))
    console = Console(highlight=False)
    console.print(table)
    for each in findings:
        if each.fix:
            console.print(Text(f"{each.name}: {each.fix}"), soft_wrap=True)
