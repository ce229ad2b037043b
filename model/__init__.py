"""Detectors: model cards, networks, weights, training and metrics. They see pixels and boxes only.

Nothing here knows files of scenes, coordinates on the ground or Ray. Importing this package imports
no torch.
"""
