"""The results table for Shapes: trains, scores and tabulates every row. ``python -m reproduce --help``."""
