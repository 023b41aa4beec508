"""The command line: one file per verb.

A verb is a module `mmdiff/cli/<verb>.py` whose function `<verb>` has typer-annotated parameters.
The first line of the module's docstring is its line in `mmdiff --help`. Its top imports stay light;
torch is imported inside the function. It returns None or an exit code. `main` and modules whose
names start with `_` are no verbs.
"""
