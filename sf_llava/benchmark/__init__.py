"""Benchmarks behind ``scripts/benchmark.py``, one module for each sub-command."""
