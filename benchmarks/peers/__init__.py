"""P1 and P2: scenesweep against the tools that people use instead, in their own environment."""
