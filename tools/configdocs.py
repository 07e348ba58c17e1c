"""The agent's example file and the table of keys in the documentation, made from `configkeys`.

`python -m tools.configdocs` writes both; a test holds them to the table.
"""

import json
import textwrap
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from loader.configkeys import KEYS, SECTIONS, Key
from tools.processes import ROOT

__all__ = ["EXAMPLE", "PAGE", "example", "page"]

EXAMPLE = ROOT / "packaging" / "agent.toml"
PAGE = ROOT / "docs" / "configuration.md"

_BEGIN = "<!-- Made by `python -m tools.configdocs`: change loader/configkeys.py instead. -->\n"
_END = "<!-- End of what is made. -->\n"


def example() -> str:
    """A file with every key: those that must be given with an example, the others, as comments,
    with their defaults."""
    return "\n".join(
        [
            "# The configuration of a Shunt agent: /etc/shunt/agent.toml. What is commented out is",
            "# the default, or an example where there is none. `shunt config check` checks it;",
            "# docs/configuration.md has the rest.",
            *_example_sections(),
            "",
        ]
    )


def _example_sections() -> Iterator[str]:
    for section, keys in groupby(KEYS, key=lambda key: key.section):
        yield ""
        yield from _comment(SECTIONS[section])
        yield f"{'#' if section == 'api.tcp' else ''}[{section}]"
        for key in keys:
            needed = " Must be given." if key.required else ""
            restart = "" if key.live else " A change needs a restart."
            yield ""
            yield from _comment(f"{key.text}{needed}{restart}".replace("`", ""))
            off = "" if key.required and section == "relay" else "#"
            yield f"{off}{key.last} = {key.example or _toml(key.written(key.default))}"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text, 98, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def _toml(value: Any) -> str:
    return json.dumps(value)  # of text, numbers, truth values, and lists of them: TOML as well


def page(text: str) -> str:
    """A page of the documentation with the table of keys in it anew."""
    before, _begin, rest = text.partition(_BEGIN)
    _old, _end, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{_table()}\n{_END}{after}"


def _table() -> str:
    lines = []
    for section, keys in groupby(KEYS, key=lambda key: key.section):
        lines += [f"### [{section}]", "", SECTIONS[section], ""]
        lines += ["| key | value | default | reload | |", "|---|---|---|---|---|"]
        lines += [_row(key) for key in keys]
        lines.append("")
    return "\n".join(lines)


def _row(key: Key) -> str:
    default = "" if key.default is None else f"`{_toml(key.written(key.default))}`"
    if key.required:
        default = "must be given"
    text = f"{key.text} `{key.option}`" if key.option else key.text
    cells = (f"`{key.last}`", key.kind.form, default, "yes" if key.live else "restart", text)
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Write both."""
    EXAMPLE.parent.mkdir(exist_ok=True)
    EXAMPLE.write_text(example())
    PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    main()
