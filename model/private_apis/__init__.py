"""Private APIs of other libraries that the model needs, one module for each library.

A release of such a library may change them without notice. `tests/test_private_apis.py` tries each
one and says what to do when it is gone. No other room uses a private name of another library.
"""
