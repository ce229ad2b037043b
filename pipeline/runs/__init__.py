"""A run: its order, its lock on the output, its end, its report and its metrics."""
