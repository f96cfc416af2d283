"""Measures the speed: ``python -m benchmarks.speed``."""
