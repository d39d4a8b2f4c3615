"""What is said no to."""


class Refused(ValueError):
    """A model, a setting or an argument that this attention does not do; the message is one sentence that names it."""
