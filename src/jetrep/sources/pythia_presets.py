"""What can be simulated: processes, jet presets, tunes, and the reader of a user's own Pythia settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from jetrep.errors import InputError
from jetrep.physics.detector import Detector
from jetrep.physics.detector_presets import DETECTORS

__all__ = [
    "CUSTOM",
    "PRESETS",
    "PROCESSES",
    "TUNES",
    "JetPreset",
    "Process",
    "Setting",
    "Tune",
    "choose",
    "process_of",
    "read_settings",
    "settings_for",
]

CUSTOM = "custom"
"""Name of the process that a user's file of settings defines; ``custom:FILE`` names the file as well."""


@dataclass(frozen=True)
class Setting:
    """One line for Pythia's ``readString``, and where it stands if a user wrote it.

    Attributes:
        text: for instance ``"HardQCD:all = on"``.
        file: the user's file.
        line: line number in it, from 1.
    """

    text: str
    file: str | None = None
    line: int | None = None


@dataclass(frozen=True)
class Process:
    """A hard process, and how its jets are recognised.

    Attributes:
        name: also the class name of its jets.
        description: one line.
        settings: Pythia lines that switch it on.
        resonance: PDG code of the particle whose decay the jet must contain; None takes the leading jets as they are.
        prongs: number of quarks in that decay.
        early_veto: stop an event once the hardest partons show that its jets will miss the pT window. Needs partons
            that become jets one to one, so it is off for processes that we do not know.
    """

    name: str
    description: str
    settings: tuple[str, ...]
    resonance: int | None = None
    prongs: int = 0
    early_veto: bool = True


_HADRONIC_W = ("24:onMode = off", "24:onIfAny = 1 2 3 4 5")
_HADRONIC_Z = ("23:onMode = off", "23:onIfAny = 1 2 3 4 5")

# At high p_T the tail of the Breit–Wigner of W and Z reaches to hundreds of GeV; within about 10 widths they are what
# the label says.
PROCESSES: dict[str, Process] = {
    process.name: process
    for process in (
        Process("qcd", "two jets of gluons and u, d, s, c, b quarks", ("HardQCD:all = on",)),
        Process("g", "two gluon jets", ("HardQCD:gg2gg = on", "HardQCD:qqbar2gg = on")),
        Process(
            "q",
            "two jets of u, d, s quarks",
            # Scattered quarks keep the flavour of incoming ones, so no c or b may come in; new ones are u, d, s.
            (
                "HardQCD:qq2qq = on",
                "HardQCD:gg2qqbar = on",
                "HardQCD:qqbar2qqbarNew = on",
                "HardQCD:nQuarkNew = 3",
                "PDFinProcess:nQuarkIn = 3",
            ),
        ),
        Process(
            "top",
            "t t̄, both t → b q q̄'",
            ("Top:gg2ttbar = on", "Top:qqbar2ttbar = on", *_HADRONIC_W),
            resonance=6,
            prongs=3,
        ),
        Process(
            "w",
            "W W, both W → q q̄'",
            ("WeakDoubleBoson:ffbar2WW = on", *_HADRONIC_W, "24:mMin = 60", "24:mMax = 100"),
            resonance=24,
            prongs=2,
        ),
        Process(
            "z",
            "Z Z, both Z → q q̄ (no photon)",
            ("WeakDoubleBoson:ffbar2gmZgmZ = on", "WeakZ0:gmZmode = 2", *_HADRONIC_Z, "23:mMin = 70", "23:mMax = 112"),
            resonance=23,
            prongs=2,
        ),
    )
}


@dataclass(frozen=True)
class JetPreset:
    r"""How jets of one published data set come about: collisions, selection, detector.

    Jets are anti-kT jets (E-scheme) of what the detector sees, among the two of highest pT in the event.

    Attributes:
        name: the data set.
        energy: centre-of-mass energy of the two protons, GeV.
        pt: jet pT window, GeV, before truncation.
        eta_max: largest jet \|η\|.
        max_constituents: the hardest constituents are kept, by pT.
        detector: what sees the particles.
        pthat: window of the hard process' transverse momentum, GeV. Wider than the jet window, because radiation moves
            jets across its edges; its tails cost little because of the early veto.
        multiparton: whether there are multi-parton interactions, unless the tune decides.
        radius: anti-kT R.
    """

    name: str
    energy: float
    pt: tuple[float, float]
    eta_max: float
    max_constituents: int
    detector: Detector
    pthat: tuple[float, float]
    multiparton: bool
    radius: float = 0.8


PRESETS: dict[str, JetPreset] = {
    preset.name: preset
    for preset in (
        # JetClass (arXiv:2202.03772): Pythia 8 and the Delphes CMS card; QCD there is Z(νν)+jet, here it is dijets.
        JetPreset("jetclass", 13_000.0, (500.0, 1000.0), 2.0, 128, DETECTORS["cms"], (350.0, 1500.0), True),
        # JetNet (arXiv:2106.11535, from arXiv:1709.08705): partons of 1 TeV within 1 %, Monash with underlying event,
        # jets in 0.8–1.6 TeV, no detector, no particle masses, the 30 hardest constituents. The published set has no
        # cut on η; 2.5 keeps the jets that a tracker could see.
        JetPreset("jetnet", 13_000.0, (800.0, 1600.0), 2.5, 30, DETECTORS["massless"], (990.0, 1010.0), True),
        # Top-tagging reference (arXiv:1902.09914): 14 TeV, Delphes ATLAS card, no multi-parton
        # interactions, no pile-up.
        JetPreset("toptagging", 14_000.0, (550.0, 650.0), 2.0, 200, DETECTORS["atlas"], (380.0, 1000.0), False),
    )
}


@dataclass(frozen=True)
class Tune:
    """A named set of Pythia parameters for shower, underlying event and hadronisation.

    Attributes:
        name: what it is called.
        description: one line.
        settings: Pythia lines, read after those of the preset, so they win.
    """

    name: str
    description: str
    settings: tuple[str, ...] = ()


TUNES: dict[str, Tune] = {
    tune.name: tune
    for tune in (
        Tune("default", "Monash 2013, Pythia's own", ("Tune:pp = 14",)),
        # Another physics on purpose. α_S at the scale of CMS's CP5 (arXiv:1903.12179), whose showers radiate less;
        # MPI always on, with their own strength; harder strings with narrower p_T; more strangeness and baryons.
        Tune(
            "collisions",
            "independent data: other α_S, multi-parton interactions, fragmentation",
            (
                "Tune:pp = 14",
                "PartonLevel:MPI = on",
                "TimeShower:alphaSvalue = 0.118",
                "SpaceShower:alphaSvalue = 0.118",
                "MultipartonInteractions:alphaSvalue = 0.118",
                "MultipartonInteractions:pT0Ref = 2.0",
                "MultipartonInteractions:ecmPow = 0.2",
                "ColourReconnection:range = 5.0",
                "StringZ:aLund = 0.36",
                "StringZ:bLund = 0.56",
                "StringPT:sigma = 0.29",
                "StringFlav:probStoUD = 0.26",
                "StringFlav:probQQtoQ = 0.10",
            ),
        ),
        Tune(
            "vincia",
            "the VINCIA antenna shower with its own tune; ten times slower",
            ("PartonShowers:model = 2", "Vincia:ewMode = 1"),
        ),
    )
}

# No jet of hundreds of GeV notices these, and they take a tenth of the time: the check of each event's record, heavy
# quarks, photons and onia from multi-parton interactions, photons from initial-state quarks.
_ALWAYS = (
    "Check:event = off",
    "Next:numberCount = 0",
    "MultipartonInteractions:processLevel = 0",
    "SpaceShower:QEDshowerByQ = off",
)

Choice = TypeVar("Choice")


def choose(table: dict[str, Choice], name: str, field: str) -> Choice:
    """The entry of that name.

    Raises:
        InputError: if there is none; the message lists the choices.
    """
    if name not in table:
        raise InputError(f"unknown {field} '{name}'", field=field, remedy=f"choose one of {', '.join(table)}")
    return table[name]


def process_of(name: str, settings: Path | None = None) -> tuple[Process, tuple[Setting, ...]]:
    """A process by name, and the user's settings that belong to it.

    Args:
        name: one of `PROCESSES`, ``custom`` (defined by ``settings``) or ``custom:FILE`` (class name: the file's stem).
        settings: the user's file.

    Raises:
        InputError: for an unknown name, or a file that is missing or without any setting.
    """
    kind, _, file = name.partition(":")
    if kind != CUSTOM:
        if name not in PROCESSES:
            raise InputError(
                f"unknown process '{name}'",
                field="process",
                remedy=f"choose one of {', '.join(PROCESSES)}, {CUSTOM} (with Pythia settings), {CUSTOM}:FILE",
            )
        return PROCESSES[name], ()
    path = Path(file) if file else settings
    if path is None:
        raise InputError(
            f"process '{CUSTOM}' has no settings",
            field="settings",
            remedy="name a file of Pythia settings, one a line, such as 'HiggsSM:all = on'",
        )
    lines = read_settings(path)
    return Process(path.stem if file else CUSTOM, f"settings of {path}", (), early_veto=False), lines


def read_settings(path: Path) -> tuple[Setting, ...]:
    """The settings of a Pythia command file.

    As in Pythia's own files, a line that does not begin with a letter or digit is a comment, and so is everything
    between a line that begins with ``/*`` and one that begins with ``*/``.

    Raises:
        InputError: if the file cannot be read, holds no setting, or sets the random seed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise InputError(
            f"cannot read it: {reason}", file=path, remedy="give a text file of Pythia settings"
        ) from error
    found, comment = [], False
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("/*"):
            comment = True
        elif stripped.startswith("*/"):
            comment = False
        elif stripped and stripped[0].isalnum() and not comment:
            if stripped.lower().startswith("random:"):
                raise InputError(
                    "the random seed is not a setting",
                    file=path,
                    field=f"line {number}: {stripped}",
                    remedy="use --seed",
                )
            found.append(Setting(stripped, str(path), number))
    if not found:
        raise InputError("there is no setting in it", file=path, remedy="write one a line, such as 'HardQCD:all = on'")
    return tuple(found)


def settings_for(process: Process, user: tuple[Setting, ...], preset: JetPreset, tune: Tune) -> tuple[Setting, ...]:
    """All Pythia lines of a simulation in the order in which they are read: the last wins, the user's last of all."""
    ours = (
        f"Beams:eCM = {preset.energy:g}",
        f"PhaseSpace:pTHatMin = {preset.pthat[0]:g}",
        f"PhaseSpace:pTHatMax = {preset.pthat[1]:g}",
        f"PartonLevel:MPI = {'on' if preset.multiparton else 'off'}",
        *tune.settings,
        *_ALWAYS,
        *process.settings,
    )
    return (*(Setting(text) for text in ours), *user)
