"""Coverage-guided fuzzing of configuration files by atheris: bytes to `cil train --dry-run`.

A crash is a traceback, an error that is none of ours, an exit code but 0 and 2, or an input that
takes longer than 20 s. Starts from the files in configs/ and from what was found before.

    pip install atheris        needs CPython 3.11 or 3.12
    python benchmarks/fuzz_settings.py [CORPUS] [-max_total_time=300]    options of libFuzzer
"""

import contextlib
import io
import sys
import tempfile
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

with atheris.instrument_imports(include=["yaml", "pipelines.yaml_file", "pipelines.config"]):
    import yaml  # noqa: F401

    from pipelines import config, yaml_file  # noqa: F401
    from pipelines.__main__ import _main

FILE = Path(tempfile.mkdtemp(prefix="cil-fuzz-")) / "run.yaml"


def one_input(content: bytes) -> None:
    FILE.write_bytes(content)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = _main(["train", "--config", str(FILE), "--dry-run"])
    said = err.getvalue()
    if code not in (0, 2) or "error: unexpected " in said or "Traceback" in said:
        raise RuntimeError(f"exit code {code}: {said[-2000:]}")


def main() -> None:
    corpus = Path(tempfile.mkdtemp(prefix="cil-corpus-"))
    for path in ROOT.glob("configs/*.yaml"):
        (corpus / path.name).write_bytes(path.read_bytes())
    options = ["-timeout=20", "-rss_limit_mb=6000", "-max_len=4096"]
    atheris.Setup([sys.argv[0], str(corpus), *options, *sys.argv[1:]], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
