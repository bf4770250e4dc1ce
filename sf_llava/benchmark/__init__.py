"""Benchmarks behind ``sf-llava benchmark``, one module for each sub-command."""
