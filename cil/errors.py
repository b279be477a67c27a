"""The error tree. Every error says what is wrong, what was given and what to do.

CilError
|-- ConfigError      a setting or an argument cannot be right; nothing was started   (ValueError)
|-- DataError        data does not fit: shapes, non-finite values, a broken file     (ValueError)
`-- StageError       a stage could not do all it was asked to do                     (RuntimeError)
"""

__all__ = ["CilError", "ConfigError", "DataError", "StageError"]


class CilError(Exception):
    """Base of every error that this project raises for a user to read."""


class ConfigError(CilError, ValueError):
    """A setting or an argument that cannot be right, found before any work starts."""


class DataError(CilError, ValueError):
    """Data that does not fit: wrong shapes, non-finite values, a damaged or foreign file."""


class StageError(CilError, RuntimeError):
    """A stage that could not do all that it was asked to do."""
