"""The one exception for mistakes a user can cause."""


class UserError(Exception):
    """A mistake the user can mend: the message is one clear line with the fix in it (exit code 2)."""


class NotApplicable(UserError):
    """A component does not apply to this model (an operation it does not know): a skip, not a failure."""
