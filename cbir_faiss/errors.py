"""The one error tree of the package.

    CbirError                      anything a user can mend; the command line prints it as one line
    ├── ConfigError                a config or option is wrong; knows file and line where there is one
    ├── UnknownPlugin              no plugin of that name; suggests the nearest
    ├── MissingDependency          a plugin's library is not installed; carries the pip line
    ├── InputError                 data of the wrong dtype, shape or content (also a ValueError)
    │   └── DimensionMismatch      vectors of another width than the index or codec was made for
    ├── BadImage                   one file that cannot be read as an image
    │   └── NoAccess               it cannot be read at all now, whatever is in it
    ├── UnknownId                  an id that is not stored (also a KeyError)
    ├── Unsupported                the plugin does not have that metric or capability
    ├── CorruptCollection          a stored file is missing, cut short, altered or of another format
    ├── TrainingFailed             a loss that is no longer finite
    └── BackendError               the engine behind a connector failed; the client's error is chained

Anything else that escapes is a bug and deserves its traceback.
"""

from __future__ import annotations


class CbirError(Exception):
    """Base of every error that a user can mend."""


class ConfigError(CbirError):
    """A wrong option or config. ``str()`` is ``file:line: path: message`` with the parts that are known."""

    def __init__(self, message: str, *, path: str = "", file: str = "", line: int = 0) -> None:
        self.message, self.path, self.file, self.line = message, path, file, line
        where = f"{file}:{line}: " if file and line else f"{file}: " if file else ""
        super().__init__(where + (f"{path}: " if path else "") + message)


class UnknownPlugin(CbirError):
    """No plugin is registered under the name that was asked for."""


class MissingDependency(CbirError):
    """A library that a plugin needs is not installed."""


class InputError(CbirError, ValueError):
    """Data that cannot be used: wrong dtype, shape, NaN, a zero vector under cosine, …"""


class DimensionMismatch(InputError):
    """Vectors or codes of another width than expected."""


class BadImage(CbirError):
    """A file that cannot be used as an image; in a large job it is recorded and counted, not fatal."""


class NoAccess(BadImage):
    """A file that could not be opened: what is in it is not known, so a later build tries again."""


class UnknownId(CbirError, KeyError):
    """An id that is not stored."""

    __str__ = Exception.__str__  # KeyError would print the repr


class Unsupported(CbirError):
    """A metric or capability that a plugin declares as refused."""


class CorruptCollection(CbirError):
    """Stored data that is missing, cut short, altered, or written by another format version."""


class TrainingFailed(CbirError):
    """A training cannot go on; what it stored before is as it was."""


class BackendError(CbirError):
    """The engine behind a backend failed; ``__cause__`` is the client's own error."""


def one_line(error: BaseException) -> str:
    """The first line of what a library's error says."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]
