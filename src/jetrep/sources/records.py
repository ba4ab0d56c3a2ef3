"""What the records of data sets say of their files: names, sizes, checksums and addresses."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from jetrep.errors import InputError
from jetrep.sources.cache import Known, check_name
from jetrep.sources.transfer import Http

__all__ = ["HOSTS", "address_of", "ask_mirror", "ask_record", "on_mirror", "page_of"]

HOSTS: dict[str, str] = {
    "zenodo": "https://zenodo.org",
    "fdr": "https://www.fdr.uni-hamburg.de",
    "huggingface": "https://huggingface.co",
}
"""Address of each kind of record."""

_CHANGED = "try again later; if it stays so, the record has changed, and jetrep must be told"
_MOST_PAGES = 1000


def page_of(record: str) -> str:
    """The address under which a record tells of its files."""
    kind, _, number = record.partition(":")
    if kind == "huggingface":
        return f"{HOSTS[kind]}/api/datasets/{number}/tree/main?recursive=true"
    return f"{HOSTS[kind]}/api/records/{number}"


def address_of(record: str, name: str) -> str:
    """The address of a file, if the record need not be asked for it."""
    kind, _, number = record.partition(":")
    if kind == "huggingface":
        return f"{HOSTS[kind]}/datasets/{number}/resolve/main/{quote(name)}"
    return f"{HOSTS[kind]}/{'records' if kind == 'zenodo' else 'record'}/{number}/files/{quote(name)}?download=1"


def on_mirror(mirror: str, dataset: str, name: str) -> str:
    """The address of a file on a mirror, which is laid out as the folder of all data sets."""
    return f"{mirror.rstrip('/')}/{quote(dataset)}/{quote(name)}"


def ask_record(record: str, http: Http) -> dict[str, Known]:
    """What a record says of its files, by name.

    Args:
        record: "zenodo:ID", "fdr:ID" or "huggingface:OWNER/NAME".
        http: how to ask.

    Raises:
        InputError: if it does not answer, or not as it should.
    """
    page = page_of(record)
    return _hugging_face(record, page, http) if record.startswith("huggingface:") else _zenodo(page, http)


def ask_mirror(mirror: str, dataset: str, http: Http) -> dict[str, Known]:
    """What a mirror says of its files, by name: the ``checksums.json`` of a folder into which jetrep downloaded.

    Raises:
        InputError: if it has no such file, or the file is damaged.
    """
    page = on_mirror(mirror, dataset, "checksums.json")
    answer, _ = http.json(page)
    if not isinstance(answer, dict):
        raise InputError("the answer is no list of checksums", file=page, remedy="check --mirror")
    known = {}
    for name, entry in answer.items():
        said = Known.read(entry, name=name, origin=page)
        known[check_name(name, origin=page)] = Known(said.checksum, said.bytes, None, page)
    return known


def _zenodo(page: str, http: Http) -> dict[str, Known]:
    """Zenodo, and servers of its kind: ``files`` with ``key``, ``size``, ``checksum`` and ``links.self``."""
    answer, _ = http.json(page)
    files = answer.get("files") if isinstance(answer, dict) else None
    if not isinstance(files, list) or not files:
        raise InputError("the record lists no files", file=page, remedy=_CHANGED)
    known = {}
    for entry in files:
        fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
        name = check_name(fields.get("key"), origin=page)
        links = fields.get("links")
        url = links.get("self") if isinstance(links, dict) else None
        said = {"checksum": fields.get("checksum"), "bytes": fields.get("size"), "url": url}
        known[name] = Known.read(said, name=name, origin=page)
    return known


def _hugging_face(record: str, page: str, http: Http) -> dict[str, Known]:
    """Hugging Face: pages of entries with ``path``, ``size``, and the SHA-256 of large files as ``lfs.oid``."""
    known: dict[str, Known] = {}
    origin, following = page, page
    for _ in range(_MOST_PAGES):
        answer, more = http.json(following)
        if not isinstance(answer, list):
            raise InputError("the answer is no list of files", file=following, remedy=_CHANGED)
        for entry in answer:
            lfs = entry.get("lfs") if isinstance(entry, dict) else None
            if not isinstance(lfs, dict):
                continue  # folders, and small files such as the card, which have no SHA-256
            path = check_name(entry.get("path"), origin=origin, folders=True)
            name = path.rpartition("/")[2]
            if name in known:
                raise InputError(f"the record holds two files of the name {name}", file=origin, remedy=_CHANGED)
            said = {
                "checksum": f"sha256:{lfs.get('oid')}",
                "bytes": lfs.get("size"),
                "url": address_of(record, path),
            }
            known[name] = Known.read(said, name=name, origin=origin)
        if not more or more == following:
            break
        following = more
    if not known:
        raise InputError("the record lists no files", file=origin, remedy=_CHANGED)
    return known
