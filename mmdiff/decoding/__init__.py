"""Decoding: one loop (`loop.py`) and the small objects plugged into its slots."""
