"""What all tests share."""

import os

import hypothesis

# Ray gives its workers the niceness 15: beside any other busy process they would nearly stop.
os.environ.setdefault("RAY_worker_niceness", "0")
if "PYTEST_XDIST_WORKER" in os.environ:  # as many threads as there are of them are enough
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples on every machine: a change fails by itself, not by a new example.
# HYPOTHESIS_PROFILE=random looks for new ones (`make test-random`).
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("random", deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
