"""Kinds of options that several commands have."""

from __future__ import annotations

import click

DATE = click.DateTime(["%Y-%m-%d"])
LINEAGE = click.option(
    "--lineage",
    metavar="URL|FILE",
    help="Send OpenLineage events to a server, or append them to a file. Default: as the OPENLINEAGE_ variables say.",
)


def pairs(_context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """A callback for options of the form NAME=VALUE that may come several times; a value may be empty."""
    parts = [value.partition("=") for value in values]
    if wrong := [name + sign + value for name, sign, value in parts if not (name and sign)]:
        raise click.BadParameter(f"{wrong[0]!r}: write it as NAME=VALUE", param=parameter)
    return {name: value for name, _, value in parts}


def filled_pairs(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """As `pairs`, of values that are not empty."""
    found = pairs(context, parameter, values)
    if empty := [name for name, value in found.items() if not value]:
        raise click.BadParameter(f"{empty[0] + '='!r}: write it as NAME=VALUE", param=parameter)
    return found
