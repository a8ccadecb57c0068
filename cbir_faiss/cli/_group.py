"""A group of commands that imports a command's module when the command is run, not to list it."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from cbir_faiss.errors import CbirError, ConfigError

BAD_USAGE = 2


class Later(click.Command):
    """Stands in the list of commands for the one of its name in ``module``, which it imports to be run."""

    def __init__(self, name: str, module: str, summary: str) -> None:
        super().__init__(name, help=summary)
        self.module = module

    def command(self) -> click.Command:
        """The command itself."""
        found = getattr(import_module(self.module), str(self.name))
        assert isinstance(found, click.Command)
        return found

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        return self.command().make_context(*arguments, **options)


class Commands(click.Group):
    """Turns our errors into one line on stderr and an exit status: 1 the work failed, 2 bad usage or config."""

    def invoke(self, context: click.Context) -> Any:
        try:
            import_module("cbir_faiss._lib.locks")
        except ImportError as error:  # on Windows
            _fail(error, 1)
        try:
            return super().invoke(context)
        except ConfigError as error:
            _fail(error, BAD_USAGE)
        except CbirError as error:
            _fail(error, 1)
        except KeyboardInterrupt:
            _fail("interrupted", 130)
        except BrokenPipeError:
            sys.exit(0)


def _fail(message: object, status: int) -> NoReturn:
    from cbir_faiss.cli.printing import aside

    aside(str(message).replace("\n", " "))
    sys.exit(status)
