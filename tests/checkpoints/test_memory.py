"""Loading 2 GB takes hardly more than 2 GB of memory, and hardly longer than reading the files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmdiff.checkpoints.weights import INDEX
from tests.checkpoints.helpers import random_weights, tiny, write, write_config

ROOT = Path(__file__).resolve().parent.parent.parent
BIG = {"d_model": 2048, "n_heads": 16, "n_kv_heads": 16, "mlp_hidden_size": 5632}  # 206 MB a layer
LAYERS = 10
SIZE_LIMIT, TIME_LIMIT = 1.15, 1.3

# Both programs load the tiny folder first, so that imports count for neither. VmHWM is the peak of
# this process alone, where getrusage would hand down that of its parent.
COMMON = """
import json, sys, time
import torch
from pathlib import Path
torch.set_num_threads(1)

def memory(field):
    status = Path("/proc/self/status").read_text()
    return int(status.split(field + ":")[1].split()[0]) * 1024

def measure(load, tiny, big):
    touch(load(tiny))
    before, start = memory("VmRSS"), time.perf_counter()
    kept = load(big)
    touch(kept)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "bytes": memory("VmHWM") - before}))

def touch(tensors):
    assert all(bool(tensor.sum().isfinite()) for tensor in tensors)
"""
OURS = """
import mmdiff
measure(lambda folder: list(mmdiff.load(folder, device="cpu").parameters()), *sys.argv[1:])
"""
PLAIN = """
from safetensors.torch import load_file

def load(folder):
    files = sorted(Path(folder).glob("*.safetensors"))
    return [tensor for file in files for tensor in load_file(file).values()]

measure(load, *sys.argv[1:])
"""


def write_big(folder: Path) -> int:
    """A checkpoint of 2 GB in one shard per layer, made a layer at a time; returns its bytes."""
    from safetensors.torch import save_file

    config = tiny("llada") | BIG | {"n_layers": LAYERS}
    write_config(folder, config)
    one = random_weights(config | {"n_layers": 1})
    where, total = {}, 0
    for i in range(LAYERS):
        name = f"model-{i + 1:05}-of-{LAYERS:05}.safetensors"
        own = {k.replace(".0.", f".{i}."): t for k, t in one.items() if i == 0 or ".0." in k}
        save_file(own, folder / name)
        where |= dict.fromkeys(own, name)
        total += sum(tensor.nbytes for tensor in own.values())
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    return total


def measured(program: str, *folders: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", COMMON + program, *map(str, folders)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    made: dict[str, float] = json.loads(done.stdout)
    return made


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_loading_costs_what_reading_costs(tmp_path):
    small, big = tmp_path / "small", tmp_path / "big"
    write(small, "llada", torch.float32)
    size = write_big(big)
    assert 2e9 < size < 2.2e9
    plain, ours = [], []
    for _ in range(3):  # in turns; the first fills the file cache, and the best of each counts
        plain.append(measured(PLAIN, small, big)["seconds"])
        ours.append(measured(OURS, small, big))
    assert max(run["bytes"] for run in ours) <= SIZE_LIMIT * size
    assert min(run["seconds"] for run in ours) <= TIME_LIMIT * min(plain)
