"""Base classes of errors whose message is a sentence for the user."""


class DPNError(Exception):
    """An error that the user can mend; commands print its message without a traceback.

    The message names the thing that is wrong, what is allowed and how to fix it. Subclasses also
    derive from the built-in class that fits, e.g. `ValueError`, so that code which catches that
    class catches them, too.
    """


class Unreachable(str):
    """An error sentence that says that a method cannot reach the requested share of visual MACs."""


class SettingError(DPNError, ValueError):
    """A setting, a name, an argument or a kind of model is not possible."""


class FileError(DPNError, ValueError):
    """A file is damaged, or its content is not what its place promises; the message names it."""
