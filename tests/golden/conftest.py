"""Reference numbers made by running the authors' released code; see docs/method.md."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden() -> Path:
    root = os.environ.get("CIL_REFERENCE_DATA")
    if not root:
        pytest.skip("set CIL_REFERENCE_DATA to the folder that holds golden/ to run these tests")
    folder = Path(root) / "golden"
    if not folder.is_dir():
        pytest.fail(f"CIL_REFERENCE_DATA={root} has no folder golden/")
    return folder
