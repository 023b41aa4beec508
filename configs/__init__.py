"""YAML recipes, shipped with the package."""
