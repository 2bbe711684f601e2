"""Errors that are instructions: what was found, what was wanted, what to type. Knows nothing of any room."""


class EdgestillError(Exception):
    """A mistake that its reader can mend; printed as one line, without a traceback.

    `exit_code` is what the command line ends with: 1 error, 2 gate failed, 3 bad recipe or usage, 4 budget reached.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        """`message` says what was found and what was wanted; `hint` says what to type."""
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} - {self.hint}" if self.hint else self.message


class GateFailed(EdgestillError):
    """A check that guards a promise did not hold: what was built is not what it claims to be."""

    exit_code = 2


class UsageError(EdgestillError):
    """The recipe or the command line asks for something that does not exist."""

    exit_code = 3


class BudgetReached(EdgestillError):
    """The cap on the teacher's money, tokens or requests was reached; the same command with a higher cap goes on."""

    exit_code = 4


class Interrupted(EdgestillError):
    """The user stopped the work; what was under way was kept, and the same command goes on."""

    exit_code = 130


class MissingPackage(EdgestillError):
    """An optional package that is needed here is not installed."""


def missing_package(package: str, command: str) -> MissingPackage:
    """The error for an optional package that is not installed: `command` installs it."""
    return MissingPackage(f"the package {package} is needed here and not installed", f"type: {command}")
