"""What scenesweep costs, as ratios taken in one run. Each module is a script: `python -m`."""
