"""How a command ends early: a mistake of the user, or a stop; its exit code says which."""

BUG, MISTAKE, AGAIN = 1, 2, 75  # the last is EX_TEMPFAIL of sysexits.h: the same command goes on


class UserError(Exception):
    """Something the user can put right; its text is the whole message (one line)."""


class Stopped(BaseException):
    """A signal has stopped the command; `code` is AGAIN, or 128 + the signal's number.

    It may be raised anywhere, and is no Exception: nobody who goes on after one may swallow it.
    """

    def __init__(self, text: str, code: int = AGAIN):
        super().__init__(text)
        self.code = code
