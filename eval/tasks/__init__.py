"""Benchmarks: one file each, reading rows and judging answers."""
