"""How an evaluation ends before its results."""

from analysis.errors import AnalysisError


class WinrateError(AnalysisError):
    """The evaluation cannot go on; the message is one line that names the option or file and says what to do."""


class Stopped(Exception):
    """The evaluation ends as the user wished; the message is one line, `status` the process's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
