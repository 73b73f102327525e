"""What a user can mend: each message is one line that names the folder, file or option, and says what to do."""


class AnalysisError(ValueError):
    """The command cannot do what was asked."""


class WinrateError(AnalysisError):
    """A judged comparison cannot go on."""
