"""The package list: `mmdiff` and the root folders that install as its sub-packages.

Generated, so that a new sub-package cannot be forgotten; everything else is in pyproject.toml.
"""

from setuptools import find_packages, setup

FOLDERS = ("encoders", "heads", "data", "eval", "configs")

setup(
    packages=find_packages(include=["mmdiff", "mmdiff.*"])
    + [f"mmdiff.{name}" for f in FOLDERS for name in find_packages(include=[f, f"{f}.*"])],
    package_dir={"mmdiff": "mmdiff", **{f"mmdiff.{folder}": folder for folder in FOLDERS}},
)
