"""The cache of downloaded shards, with real processes that race for it, hold shards, and die."""

import hashlib
import os
import subprocess
import sys
import time

import pytest

from cil.errors import ConfigError, DataError
from pipelines.records import ShardEntry
from pipelines.shard_cache import ShardCache

SIZE = 1000


def content(number):
    return bytes([number]) * SIZE


def entry(number, **changes):
    sha256 = hashlib.sha256(content(number)).hexdigest()
    values = {"name": f"shard-{number:06d}", "generation": 0, "bucket": "b", "count": 1}
    return ShardEntry(**{**values, "sha256": sha256, "num_bytes": SIZE, **changes})


class Downloads:
    """Downloads shards by writing them; counts."""

    def __init__(self):
        self.numbers = []

    def of(self, number):
        def download(path):
            self.numbers.append(number)
            path.write_bytes(content(number))

        return download


@pytest.fixture
def downloads():
    return Downloads()


def shards(folder):
    return sorted(path.read_bytes()[0] for path in folder.glob("*.tar"))


def temporaries(folder):
    return list(folder.glob(".*.tmp"))


def use(cache, downloads, number):
    """Open a shard, look at it, and close it."""
    with cache.open(entry(number), downloads.of(number)) as file:
        assert file.read() == content(number)


def test_a_shard_is_downloaded_once(tmp_path, downloads):
    cache = ShardCache(tmp_path / "made", max_bytes=2 * SIZE)
    for number in (1, 2, 1, 2, 1):
        use(cache, downloads, number)
    use(ShardCache(tmp_path / "made"), downloads, 1)
    assert downloads.numbers == [1, 2]
    assert temporaries(tmp_path / "made") == []


def test_the_least_recently_used_shards_make_room(tmp_path, downloads):
    cache = ShardCache(tmp_path, max_bytes=3 * SIZE + 10)
    for number in (1, 2, 3, 1):
        use(cache, downloads, number)
    use(cache, downloads, 4)
    assert shards(tmp_path) == [1, 3, 4]
    use(cache, downloads, 5)
    assert shards(tmp_path) == [1, 4, 5]


def test_the_limit_holds_whatever_is_read(tmp_path, downloads):
    cache = ShardCache(tmp_path, max_bytes=3 * SIZE)
    for step in range(60):
        use(cache, downloads, step * 7 % 10)
        assert len(shards(tmp_path)) <= 3


def test_a_larger_shard_takes_the_room_of_several(tmp_path, downloads):
    cache = ShardCache(tmp_path, max_bytes=3 * SIZE)
    for number in (1, 2, 3):
        use(cache, downloads, number)
    large = entry(9, num_bytes=2 * SIZE, sha256="9" * 64)
    cache.open(large, lambda path: path.write_bytes(bytes(2 * SIZE))).close()
    assert shards(tmp_path) == [0, 3]


def test_an_open_shard_is_never_deleted(tmp_path, downloads):
    cache = ShardCache(tmp_path, max_bytes=2 * SIZE)
    with cache.open(entry(1), downloads.of(1)) as oldest:
        for number in (2, 3, 4):
            use(cache, downloads, number)
        assert shards(tmp_path) == [1, 4]
        with (
            cache.open(entry(4), downloads.of(4)),
            pytest.raises(ConfigError, match=r"of shards that are open.*raise it, or give"),
        ):
            use(cache, downloads, 5)
        assert oldest.read() == content(1)
        assert shards(tmp_path) == [1, 4]
        assert temporaries(tmp_path) == []
    use(cache, downloads, 5)
    assert 5 in shards(tmp_path)


def test_a_shard_larger_than_the_cache_is_refused(tmp_path, downloads):
    cache = ShardCache(tmp_path, max_bytes=SIZE - 1)
    with pytest.raises(ConfigError, match=r"read.cache_gib = .* is too small for the shard"):
        use(cache, downloads, 1)
    assert downloads.numbers == []


@pytest.mark.parametrize("error", [DataError("broken"), KeyboardInterrupt()])
def test_a_failed_download_leaves_nothing_and_is_tried_again(tmp_path, downloads, error):
    def fail(path):
        path.write_bytes(b"half")
        raise error

    cache = ShardCache(tmp_path, max_bytes=SIZE)
    with pytest.raises(type(error)):
        cache.open(entry(1), fail)
    assert shards(tmp_path) == []
    assert temporaries(tmp_path) == []
    use(cache, downloads, 1)


def test_a_file_of_another_size_is_downloaded_again(tmp_path, downloads):
    cache = ShardCache(tmp_path)
    use(cache, downloads, 1)
    (path,) = tmp_path.glob("*.tar")
    path.write_bytes(b"cut off")
    use(cache, downloads, 1)
    assert downloads.numbers == [1, 1]


def test_a_file_that_is_not_whole_is_downloaded_again(tmp_path, downloads):
    cache = ShardCache(tmp_path)
    use(cache, downloads, 1)
    (path,) = tmp_path.glob("*.tar")
    path.write_bytes(bytes(SIZE))

    def is_whole(file):
        found = file.read() == content(1)
        file.seek(0)
        return found

    for _ in range(2):
        with cache.open(entry(1), downloads.of(1), is_whole) as file:
            assert file.read() == content(1)
    assert downloads.numbers == [1, 1]


@pytest.mark.parametrize("sha256", ["../../etc/passwd", "", "A" * 64, "a" * 63, None])
def test_what_the_manifest_states_is_no_path(tmp_path, downloads, sha256):
    with pytest.raises((DataError, TypeError)):
        ShardCache(tmp_path).open(entry(1, sha256=sha256), downloads.of(1))
    assert list(tmp_path.iterdir()) == []


# -- several processes ----------------------------------------------------------------------------

PROGRAM = """
import sys, time
from pathlib import Path
from pipelines.records import ShardEntry
from pipelines.shard_cache import ShardCache

folder, how, sha256, max_bytes = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
entry = ShardEntry(
    name="shard", generation=0, bucket="b", count=1, sha256=sha256, num_bytes=1000
)

def download(path):
    with (folder / "log").open("a") as log:
        log.write("x")
    path.write_bytes(bytes([1]) * 400)
    (folder / "half").touch()
    time.sleep(60 if how == "hang" else 0.4)
    with path.open("ab") as file:
        file.write(bytes([1]) * 600)

print("ready", flush=True)
sys.stdin.readline()
file = ShardCache(folder / "cache", max_bytes=max_bytes).open(entry, download)
print(len(file.read()), flush=True)
if how == "hold":
    sys.stdin.readline()
"""


@pytest.fixture
def process(tmp_path):
    """Start a process that waits for a line, then opens shard 1."""
    started = []

    def start(how, max_bytes=SIZE):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), how, entry(1).sha256]
        started.append(
            subprocess.Popen(
                [*command, str(max_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        )
        assert started[-1].stdout.readline() == "ready\n"
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.communicate()


def tell(one):
    one.stdin.write("go\n")
    one.stdin.flush()


def wait_for(path):
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_processes_that_race_for_a_shard_download_it_once(tmp_path, process):
    racing = [process("race") for _ in range(4)]
    for one in racing:
        tell(one)
    assert [one.stdout.readline() for one in racing] == ["1000\n"] * 4
    assert (tmp_path / "log").read_text() == "x"
    assert shards(tmp_path / "cache") == [1]
    assert temporaries(tmp_path / "cache") == []


def test_a_shard_that_another_process_holds_is_not_deleted(tmp_path, process, downloads):
    holder = process("hold")
    tell(holder)
    assert holder.stdout.readline() == "1000\n"
    cache = ShardCache(tmp_path / "cache", max_bytes=SIZE)
    with pytest.raises(ConfigError, match="of shards that are open"):
        use(cache, downloads, 2)
    holder.kill()  # its lock ends with it
    holder.wait()
    use(cache, downloads, 2)
    assert shards(tmp_path / "cache") == [2]


def test_a_download_under_way_counts_and_that_of_a_dead_process_does_not(
    tmp_path, process, downloads
):
    half = process("hang")
    tell(half)
    wait_for(tmp_path / "half")
    cache = ShardCache(tmp_path / "cache", max_bytes=SIZE)
    with pytest.raises(ConfigError, match="does not fit"):
        use(cache, downloads, 2)
    assert len(temporaries(tmp_path / "cache")) == 1
    half.kill()
    half.wait()
    use(cache, downloads, 2)
    assert temporaries(tmp_path / "cache") == []
    use(cache, downloads, 1)
    assert shards(tmp_path / "cache") == [1]
