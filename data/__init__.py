"""Training sources and generated worlds."""
