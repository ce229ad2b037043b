"""The root of the error tree and the errors about models; `pipeline.errors` draws it whole."""


class ScenesweepError(Exception):
    """Anything that the user, not the programmer, has to mend.

    Takes one string, so that it pickles; the string says what was expected and what came.
    """


class ModelError(ScenesweepError):
    """A model file or model card cannot be used."""


class LabelError(ScenesweepError):
    """Training or evaluation labels cannot be used."""
