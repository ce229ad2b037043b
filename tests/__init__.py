"""Tests mirror the tree: tests/model, tests/pipeline, tests/jobs."""
