"""README, --help and code say the same: commands, flags, shipped specs, registry names, and the files of "Add a ..."."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from genworker import codecs, families, formats, metrics, sources, stores
from genworker.cli import cli
from genworker.config import preset_names
from genworker.training import callbacks
from tests.readme import README, ROOT, shell_lines


def _genworker_calls() -> list[list[str]]:
    """Arguments of every call of the command line in the README, by console script or as a Ray job."""
    calls = []
    for line in shell_lines():
        for part in line.split("&&"):
            words = shlex.split(part)
            if words[:2] == ["ray", "job"]:
                script = words.index("python") + 1
                calls.append([Path(words[script]).stem, *words[script + 1 :]])
            elif words and words[0].endswith("genworker"):
                calls.append(words[1:])
    return calls


@pytest.mark.parametrize("call", _genworker_calls(), ids=lambda call: " ".join(call)[:60])
def test_every_command_of_the_readme_parses(call: list[str]) -> None:
    """Commands and flags that the README shows exist, with arguments of the right kind."""
    command = cli.commands[call[0]]
    # Below the group's own context, because a command remembers the help options of the first context it is made in.
    with click.Context(cli, **cli.context_settings) as group:
        command.make_context(call[0], call[1:], parent=group, resilient_parsing=False)


def test_every_command_is_in_the_readme() -> None:
    """No command is hidden from the reader."""
    assert {call[0] for call in _genworker_calls()} == set(cli.commands)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_and_option_has_help(name: str) -> None:
    """A command says what it does in its first line, and each option has a word of help or says all in its name."""
    command = cli.commands[name]
    assert command.help
    silent = [
        option.name
        for option in command.params
        if isinstance(option, click.Option) and not option.help and not isinstance(option.type, click.Choice)
    ]
    assert not silent


def test_the_readme_names_what_the_registries_hold() -> None:
    """Every data source, family, metric and codec has its row or word, and no other is promised."""
    tables = {"data.name": sources.SOURCES, "family.name": families.FAMILIES, "--metrics": metrics.METRICS}
    for heading, table in tables.items():
        rows = README.split(f"| `{heading}` |")[1].split("\n\n")[0]
        assert set(re.findall(r"^\| `([^`]+)` \|", rows, re.MULTILINE)) == set(table)
    sentence = re.search(r"Image codecs: (.*?)\n\n", README, re.DOTALL)
    assert sentence is not None
    assert set(re.findall(r"`([\w-]+)`", sentence[1])) == set(codecs.CODECS)


def test_the_add_a_table_names_real_tables() -> None:
    """Each row of "Add a ..." names a folder with a contract and the table that takes the new line."""
    row = r"^\| [\w ]+ \| `genworker/([\w/]+)/<name>\.py`.*`([\w/]+)/base\.py`.*\| `(\w+)`, `(\S+)` \|$"
    rows = re.findall(row, README, re.MULTILINE)
    packages = {
        "codecs": codecs,
        "formats": formats,
        "stores": stores,
        "sources": sources,
        "families": families,
        "metrics": metrics,
        "training/callbacks": callbacks,
    }
    assert {row[0] for row in rows} == set(packages)
    for folder, contract, table, file in rows:
        assert folder == contract
        assert (ROOT / "genworker" / folder / "base.py").is_file()
        assert file == f"{folder}/__init__.py"
        assert isinstance(getattr(packages[folder], table), dict)


def test_the_readme_mentions_shipped_specs_only() -> None:
    """The specs that commands of the README name are shipped."""
    used = {call[1] for call in _genworker_calls() if call[0] == "train"}
    assert used <= set(preset_names())


def test_the_test_command_stands_between_its_markers() -> None:
    """CI runs the command that the README gives."""
    block = README.split("<!-- test-command -->")[1].split("<!-- /test-command -->")[0]
    assert "pytest" in block
    assert ".venv" in block


def test_help_is_quick_and_says_nothing_wrong() -> None:
    """`python -m` style calls of --help work in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", "from genworker.cli import main; main()", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "generate" in done.stdout
    assert not done.stderr
