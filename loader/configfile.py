"""The agent's configuration as an operator gives it: a TOML file, the environment, options.

An option wins over the environment, which wins over the file. All that is wrong is told at once,
each fault with where it is. What there is to give is `configkeys`'.
"""

import difflib
import pathlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from loader.client import TOKEN_VARIABLE
from loader.config import AgentConfig, Impossible
from loader.configkeys import KEYS, SECTIONS, VARIABLES, Key, config, quoted
from loader.errors import ShuntError
from loader.tomlplaces import Path, Places, places

__all__ = [
    "DEFAULT_FILE",
    "BadConfig",
    "Configuration",
    "Fault",
    "Given",
    "Origin",
    "Reloaded",
    "Sources",
    "reload",
]

DEFAULT_FILE = pathlib.Path("/etc/shunt/agent.toml")
PREFIX = "SHUNT_AGENT_"
_SIZE_LIMIT = 1 << 18  # bytes: room for thousands of prefixes, and no more for a wrong file

_FIELDS = {name: key for key in KEYS for name in key.fields}
_BY_NAME = {key.name: key for key in KEYS}
_MEANT = {name.rpartition(".")[2]: key for name, key in _FIELDS.items()} | {
    key.last: key for key in KEYS
}
"""Keys by what somebody may call them."""
_KUBERNETES = re.compile(rf"{PREFIX}(SERVICE_(HOST|PORT(_.*)?)|PORT(_[0-9]+_(TCP|UDP)(_.*)?)?)")
_BARE = re.compile(r"[A-Za-z0-9_.-]{1,60}")
_TOML_ERROR = re.compile(r"(?P<what>.*) \(at (line (?P<line>\d+), column \d+|end of document)\)")
_TYPES: tuple[tuple[type, str], ...] = (
    (bool, "true or false"),
    (str, "text"),
    (int, "a number"),
    (float, "one with a fraction"),
    (list, "a list"),
    (dict, "a table"),
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from: of *kind* `file`, `environment`, `option` or `default`; the
    file's, the variable's or the option's *name*, and the *line* in a file."""

    kind: str
    name: str = ""
    line: int | None = None

    def __str__(self) -> str:
        if self.line is not None:
            return f"{self.name}:{self.line}"
        return self.name or self.kind


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong, where, in which *key* if in one, and the *cure*."""

    origin: Origin | None
    what: str
    cure: str = ""
    key: str = ""

    def __str__(self) -> str:
        return f"{self.origin}: {self.what}" if self.origin else self.what


class BadConfig(ShuntError):
    """A configuration that cannot be used, with all its faults."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        if len(self.faults) == 1:
            super().__init__(str(self.faults[0]), self.faults[0].cure)
        else:
            super().__init__(
                f"the configuration has {len(self.faults)} errors",
                "\n".join(
                    f"{fault}\n  {fault.cure}" if fault.cure else str(fault)
                    for fault in self.faults
                ),
            )


@dataclass(frozen=True, slots=True)
class Given:
    """A key's value, as the configuration has it, and where it comes from."""

    key: Key
    value: Any
    origin: Origin


@dataclass(frozen=True, slots=True)
class Configuration:
    """What was read, and for every key of `KEYS` where it comes from."""

    config: AgentConfig
    values: tuple[Given, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where an agent's configuration comes from, to be read once or again.

    *options*: values by key, of those that were on the command line. Without *file*, the default
    one is read if it is there. A file that was asked for must be there.
    """

    file: pathlib.Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def read(self) -> Configuration:
        """Read all of it. Raises BadConfig."""
        path = self.file or DEFAULT_FILE
        reading = _Reading(str(path))
        try:
            with path.open("rb") as opened:
                reading.file(opened.read(_SIZE_LIMIT + 1))
            reading.has_file = True
        except FileNotFoundError as error:
            if self.file:
                reading.unreadable(error)
        except (OSError, ValueError) as error:  # ValueError: a path that the kernel cannot be asked
            reading.unreadable(error)
        reading.environment(self.environment)
        reading.options(self.options)
        return reading.result(path)


class _Reading:
    """Values and faults, as they come together."""

    def __init__(self, path: str) -> None:
        self.has_file = False
        self._path = path
        self._faults: list[Fault] = []
        self._given: dict[str, Given] = {}
        self._elements: dict[str, list[Origin]] = {}  # of lists
        self._wrong: set[str] = set()  # keys that are given, but cannot be read
        self._sections: dict[str, Origin] = {}
        self._misspelt: list[tuple[str, Any, Path]] = []  # what is meant, its value, its place
        self._blind = False  # the file could not be read: who knows what is in it

    # The file.

    def unreadable(self, error: Exception) -> None:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        self._fault(Origin("file", self._path), f"cannot be read: {why}")
        self._blind = True

    def file(self, raw: bytes) -> None:
        """Take what a file says."""
        if len(raw) > _SIZE_LIMIT:
            self.unreadable(ValueError(f"it is larger than {_SIZE_LIMIT >> 10} KiB"))
            return
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            self._syntax(line, "not UTF-8")
            return
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            self._syntax(*_syntax_error(str(error), text))
        except RecursionError:
            self._syntax(None, "nested too deeply")
        except ValueError as error:  # a number with more digits than Python converts
            self._syntax(None, str(error))
        else:
            where = places(text)
            self._table(document, (), "", where)
            self._mend(where)

    def _syntax(self, line: int | None, what: str) -> None:
        self._fault(Origin("file", self._path, line), what)
        self._blind = True

    def _table(self, table: dict[str, Any], path: Path, section: str, where: Places) -> None:
        """Take what a section says. *path* is how the file calls it."""
        if section:
            self._sections[section] = self._at(where, path)
        for name, value in table.items():
            full = f"{section}.{name}" if section else name
            if full in _BY_NAME or full in SECTIONS:
                self._entry(value, (*path, name), full, where)
                continue
            meant = self._unknown(name, value, (*path, name), section, where)
            if meant:
                self._misspelt.append((meant, value, (*path, name)))

    def _entry(self, value: Any, path: Path, name: str, where: Places) -> None:
        origin = self._at(where, path)
        if name in _BY_NAME:
            count = len(value) if isinstance(value, list) else 0
            elements = [self._at(where, (*path, index)) for index in range(count)]
            self._take(_BY_NAME[name], value, origin, elements)
        elif isinstance(value, dict):
            self._table(value, path, name, where)
        else:
            self._sections[name] = origin
            self._wrong.update(key.name for key in KEYS if key.section.startswith(name))
            self._fault(origin, f"[{name}] must be a section, not {_type(value)}")

    def _unknown(self, name: str, value: Any, path: Path, section: str, where: Places) -> str:
        """Tell of an unknown key or section; the name of what was meant, if that is clear."""
        if isinstance(value, dict):
            full = f"{section}.{name}" if section else name
            meant = _closest(full, SECTIONS) or next(
                (known for known in SECTIONS if known.endswith(f".{name}")), ""
            )
            what = f"unknown section [{full if _BARE.fullmatch(full) else quoted(full)}]"
            what += f"; did you mean [{meant}]?" if meant else ""
            cure = "" if meant else f"There are: {', '.join(f'[{known}]' for known in SECTIONS)}."
        else:
            here = [key.last for key in KEYS if key.section == section]
            what = f"unknown key {quoted(name)}" + (f" in [{section}]" if section else "")
            if close := _closest(name, here):
                meant, cure = f"{section}.{close}", ""
                what += f"; did you mean {quoted(close)}?"
            elif close := _closest(name, _MEANT):
                meant, cure = _MEANT[close].name, ""
                what += f"; did you mean {quoted(_MEANT[close].last)} in [{_MEANT[close].section}]?"
            else:
                meant = ""
                cure = f"There are: {', '.join(here)}." if here else "Keys stand in sections."
        self._fault(self._at(where, path), what, cure)
        return meant

    def _mend(self, where: Places) -> None:
        """Take what was misspelt as it was meant, so that its own faults show as well, and it is
        not missed."""
        while self._misspelt:
            name, value, path = self._misspelt.pop(0)
            known = self._sections.keys() | self._given.keys() | self._wrong
            if name not in known:
                self._entry(value, path, name, where)

    def _at(self, where: Places, path: Path) -> Origin:
        return Origin("file", self._path, where.lines.get(path))

    # The environment and the options.

    def environment(self, environment: Mapping[str, str]) -> None:
        """Take what variables say; of other programs' it knows nothing."""
        for variable in sorted(name for name in environment if name.startswith(PREFIX)):
            if variable == TOKEN_VARIABLE:
                continue  # of those who ask an agent
            origin = Origin("environment", variable)
            key = VARIABLES.get(variable)
            if key:
                self._take_text(key, environment[variable], origin)
                continue
            meant = _closest(variable, VARIABLES)
            what = "unknown variable" + (f"; did you mean {meant}?" if meant else "")
            cure = "" if meant else f"There are: {', '.join(VARIABLES)}."
            if _KUBERNETES.fullmatch(variable):
                what = "unknown variable"
                cure = (
                    "Kubernetes sets it for a Service named shunt-agent: name that otherwise, or "
                    "set enableServiceLinks to false."
                )
            self._fault(origin, what, cure)

    def options(self, options: Mapping[str, Any]) -> None:
        """Take what the command line says: read already."""
        for name, value in options.items():
            key = _BY_NAME[name]
            self._set(key, value, Origin("option", key.option), [])

    # Values.

    def _take_text(self, key: Key, text: str, origin: Origin) -> None:
        if key.kind.many:
            texts = [one.strip() for one in text.split(",")] if text.strip() else []
            self._take(key, texts, origin, [origin] * len(texts))
            return
        value: Any = text.strip()
        if key.kind.types == (bool,):
            value = {"true": True, "false": False}.get(value, value)
        elif key.kind.types == (int,) and re.fullmatch("[0-9]{1,18}", value):
            value = int(value)
        self._take(key, value, origin, [])

    def _take(self, key: Key, value: Any, origin: Origin, elements: list[Origin]) -> None:
        """Take a value as it is written, or tell what is wrong with it."""
        kind = key.kind
        label = f"{key.last} in [{key.section}]" if origin.kind == "file" else "the value"
        if kind.many and not isinstance(value, list):
            self._fault(origin, f"{label} must be {kind.form}, not {_type(value)}", key=key)
            return
        read, faults = [], []
        for one, at in zip(value, elements, strict=True) if kind.many else ((value, origin),):
            if type(one) not in kind.types:
                among = f": {_type(one)} is among them" if kind.many else f", not {_type(one)}"
                faults.append((at, f"{label} must be {kind.form}{among}"))
                continue
            try:
                read.append(kind.read(one))
            except ValueError as why:
                faults.append((at, f"{quoted(one) if kind.quotable else label} {why}"))
        for at, what in faults:
            self._fault(at, what, key=key)
        if not faults:
            self._set(key, tuple(read) if kind.many else read[0], origin, elements)

    def _set(self, key: Key, value: Any, origin: Origin, elements: list[Origin]) -> None:
        self._given[key.name] = Given(key, value, origin)
        self._elements[key.name] = elements
        self._wrong.discard(key.name)

    def _fault(
        self, origin: Origin | None, what: str, cure: str = "", *, key: Key | None = None
    ) -> None:
        self._faults.append(Fault(origin, what, cure, key.name if key else ""))
        if key:
            self._wrong.add(key.name)

    # All together.

    def result(self, path: pathlib.Path) -> Configuration:
        """What all of it comes to. Raises BadConfig."""
        if not self._blind:
            self._tell_missing(path)
        values = {name: given.value for name, given in self._given.items()}
        for key in KEYS:  # what is missing, or wrong, and told already: no reason not to go on
            if key.required and key.name not in values:
                if key.section == "relay":
                    values[key.name] = ()
                else:
                    values = {n: v for n, v in values.items() if _BY_NAME[n].section != key.section}
        try:
            made = config(values, config_file=path if self.has_file else None)
        except Impossible as error:
            for problem in error.problems:
                key = _FIELDS[problem.field]
                if key.name in self._given:
                    elements = self._elements[key.name]
                    origin = self._given[key.name].origin
                    if problem.place is not None and elements:
                        origin = elements[problem.place]
                    self._faults.append(Fault(origin, problem.what, problem.cure, key.name))
        if self._faults:
            raise BadConfig(sorted(self._faults, key=_order))
        default = Origin("default")
        return Configuration(
            made,
            tuple(
                Given(
                    key,
                    key.value(made),
                    self._given[key.name].origin if key.name in self._given else default,
                )
                for key in KEYS
            ),
        )

    def _tell_missing(self, path: pathlib.Path) -> None:
        if not (self.has_file or self._given or self._faults):
            what = "there is no such file, and nothing else says what to relay"
            cure = "Write it (packaging/agent.toml is an example), or see `shunt agent run --help`."
            self._fault(Origin("file", str(path)), what, cure)
            return
        asked_for = {
            "relay",
            *self._sections,
            *(given.key.section for given in self._given.values()),
        }
        for key in KEYS:
            known = key.name in self._given or key.name in self._wrong
            if known or not key.required or key.section not in asked_for:
                continue
            ways = [f"{key.last} = {key.example}", key.variable]
            if key.option:
                ways.append(key.option)
            origin = self._sections.get(key.section)
            if origin is None and self.has_file:
                origin = Origin("file", str(path))
            cure = f"Give {', '.join(ways[:-1])} or {ways[-1]}."
            if not self.has_file:
                cure += f" There is no {path}."
            self._faults.append(
                Fault(origin, f"{key.last} in [{key.section}] is missing", cure, key.name)
            )


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload comes to: the configuration from now on, the keys by which it differs from
    the one before, and the keys that only a restart can change."""

    config: AgentConfig
    changed: tuple[str, ...]
    restart: tuple[str, ...]


def reload(old: AgentConfig, new: AgentConfig) -> Reloaded:
    """Of a new configuration, take what can change while the agent runs.

    Raises BadConfig if that does not go with what stays as it was.
    """
    changed, restart = [], []
    values = {key.name: key.value(old) for key in KEYS}
    for key in KEYS:
        value = key.value(new)
        if value == values[key.name]:
            continue
        if key.live and _has_server(key, old) and _has_server(key, new):
            values[key.name] = value
            changed.append(key.name)
        else:
            restart.append(key.name)
    given = {name: value for name, value in values.items() if value is not None}
    try:
        merged = config(given, config_file=new.config_file)
    except Impossible as error:
        raise BadConfig(
            Fault(
                None,
                f"without a restart, {problem.what}",
                "A restart takes the whole configuration, and loses no packet.",
                _FIELDS[problem.field].name,
            )
            for problem in error.problems
        ) from None
    return Reloaded(merged, tuple(changed), tuple(restart))


def _has_server(key: Key, of: AgentConfig) -> bool:
    """Whether what the key is about is there. A server over TCP is begun and ended by a restart
    alone, and so is its TLS."""
    if key.name in ("api.tcp.certificate", "api.tcp.key"):
        return of.tcp is not None and of.tcp.certificate is not None
    return key.section != "api.tcp" or of.tcp is not None


def _syntax_error(message: str, text: str) -> tuple[int, str]:
    """The line of an error of `tomllib`, and what is wrong."""
    last = text.count("\n") + (not text.endswith("\n"))
    match = _TOML_ERROR.fullmatch(message)
    if not match:
        return last, message
    line = min(int(match["line"] or last), last)
    if message.startswith("Cannot "):  # overwrite, declare twice, mutate: is it a key again?
        found = places(text)
        again = [(path, at) for path, at in found.repeated if at <= line]
        if again:
            path, at = again[-1]
            name = ".".join(map(str, path))
            return at, f"{quoted(name)} is given again; it was in line {found.lines[path]} already"
    return line, f"no TOML: {match['what'][0].lower()}{match['what'][1:]}"


def _closest(name: str, names: Iterable[str]) -> str:
    """The name that was probably meant, or an empty text."""
    like = name.upper() if name.startswith(PREFIX) else name.lower()
    close = difflib.get_close_matches(like, list(names), n=1)
    return close[0] if close else ""


def _type(value: object) -> str:
    return next((name for kind, name in _TYPES if isinstance(value, kind)), "a date or time")


def _order(fault: Fault) -> tuple[int, int]:
    """The file's faults come first, in its order."""
    if fault.origin is None or fault.origin.kind == "default":
        return 0, 0
    place = ("file", "environment", "option").index(fault.origin.kind)
    return place, fault.origin.line or 0
