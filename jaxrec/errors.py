"""The one error that is shown to people as a single line."""


class UserError(Exception):
    """Something the user can put right; its text is the whole message (one line)."""
