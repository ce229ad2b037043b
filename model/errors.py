"""The root of the error tree and the errors about models. `pipeline.errors` shows all of it."""


class ScenesweepError(Exception):
    """An error that the user can fix, and no bug of the program.

    Its only argument is one string, so that it pickles. The string says what was expected, what
    came, and what to do.
    """


class ModelError(ScenesweepError):
    """A model file or model card cannot be used."""


class LabelError(ScenesweepError):
    """Training or evaluation labels cannot be used."""
