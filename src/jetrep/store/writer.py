"""Writing a store: cluster each jet once, write shards beside the target, and let it appear only when complete."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.physics.clustering import Algorithm, cluster
from jetrep.physics.fourvector import PX, PY
from jetrep.store.manifest import MANIFEST, Manifest, Shard, content_hash, file_hash
from jetrep.store.shard import write_shard

__all__ = ["StoreWriter"]

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StoreWriter:
    """Writes jets to a new store; use it in a ``with`` block.

    Shards go to a hidden folder beside ``out``. When the block ends normally, the manifest is written, everything is
    flushed to disk, and the folder is renamed to ``out``. When the block ends by an exception, Ctrl-C included, the
    hidden folder is deleted. A process that is killed leaves only the hidden folder, which is no store, and which the
    next writer to the same place removes.

    Jets without a merge history are sorted by descending pT and clustered. Jets that have one are stored as they are.

    Args:
        out: folder of the new store.
        classes: names of the labels; empty for unlabelled jets.
        provenance: where the jets come from, for the manifest; anything that JSON can hold.
        jets_per_shard: size of the shards.
        overwrite: replace a store that already stands at ``out``.
        algorithm: clustering algorithm.
        R: radius parameter of the clustering.

    Raises:
        InputError: if ``out`` exists and may not be replaced, or cannot be written.

    Example:
        >>> with StoreWriter(Path("top"), classes=("qcd", "top"), provenance={"files": ["train.h5"]}) as writer:
        ...     writer.write(jets)
        ...     writer.drop("empty", 3)
    """

    def __init__(
        self,
        out: Path,
        *,
        classes: tuple[str, ...] = (),
        provenance: dict[str, Any],
        jets_per_shard: int = 50_000,
        overwrite: bool = False,
        algorithm: Algorithm = "kt",
        R: float = 0.8,
    ) -> None:
        self.out = Path(out).absolute()
        self.classes, self.provenance, self.overwrite = tuple(classes), provenance, overwrite
        self.algorithm, self.R = algorithm, float(R)
        if jets_per_shard < 1:
            raise InputError(
                f"{jets_per_shard} jets per shard", field="jets_per_shard", remedy="give a positive number"
            )
        if len(set(self.classes)) != len(self.classes):
            raise InputError("two classes have the same name", field="classes", remedy="name each class once")
        self.jets_per_shard = jets_per_shard
        self.dropped: Counter[str] = Counter()
        self.manifest: Manifest | None = None
        self._shards: list[Shard] = []
        self._waiting: list[Jets] = []
        self._labels = np.zeros(len(self.classes), np.int64)
        mark = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._folder = self.out.with_name(f".{self.out.name}.writing-{mark}")
        self._old = self.out.with_name(f".{self.out.name}.replaced-{mark}")
        self._check_target()

    @property
    def n_jets(self) -> int:
        """Number of jets written so far."""
        return sum(shard.jets for shard in self._shards) + sum(len(jets) for jets in self._waiting)

    def __enter__(self) -> Self:
        with self._disk_errors(self.out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
            _tidy_up(self.out)
            self._check_target()
            self._folder.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def write(self, jets: Jets) -> None:
        """Add jets, in order.

        Args:
            jets: jets with at least one constituent each and finite momenta; labelled if the store has classes.

        Raises:
            InputError: if a jet is empty or not finite, labels are missing, superfluous or of other classes, or the
                disk is full.
        """
        jets = self._accept(jets)
        if jets.labels is not None:
            self._labels += np.bincount(jets.labels, minlength=len(self.classes))
        # Cluster piece by piece, so that progress is steady and the memory for sorting stays small.
        if jets.history is None and len(jets):
            jets = jets if _in_order(jets) else jets.sorted_by_pt()
            history = cluster(jets.p4, jets.offsets, algorithm=self.algorithm, R=self.R)
            jets = replace(jets, history=history)
        if len(jets):
            self._waiting.append(jets)
        while sum(len(part) for part in self._waiting) >= self.jets_per_shard:
            self._flush(self.jets_per_shard)

    def drop(self, reason: str, n: int) -> None:
        """Note that ``n`` jets were read but not kept."""
        if n < 0:
            raise ValueError("a negative number of jets cannot be dropped")
        if n:
            self.dropped[reason] += int(n)

    def _accept(self, jets: Jets) -> Jets:
        """The jets under the classes of this store, if they may be stored."""
        if (jets.labels is not None) != bool(self.classes):
            what = "the jets have no labels" if self.classes else "the jets have labels, the store has no classes"
            raise InputError(what, field="labels", remedy="label all jets and name the classes, or do neither")
        if jets.classes and self.classes and jets.classes != self.classes:
            raise InputError(
                f"the jets have classes {', '.join(jets.classes)}, the store {', '.join(self.classes)}",
                field="classes",
                remedy="give all jets the same classes",
            )
        empty = jets.counts == 0
        if empty.any():
            raise InputError("the jet has no constituents", jet=int(np.argmax(empty)), remedy="drop empty jets")
        # The sum is finite if and only if all terms are (they are far from the overflow of float64).
        finite = np.isfinite(jets.jet_p4).all(1)
        if not finite.all():
            raise InputError(
                "a momentum is not finite", jet=int(np.argmin(finite)), field="p4", remedy="drop such jets"
            )
        return jets.with_labels(jets.labels, self.classes)

    def _flush(self, n: int) -> None:
        """Write the first ``n`` waiting jets as the next shard."""
        jets = Jets.concatenate(self._waiting)
        part, rest = jets[:n], jets[n:]
        self._waiting = [rest] if len(rest) else []
        name = f"shard-{len(self._shards):05d}.arrow"
        path = self._folder / name
        with self._disk_errors(self.out / name):
            write_shard(path, part, algorithm=self.algorithm, R=self.R)
            _sync(path)
            size, digest = path.stat().st_size, file_hash(path)
        self._shards.append(Shard(name, len(part), len(part.p4), size, digest))

    def _finish(self) -> None:
        if self._waiting:
            self._flush(sum(len(part) for part in self._waiting))
        if not self._shards:
            dropped = ", ".join(f"{n} {reason}" for reason, n in self.dropped.items())
            raise InputError(
                f"no jets to store{f' (dropped: {dropped})' if dropped else ''}",
                file=self.out,
                remedy="check the input and the selection",
            )
        shards = tuple(self._shards)
        self.manifest = Manifest(
            jets=sum(shard.jets for shard in shards),
            constituents=sum(shard.constituents for shard in shards),
            classes=self.classes,
            label_counts=dict(zip(self.classes, self._labels.tolist(), strict=True)),
            dropped=dict(self.dropped),
            algorithm=self.algorithm,
            R=self.R,
            shards=shards,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            content_hash=content_hash(shards, self.classes, self.algorithm, self.R),
            provenance=self.provenance,
        )
        with self._disk_errors(self.out / MANIFEST):
            path = self._folder / MANIFEST
            path.write_text(self.manifest.to_json(), encoding="utf-8")
            _sync(path)
            _sync(self._folder)
            self._publish()

    def _publish(self) -> None:
        """Give the finished folder its name; an old store steps aside first, and returns if that fails."""
        self._check_target()
        try:
            if self.out.exists():
                self.out.rename(self._old)
            self._folder.rename(self.out)
        except BaseException:
            if self._old.exists() and not self.out.exists():
                self._old.rename(self.out)
            raise
        _sync(self.out.parent)
        shutil.rmtree(self._old, ignore_errors=True)

    def _check_target(self) -> None:
        if not self.out.exists() and not self.out.is_symlink():
            return
        if not self.out.is_dir() or self.out.is_symlink():
            raise InputError("is in the way", file=self.out, remedy="give another folder with --out")
        if not any(self.out.iterdir()):
            self.overwrite = True  # nothing is lost
        elif not (self.out / MANIFEST).is_file():
            raise InputError(
                "exists and is no store, so it will not be replaced",
                file=self.out,
                remedy="give another folder with --out",
            )
        elif not self.overwrite:
            raise InputError(
                "a store already stands there", file=self.out, remedy="give --overwrite or another folder with --out"
            )

    @contextmanager
    def _disk_errors(self, file: Path) -> Iterator[None]:
        """What the file system refuses, in the user's words."""
        try:
            yield
        except OSError as problem:
            if problem.errno in _NO_SPACE:
                raise InputError(
                    "the disk is full", file=file, remedy="free space or give a folder on another disk with --out"
                ) from problem
            raise InputError(
                f"cannot be written ({problem.strerror or problem})",
                file=file,
                remedy="give a folder that can be written with --out",
            ) from problem


def _in_order(jets: Jets) -> bool:
    """Whether pT falls within every jet, as in most data sets: looking is ten times faster than sorting."""
    pt2 = np.square(jets.p4[:, [PX, PY]], dtype=np.float64).sum(1)
    rises = pt2[1:] > pt2[:-1]
    rises[jets.offsets[1:-1] - 1] = False  # from the last of one jet to the first of the next
    return not rises.any()


def _sync(path: Path) -> None:
    """Flush a file or folder to disk (folders cannot be opened everywhere; there the rename has to suffice)."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _tidy_up(out: Path) -> None:
    """Clear away what killed writers to the same place left, if they ran on this machine and run no more.

    An old store that one of them had moved aside, and not yet replaced, gets its name back.
    """
    host = re.escape(socket.gethostname())
    mark = re.compile(rf"\.{re.escape(out.name)}\.(writing|replaced)-{host}-(\d+)-[0-9a-f]+")
    for folder in sorted(out.parent.iterdir()):
        match = mark.fullmatch(folder.name)
        if match is None or _alive(int(match[2])):
            continue
        if match[1] == "replaced" and not out.exists():
            folder.rename(out)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
