"""How long `cil --help` takes, against an empty Python program on the same machine.

python benchmarks/cli_help.py
"""

import subprocess
import sys

from measure import paired, save


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    result = paired(lambda: run("-m", "pipelines", "--help"), lambda: run("-c", "pass"))
    save("cli_help", "cil --help takes less than 0.5 s: it imports only what it prints", result)
