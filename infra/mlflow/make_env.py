"""Write the files with secrets that compose.yaml reads, beside it, once.

    python infra/mlflow/make_env.py [FOLDER]

Out: postgres.env, minio.env, store.env and mlflow.env, readable by their owner only. Files that are
there are left alone, since the databases know their passwords. Git ignores them.
"""

import os
import secrets
import sys
from pathlib import Path


def main(folder: Path) -> int:
    """Write the files; returns the exit code."""
    names = ("postgres.env", "minio.env", "store.env", "mlflow.env")
    there = [name for name in names if (folder / name).exists()]
    if there:
        print(f"error: {', '.join(there)} in {folder}: delete them to start anew", file=sys.stderr)
        return 1
    database, root, user = (secrets.token_urlsafe(32) for _ in range(3))
    files = {
        "postgres.env": {"POSTGRES_PASSWORD": database},
        "minio.env": {"MINIO_ROOT_USER": "root", "MINIO_ROOT_PASSWORD": root},
        "store.env": {"AWS_ACCESS_KEY_ID": "mlflow", "AWS_SECRET_ACCESS_KEY": user},
        "mlflow.env": {
            "PGPASSWORD": database,
            "MLFLOW_AUTH_ADMIN_PASSWORD": secrets.token_urlsafe(24),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(32),
        },
    }
    for name, values in files.items():
        handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(f"{key}={value}\n" for key, value in values.items())
    print(f"wrote {', '.join(names)} in {folder}; the administrator's password is in mlflow.env")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent))
