"""Rasters: opened safely, near or far, one file or several, and read as bands of pixels."""
