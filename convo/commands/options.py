"""What the commands share: the options of the settings, and reading the settings."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from convo import config
from convo.commands.parsing import Parser
from convo.settings import Settings

# The options of `serve` that are settings.
_OVERRIDES = {"host": ("server", "host"), "port": ("server", "port"), "data_dir": ("server", "data_dir")}


if TYPE_CHECKING:
    # The type of what add_subparsers() returns has no public name.
    Commands = argparse._SubParsersAction[Parser]  # noqa: SLF001


def add_command(
    commands: Commands, name: str, text: str, command: Callable[[argparse.Namespace], int], *aliases: str
) -> argparse.ArgumentParser:
    """Add a command, which can print JSON."""
    parser = commands.add_parser(name, help=text, description=text, aliases=aliases)
    parser.set_defaults(command=command)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the settings."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (default: the repository's config.toml)")
    parser.add_argument("--data-dir", metavar="FOLDER", help="folder of the identity and of the embedded PostgreSQL")


def settings_of(asked: argparse.Namespace) -> Settings:
    """Read the settings that a command runs with.

    Raises:
        ConfigError: they cannot be read, or do not fit each other.
    """
    return config.load_settings(asked.config, arguments=arguments_of(asked))


def arguments_of(asked: argparse.Namespace) -> dict[tuple[str, str], str]:
    """Return the settings that were typed as options."""
    given = {path: getattr(asked, name, None) for name, path in _OVERRIDES.items()}
    return {path: str(value) for path, value in given.items() if value is not None}
