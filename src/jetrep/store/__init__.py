"""Jets at rest: memory-mapped Arrow shards, their merge histories, and a manifest that says where they came from."""

from jetrep.store.manifest import Manifest
from jetrep.store.reader import Store
from jetrep.store.writer import StoreWriter

__all__ = ["Manifest", "Store", "StoreWriter"]
