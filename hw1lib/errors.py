"""The one exception for everything that a user can cause and mend."""


class UserError(Exception):
    """A clear paragraph: what is wrong, in which file or setting, and the remedy.

    The command line prints its text without a traceback and exits with 1.
    """
