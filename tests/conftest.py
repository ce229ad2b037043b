"""What all tests share."""

import os

# Ray gives its workers the niceness 15: beside any other busy process they would nearly stop.
os.environ.setdefault("RAY_worker_niceness", "0")
