"""From the relay that runs, of whatever version, to the one that this agent brings.

    plan ── says what will be done, or why it cannot be, and touches nothing
    stage ── compiles and loads beside the relay that runs, and touches nothing of it
    carry_out ── maps are brought over ── the interfaces change hands ── commit

What can be kept is kept: a map whose layout is the same is the same map, pinned a second time.
Maps of another layout are made anew and filled (`migrate`). Everything is staged in a folder beside
that of the running relay; each interface changes hands in one step, all or none; then the folder
takes the other's name. Whatever fails or is killed before the interfaces leaves the old relay at
work, and after, `recover` completes it.
"""

import fcntl
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from loader import bpf, datapath, types
from loader.capabilities import Capability, held, require
from loader.carriers import Attachment, Carriers, attached_programs, check
from loader.errors import ShuntError
from loader.layout import Conversion, Layout, MapLayout, layout
from loader.maps import versioned
from loader.migrate import REBUILT, Migration, rows_of
from loader.pinned_set import (
    LOADING,
    PARTS,
    PinnedSet,
    described,
    pinned_sets,
    remove_folder,
)
from loader.sizes import sizes
from loader.source import digest

__all__ = ["STAGE", "Fate", "Plan", "Taken", "carry_out", "plan", "recover", "stage"]

log = logging.getLogger(__name__)

STAGE = "next"
_OLD = "old-"
"""With its program's id behind it, the folder of a relay that is replaced: there until no interface
carries it."""

_SLOTS = frozenset({"slots_in", "slots_out", "books", "handshakes"})


class Fate(StrEnum):
    """What becomes of a map."""

    KEPT = "kept"
    COPIED = "brought over"
    MADE = "made"


@dataclass(frozen=True, slots=True)
class Plan:
    """What `carry_out` will do. *running*: the relay that is there, if any; *same_program*: it is
    of the very source that this version would compile, and stays; *slots*: slots in use."""

    pins: Path
    inside: int
    running: PinnedSet | None
    same_program: bool
    maps: Mapping[str, Fate]
    slots: int

    @property
    def words(self) -> str:
        """The plan in one sentence."""
        if self.running is None:
            return "there is no relay yet: program and maps are made"
        copied = [name for name, fate in self.maps.items() if fate is Fate.COPIED]
        program = "the program stays" if self.same_program else "the program is replaced"
        maps = f"brought over: {', '.join(copied)}" if copied else "all maps stay"
        return f"{program}; {maps}; slots in use: {self.slots}"


@dataclass(frozen=True, slots=True)
class Taken:
    """What `carry_out` did. *adopted*: there was a relay before; *program*: its id, if it is
    another than before; *brought_over*: the maps whose layout is another."""

    attachments: list[Attachment]
    adopted: bool
    program: int | None
    brought_over: tuple[str, ...]


def plan(pins: Path, inside: int) -> Plan:
    """How this version would take over from the relay pinned below *pins*, with maps for so many
    *inside* addresses. Raises ShuntError if it cannot without ending calls."""
    running = _running(pins)
    now = layout(sizes(inside))
    if running is None:
        return Plan(pins, inside, None, False, dict.fromkeys(now.maps, Fate.MADE), 0)
    before = described(running.folder)
    try:
        fates = _fates(running.folder, before, now)
    except ShuntError as error:
        raise ShuntError(
            f"the relay pinned at {running.folder} cannot be brought over: {error.what}",
            error.cure
            or "It goes on as it is. To start afresh: `shunt agent unload`, which ends calls.",
        ) from None
    source = bytes(_notebook(running.folder, before).source)
    return Plan(
        pins,
        inside,
        running,
        source == digest(inside) and set(fates.values()) == {Fate.KEPT},
        fates,
        int(np.count_nonzero(_states(running.folder, before))),
    )


def _running(pins: Path) -> PinnedSet | None:
    """The relay that the interfaces carry; if they carry none, the one that was left last."""
    attached = attached_programs()
    found = pinned_sets(pins)
    carried = [each for each in found if each.program in attached]
    left = [each for each in found if each.folder in (versioned(pins), pins / "v2")]
    # Amid an exchange two are carried, of which one is on its way out.
    last = (STAGE, versioned(pins).name)
    carried.sort(key=lambda each: last.index(each.folder.name) if each.folder.name in last else 9)
    return next(iter((*carried, *reversed(left))), None)


def _fates(folder: Path, before: Layout, now: Layout) -> dict[str, Fate]:
    for name, value in now.constants.items():
        if before.constants.get(name, value) != value:
            raise ShuntError(f"its {name} is {before.constants[name]}, this version's {value}")
    return {name: _fate(folder, name, before, now) for name in now.maps}


def _fate(folder: Path, name: str, before: Layout, now: Layout) -> Fate:
    had, has = before.maps.get(name), now.maps[name]
    if had is None:
        return Fate.MADE
    if had == has:
        return Fate.KEPT
    if had.type != has.type:
        raise ShuntError(f"the map {name} is of another type")
    try:
        Conversion.between(had.key, has.key)
        conversion = Conversion.between(had.value, has.value)
        if conversion.cut and had.type in bpf.ARRAYS:
            with bpf.Map.open(folder / name) as opened:
                conversion.convert(rows_of(opened))
    except ShuntError as error:
        raise ShuntError(f"in the map {name}, {error.what}") from None
    if has.entries < had.entries and name not in REBUILT:
        _check_room(folder, name, before, has)
    return Fate.COPIED


def _check_room(folder: Path, name: str, before: Layout, has: MapLayout) -> None:
    if name in _SLOTS:
        beyond = np.count_nonzero(_states(folder, before)[has.entries :])
        if beyond:
            raise ShuntError(
                f"{beyond} of its slots are in use beyond the {has.entries} that there will be",
                "Leave the inside addresses as they are, or wait until those flows are over.",
            )
        return
    with bpf.Map.open(folder / name) as opened:
        if has.type in bpf.ARRAYS:
            cut = np.flatnonzero(rows_of(opened)[has.entries :].any(axis=1))
            used = has.entries + 1 if len(cut) else 0
        else:
            used = sum(1 for _ in opened.items())
    if used > has.entries:
        raise ShuntError(f"the map {name} holds more than the {has.entries} entries of the new one")


def _states(folder: Path, before: Layout) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    """Of all slots."""
    at = next(f.offset for f in before.maps["slots_in"].value.fields if f.name == "state")
    with bpf.Map.open(folder / "slots_in") as opened:
        return rows_of(opened)[:, at]


def _notebook(folder: Path, before: Layout) -> types.About:
    """What the agent of that relay has noted, as far as this version knows it."""
    if "about" not in before.maps:
        return types.About()
    with bpf.Map.open(folder / "about") as opened:
        rows = rows_of(opened)
    now = layout(sizes(1)).maps["about"].value
    converted = Conversion.between(before.maps["about"].value, now).convert(rows)
    return types.About.from_buffer_copy(converted.tobytes())


def recover(pins: Path) -> None:
    """Finish, or undo, what somebody who was killed has left. What `stage` has made, whole and
    untouched, stays for whom it was made for."""
    staged = pins / STAGE
    with _alone(pins):
        if not staged.is_dir():
            return
        found = [each.program for each in pinned_sets(pins) if each.folder == staged]
        if attached_programs().intersection(found):
            log.warning("an upgrade was cut off amid the interfaces: it is completed")
            _commit(pins)
        elif not found or _is_touched(staged):
            log.warning("an upgrade was cut off before it took hold: what it left is removed")
            remove_folder(staged)


def _is_touched(staged: Path) -> bool:
    """Whether anything was brought over into the maps there, or they are of another version."""
    try:
        about = _notebook(staged, described(staged))
    except ShuntError:
        return True
    return bool(about.filled)


def stage(plan: Plan) -> None:
    """Compile this version's program and pin it, with the maps that it will have, beside the relay
    that runs, if they are not there already. Takes CAP_PERFMON. Raises ShuntError."""
    if plan.same_program:
        log.info("the program that is at work is this version's")
        return
    require(
        Capability.BPF, Capability.NET_ADMIN, Capability.PERFMON, what="loading the XDP program"
    )
    with _alone(plan.pins):
        if _is_staged(plan):
            return
        folder = plan.pins / STAGE
        if folder.is_dir():
            remove_folder(folder)
        with ExitStack() as undo:
            folder.mkdir()
            undo.callback(remove_folder, folder)
            if plan.running:
                _pin(plan.running.folder, folder, _kept(plan))
            program = datapath.load_into(folder, plan.inside)
            undo.pop_all()
    log.info("program %s (id %d) is loaded", program.tag, program.id)


def _is_staged(plan: Plan) -> bool:
    """Whether what `stage` makes is there, of this very plan, and untouched."""
    folder = plan.pins / STAGE
    if not any(each.folder == folder for each in pinned_sets(plan.pins)):
        return False
    try:
        found = described(folder)
    except ShuntError:
        return False
    if found != layout(sizes(plan.inside)):
        return False
    about = datapath.notebook(folder)
    kept = _kept(plan)
    return (
        bytes(about.source) == digest(plan.inside)
        and not about.filled
        and (plan.running is None or _ids(folder, kept) == _ids(plan.running.folder, kept))
    )


def _kept(plan: Plan) -> list[str]:
    """Maps that are both relays'. The notebook never is: it says of which program it is."""
    return [name for name, fate in plan.maps.items() if fate is Fate.KEPT and name != "about"]


def _ids(folder: Path, names: list[str]) -> list[int]:
    ids = []
    for name in names:
        with bpf.Map.open(folder / name) as opened:
            ids.append(opened.info.id)
    return ids


@contextmanager
def _alone(pins: Path) -> Iterator[None]:
    """Nobody else stages, or takes what is staged: he waits."""
    place = pins / LOADING
    place.mkdir(parents=True, exist_ok=True)
    lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def carry_out(plan: Plan, interfaces: list[str]) -> Taken:
    """Do it. Raises ShuntError, and the relay that was running runs on as it was.

    A process without CAP_PERFMON takes what `stage` has left, or leaves the program as it is if its
    maps are this version's. No agent may be at work on *plan.pins*, nor another `carry_out`.
    """
    carriers = check(plan.pins, interfaces)
    running, replaces = plan.running, _is_replaced(plan)
    if replaces:
        with _alone(plan.pins):
            attachments = _replace(plan, carriers)
    else:
        assert running is not None
        attachments = carriers.attach(running.folder)
    carriers.leave_others()
    _forget_others(plan.pins)
    about = datapath.notebook(versioned(plan.pins))
    about.adoptions += running is not None
    about.upgrades += running is not None and replaces
    about.migrations += Fate.COPIED in plan.maps.values()
    about.filled = 0
    if replaces:
        about.source[:] = list(digest(plan.inside))
    datapath.write_notebook(versioned(plan.pins), about, plan.inside)
    program = datapath.pinned_program(versioned(plan.pins))
    log.info("program %s (id %d) is at work", program.tag, program.id)
    return Taken(
        attachments,
        adopted=running is not None,
        program=program.id if running and replaces else None,
        brought_over=tuple(n for n, fate in plan.maps.items() if fate is Fate.COPIED),
    )


def _is_replaced(plan: Plan) -> bool:
    """Whether the interfaces are to get another program; it is staged then."""
    if plan.same_program:
        return False
    if _is_staged(plan):
        return True
    if Capability.PERFMON in held():
        stage(plan)
        return True
    if plan.running and set(plan.maps.values()) == {Fate.KEPT}:
        log.warning("the program is another version's: `shunt agent load` brings this one's")
        return False
    raise ShuntError(
        f"no program of this version is loaded at {plan.pins}",
        f"Load it with `sudo shunt agent load`; an agent that has {Capability.PERFMON} does so "
        "itself.",
    )


def _replace(plan: Plan, carriers: Carriers) -> list[Attachment]:
    staged = plan.pins / STAGE
    with ExitStack() as undo:
        undo.callback(remove_folder, staged)
        with _migration(plan, staged) as migration:
            migration.begin()
            migration.catch_up()
            attachments = carriers.attach(staged)
            undo.pop_all()
            try:
                migration.finish()
            finally:
                _commit(plan.pins)
    return attachments


def _pin(before: Path, folder: Path, names: Iterable[str]) -> None:
    """Pin these maps a second time."""
    for name in names:
        descriptor = bpf.pinned(before / name)
        try:
            bpf.pin(descriptor, folder / name)
        finally:
            os.close(descriptor)


def _migration(plan: Plan, staged: Path) -> Migration:
    now = layout(sizes(plan.inside))
    copied = frozenset(name for name, fate in plan.maps.items() if fate is Fate.COPIED)
    if plan.running is None:
        return Migration(staged, staged, now, now, names=frozenset())
    before = described(plan.running.folder)
    noted = _notebook(plan.running.folder, before)
    noted.source, noted.filled = datapath.notebook(staged).source, 1
    datapath.write_notebook(staged, noted, plan.inside)
    return Migration(plan.running.folder, staged, before, now, names=copied)


def _commit(pins: Path) -> None:
    """The staged relay is the one; of the others nothing is left that no interface carries.
    Killed between the two steps, `recover` finds what is staged on the interfaces still."""
    place = versioned(pins)
    if place.is_dir():
        place.rename(pins / f"{_OLD}{datapath.pinned_program(place).id}")
    (pins / STAGE).rename(place)
    _forget_others(pins)


def _forget_others(pins: Path) -> None:
    """Remove the sets that no interface carries any more, but the one that is at work, and parts
    whose program none does. As long as one is carried it must be known as ours."""
    place, carried = versioned(pins), attached_programs()
    for each in pinned_sets(pins):
        if each.folder not in (place, pins / STAGE) and each.program not in carried:
            remove_folder(each.folder)
    carried.add(datapath.pinned_program(place).id)
    for entry in place.glob(f"{PARTS}*"):
        if int(entry.name.removeprefix(PARTS)) not in carried:
            entry.unlink()
