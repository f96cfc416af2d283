"""Neural Expectation Maximization in PyTorch Lightning and Hydra."""

__version__ = "0.1.0"
