"""Manifests, image and packaging: checked without a cluster."""
