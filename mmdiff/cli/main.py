"""The `mmdiff` command: finds the verbs, runs one, turns errors into exit codes.

0 ok; 2 an error the user can mend, as one line on stderr; 130 interrupted; anything else is a bug
and shows its traceback (1).
"""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import mmdiff
from mmdiff.errors import MMDiffError, SettingError, nearest

_FOLDER = Path(__file__).parent


def verbs() -> list[str]:
    """The names of the verb modules beside this file."""
    names = (path.stem for path in _FOLDER.glob("*.py"))
    return sorted(name for name in names if name != "main" and not name.startswith("_"))


def summary(verb: str) -> str:
    """First line of a verb's module docstring, read without importing the module."""
    source = (_FOLDER / f"{verb}.py").read_text(encoding="utf-8")
    lines = (ast.get_docstring(ast.parse(source)) or "").splitlines()
    return lines[0] if lines else ""


class VerbGroup(TyperGroup):
    """Lists every verb by its docstring, and imports only the one that runs."""

    def list_commands(self, ctx: Any) -> list[str]:
        return verbs()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in verbs():
            return None
        return _command(cmd_name, lambda: None, summary(cmd_name))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in verbs() and not args[0].startswith("-"):
            hint = nearest(args[0], verbs()) or f" Commands: {', '.join(verbs())}"
            raise SettingError(f"there is no command {args[0]!r}.{hint}")
        _, _, rest = super().resolve_command(ctx, args)
        name = args[0]
        function = getattr(import_module(f"mmdiff.cli.{name}"), name)
        return name, _command(name, function, function.__doc__ or summary(name)), rest


def _command(name: str, function: Any, text: str) -> Any:
    single = typer.Typer(add_completion=False)
    single.command(name, help=text)(function)
    return typer.main.get_command(single)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"mmdiff {mmdiff.__version__}")
        raise typer.Exit()


app = typer.Typer(cls=VerbGroup, add_completion=False)


@app.callback()
def _mmdiff(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Multimodal discrete diffusion: caption, answer, chat, train."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command line; `arguments` defaults to sys.argv[1:]. Returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = typer.main.get_command(app)
    try:
        result = command(arguments or ["--help"], prog_name="mmdiff", standalone_mode=False)
    except MMDiffError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        # typer's usage errors have no public base class, but all of them explain themselves
        if not hasattr(error, "format_message"):
            raise
        return _fail(f"{error.format_message()} (see mmdiff --help)")
    return result if isinstance(result, int) else 0


def _fail(message: str) -> int:
    print(f"mmdiff: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
