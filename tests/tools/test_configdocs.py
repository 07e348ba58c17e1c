"""The example file and the documentation hold what the agent reads, and nothing else."""

import re
from pathlib import Path

from loader.configfile import Sources
from loader.configkeys import KEYS
from tools import configdocs

AGAIN = "run `python -m tools.configdocs`"


def test_the_example_and_the_page_are_those_of_the_table() -> None:
    assert configdocs.EXAMPLE.read_text() == configdocs.example(), AGAIN
    page = configdocs.PAGE.read_text()
    assert page == configdocs.page(page), AGAIN


def test_the_example_can_be_used_as_it_is_and_changes_no_default() -> None:
    read = Sources(file=configdocs.EXAMPLE).read()

    for given in read.values:
        if given.key.required and given.key.section == "relay":
            assert given.origin.kind == "file"
        else:
            assert (given.origin.kind, given.value) == ("default", given.key.default)


def test_what_is_commented_out_can_be_used_too_and_says_the_defaults(tmp_path: Path) -> None:
    whole = tmp_path / "agent.toml"
    whole.write_text(re.sub(r"(?m)^#(?! )", "", configdocs.example()))

    read = Sources(file=whole).read()

    assert {given.origin.kind for given in read.values} == {"file"}
    for given in read.values:
        if not given.key.required and given.key.default is not None:
            value = frozenset(given.value) if given.key.name == "api.users" else given.value
            assert value == given.key.default, given.key.name


def test_the_page_has_a_row_for_every_key() -> None:
    page = configdocs.PAGE.read_text()

    for key in KEYS:
        section = page.partition(f"### [{key.section}]\n")[2].partition("\n### ")[0]
        assert f"\n| `{key.last}` |" in section, key.name
