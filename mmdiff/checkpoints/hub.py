"""Hub ids: `owner/name` or `owner/name@revision`, kept in the cache of huggingface_hub."""

from __future__ import annotations

import re
from pathlib import Path

from mmdiff.errors import CheckpointError

NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\w[\w.-]*(/\w[\w.-]*)*)?", re.ASCII)
TEXTS = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "LICENSE*")
COMMIT = re.compile(r"[0-9a-f]{40}")


def find(name: str, download: bool = False, hint: str = "") -> Path:
    """The folder of a hub id; the network is asked only with `download`.

    Raises CheckpointError with both ways to get the files, and `hint`, where it is not there.
    """
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    try:
        folder = snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=[*TEXTS, "*.safetensors"],
            ignore_patterns=["*/*"],
            local_files_only=not download,
        )
    except Exception as error:  # of the network, of the hub, of the name itself
        command = f"hf download {repo}" + (f" --revision {revision}" if revision else "")
        if not download:
            raise CheckpointError(
                f"model {name!r} is neither a folder nor a built-in name, and as a hub id it is "
                f"not (wholly) on this machine.{hint} To fetch it: {command}, or "
                f"mmdiff.load({name!r}, download=True)"
            ) from None
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(
            f"model {name!r} cannot be fetched ({reason}).{hint} Try {command}, or "
            f"mmdiff.load({name!r}, download=True) where the hub can be reached"
        ) from error
    return Path(folder)


def commit(folder: Path) -> str | None:
    """The commit of a folder in the hub's cache; None for any other folder."""
    snapshot = folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name)
    return folder.name if snapshot else None
