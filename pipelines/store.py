"""Temporary stand-in until the real one is merged."""

import json
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from cil.errors import DataError
from pipelines.storage import (
    check_writable,
    commit,
    remove_temporaries,
    replace_folder,
    temporary_beside,
    write_atomic,
)


class Store:
    def __init__(self, root):
        self.root = Path(root)

    def url(self, name=""):
        return str(self.root / name) if name else str(self.root)

    def read(self, name):
        return (self.root / name).read_bytes()

    def exists(self, name):
        return (self.root / name).exists()

    def size(self, name):
        p = self.root / name
        return p.stat().st_size if p.exists() else None

    def write(self, name, content):
        write_atomic(self.root / name, content)

    @contextmanager
    def scratch(self):
        self.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.root, prefix=".scratch.", suffix=".tmp") as d:
            yield Path(d)

    def put(self, local, name):
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        commit(local, self.root / name)

    def put_folder(self, local, name):
        t = temporary_beside(self.root / name)
        shutil.copytree(local, t)
        replace_folder(t, self.root / name)

    def list(self, prefix=""):
        base = self.root / prefix
        return (
            sorted(p.relative_to(self.root).as_posix() for p in base.rglob("*") if p.is_file())
            if base.is_dir()
            else []
        )

    def remove(self, name):
        (self.root / name).unlink(missing_ok=True)

    def local(self, name, cache):
        return self.root / name

    def local_folder(self, name, cache):
        return self.root / name

    def remove_temporaries(self):
        remove_temporaries(self.root)
        remove_temporaries(self.root / "shards")

    def check_writable(self, setting):
        check_writable(self.root, setting)


Location = Store | Path | str


def open_store(location):
    return location if isinstance(location, Store) else Store(location)


def read_json(store, name):
    try:
        return json.loads(store.read(name))
    except ValueError as error:
        raise DataError(
            f"{store.url(name)} is damaged, it is not JSON: {error}; delete it"
        ) from error


def write_json(store, name, value):
    store.write(
        name, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    )
