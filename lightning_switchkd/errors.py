"""The one error a user's mistake raises: the command line prints it as a paragraph, without a traceback."""


class UserError(ValueError):
    """Something the user gave cannot work. The message says what is wrong, where, and how to mend it."""
