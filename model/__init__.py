"""What a detector is: its card, network, weights, training and metrics. Pixels and boxes only."""

__version__ = "0.1.0"
