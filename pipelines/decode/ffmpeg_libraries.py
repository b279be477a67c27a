"""FFmpeg's shared libraries for torchcodec, taken from the PyAV package.

torchcodec brings no FFmpeg and looks for libraries by their plain names (`libavcodec.so.62`).
PyAV's wheel has them under names with a hash. Links with the plain names make torchcodec use the
very libraries that PyAV uses, so that both decode alike and no FFmpeg need be installed.
"""

import re
from pathlib import Path

from cil.errors import ConfigError

__all__ = ["LIBRARY_PATH", "link_ffmpeg"]

LIBRARY_PATH = "LD_LIBRARY_PATH"
"""Variable that must hold the folder of the links when a process starts; later is too late."""
_HASHED = re.compile(r"(lib(?:av|sw)[a-z]+)-[0-9a-f]+\.so\.(\d+)")


def link_ffmpeg(folder: Path) -> Path:
    """Fill a folder with links to the FFmpeg libraries of PyAV, by their plain names.

    Args:
        folder: an existing folder; start a process with it in `LIBRARY_PATH`.

    Returns:
        The folder.

    Raises:
        ConfigError: PyAV was not installed from a wheel for Linux.
    """
    import av

    assert av.__file__ is not None
    libraries = Path(av.__file__).parents[1] / "av.libs"
    links = 0
    for library in sorted(libraries.glob("lib*.so.*")):
        if found := _HASHED.match(library.name):
            link = folder / f"{found[1]}.so.{found[2]}"
            link.unlink(missing_ok=True)
            link.symlink_to(library)
            links += 1
    if not links:
        raise ConfigError(f"there are no FFmpeg libraries in {libraries}; install FFmpeg itself")
    return folder
