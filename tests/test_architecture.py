import ast
from pathlib import Path

import jetrep

ROOT = Path(jetrep.__file__).parent
# Each room may import itself and those before it.
ROOMS = (
    *("errors", "progress", "machine", "report", "physics", "jets", "sources", "store", "features", "views"),
    *("encoders", "model", "objectives", "training", "evaluation", "studies", "cli"),
)


def imported_rooms(file: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("jetrep."):
            rooms.add(node.module.split(".")[1])
        if isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("jetrep.")}
    return rooms


def room_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = [file for file in ROOT.rglob("*.py") if room_of(file) not in ("__init__", "__main__", "recipes")]


def test_every_room_is_in_the_list():
    assert {room_of(file) for file in FILES} == set(ROOMS)


def test_imports_point_only_to_rooms_above():
    wrong = [
        f"{file.relative_to(ROOT)} imports {room}"
        for file in FILES
        for room in imported_rooms(file)
        if ROOMS.index(room) > ROOMS.index(room_of(file))
    ]
    assert not wrong


def test_only_one_room_imports_each_heavy_library():
    owners = {"lightning": "training", "matplotlib": "report", "pythia8mc": "sources", "jsonargparse": None}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in names:
                owner = owners.get(name.split(".")[0])
                assert owner in (None, room_of(file)), f"{file.relative_to(ROOT)} imports {name}"


def test_files_stay_readable():
    long = {str(f.relative_to(ROOT)): n for f in FILES if (n := len(f.read_text().splitlines())) > 420}
    assert not long
