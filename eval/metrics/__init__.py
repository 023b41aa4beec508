"""Scores of benchmarks, each by the rules of the code that published figures come from."""
