"""What all tests share."""

import os

# Ray gives its workers the niceness 15: beside any other busy process they would nearly stop.
os.environ.setdefault("RAY_worker_niceness", "0")
if "PYTEST_XDIST_WORKER" in os.environ:  # as many threads as there are of them are enough
    os.environ.setdefault("OMP_NUM_THREADS", "1")
