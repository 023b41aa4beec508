"""Every golden entry: the numbers of the published projects' own code against ours.

The folders come from MMDIFF_GOLDEN; the report goes to MMDIFF_GOLDEN_REPORT, by default
golden-report.json.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest

from tests.walk import block, codes, dimple, masks, metrics, pictures, samplers, text, training
from tests.walk.core import Entry, entries

LAYOUTS = {
    "llada": lambda entry: (codes.lumina if "grid" in entry.facts else text.llada)(entry),
    "dream": text.dream,
    "lavida_llada": partial(pictures.lavida, settings=pictures.lavida_llada_settings),
    "lavida_dream": partial(pictures.lavida, settings=pictures.lavida_dream_settings),
    "llada_v": pictures.llada_v,
    "llada_v_text": text.rediff,
    "mmada": codes.mmada,
    "dimple": dimple.dimple,
}
# Entries that are no checkpoint, by the last part of their id.
PARTS = {
    "blockdiff": block.blockdiff,
    "samplers": samplers.samplers,
    "llada_loss": training.llada,
    "lavida_complementary_loss": training.lavida,
    "mdlm_continuous_loss": training.mdlm,
    "bd3lm_loss": training.bd3lm,
    "llada_get_log_likelihood": training.log_likelihood,
    "dimple_loss": training.dimple,
    "dllm_mdlm_loss_and_cart": training.dllm,
    "attention_masks": masks.attention_masks,
    "position_dependent_masking": training.position_dependent,
    **metrics.READERS,
}
KINDS = ("checkpoint", "decode", "loss", "mask", "tokenizer", "metric", "adapter")
# Beginnings of entry ids that nothing here reads yet.
OTHERS = ("medim",)
NOT_YET = (
    *(f"vlmo/{name}" for name in OTHERS),
    *(f"training/{name}" for name in ("rl_token", "gdpo", "vrpo", "tracerl")),
    "vla/",
    "audio/",
    "medical/",
)


@pytest.fixture(scope="session")
def report():
    rows: list[dict] = []
    yield rows
    path = Path(os.environ.get("MMDIFF_GOLDEN_REPORT", "golden-report.json"))
    path.write_text(json.dumps(rows, indent=1) + "\n")


def walk(entry: Entry) -> None:
    """Fill the entry's rows; raises ValueError for a kind or layout that is unknown."""
    name, kind, layout = (entry.facts.get(k) for k in ("id", "kind", "layout"))
    if kind not in KINDS:
        raise ValueError(f"{name}: unknown kind {kind!r}")
    if name.startswith(NOT_YET):
        entry.note("all", "skipped", [], reason="not supported yet")
    elif reader := PARTS.get(name.rpartition("/")[2]) or LAYOUTS.get(layout):
        reader(entry)
        stored = entry.outputs if "outputs" in entry.facts["files"] else ()
        for array in sorted(set(stored) - entry.seen):
            entry.note(array, "failed", [array], reason="never compared")
    else:
        raise ValueError(f"{name}: no walker for kind {kind!r}, layout {layout!r}")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("entry", entries(), ids=lambda e: f"{e.root.parent.name}-{e.facts['id']}")
def test_golden(entry, report):
    walk(entry)
    report += entry.rows
    failed = [row for row in entry.rows if row["status"] == "failed"]
    assert not failed, failed[0]
    if entry.facts["id"].startswith(NOT_YET):
        pytest.skip("not supported yet")
    assert any(row["status"] == "passed" for row in entry.rows), "nothing was compared"
