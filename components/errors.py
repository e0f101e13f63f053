"""Errors that a user can act on. The command line prints their message alone, never a traceback."""

from __future__ import annotations

import errno
import re

NO_PLACE = "no usable temporary directory"  # what Python says, in small letters, where no temporary file can be written
_LACKS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CREDENTIALS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s/:@?#]*):[^\s/?#]+@")
# In the address of a database all up to the @ is the password, as SQLAlchemy reads it.
_OF_DATABASES = re.compile(r"((?!https?:)\b[A-Za-z][A-Za-z0-9+.-]*://[^\s/:@?#]*):[^\s@]+@")
# A token alone, as of a hub or a repository; the name before a database's host, or of ssh, is none.
_TOKEN = re.compile(r"\b(https?://)[^\s/:@?#]+@", re.IGNORECASE)
_IN_QUERY = re.compile(r"([?&][\w.-]*(?:password|passwd|pwd|secret|token|api_?key|signature)=)[^\s&#'\"]+", re.IGNORECASE)


def masked(text: str) -> str:
    """`text` with `***` in the place of every password or token in an address, such as that of a tracking store."""
    with_hosts = _TOKEN.sub(r"\1***@", _OF_DATABASES.sub(r"\1:***@", _CREDENTIALS.sub(r"\1:***@", text)))
    return _IN_QUERY.sub(r"\1***", with_hosts)


class ScalingNoteError(Exception):
    """Base of all expected failures: the message says what was expected, what came, and what to do.

    `exit_code` is the exit status of the command that meets the error. A password in an address is masked, wherever the message goes.
    """

    exit_code = 1

    def __init__(self, *parts: object) -> None:
        super().__init__(*(masked(part) if isinstance(part, str) else part for part in parts))


class ConfigError(ScalingNoteError):
    """An unknown, missing or out-of-range setting."""

    exit_code = 2


class DataError(ScalingNoteError):
    """Input data that cannot be read or that breaks its contract."""

    exit_code = 3


class ModelError(ScalingNoteError):
    """A model that cannot be found, loaded or used as asked."""

    exit_code = 4


class CollapseError(ScalingNoteError):
    """Embeddings that no longer tell texts apart."""

    exit_code = 5


class ArtifactError(ScalingNoteError):
    """An artifact that is missing, incomplete or not what its manifest says."""

    exit_code = 6


class SpaceMismatch(ArtifactError):
    """An encoder and an index that belong to different vector spaces."""


class ProbeMismatch(ArtifactError):
    """An encoder whose vectors for the probe texts differ from those recorded with it."""


class PromotionError(ScalingNoteError):
    """An approval, promotion or rollback that the rules do not allow."""

    exit_code = 7


class ResourceError(ScalingNoteError):
    """A disk or memory that cannot hold what is asked for."""

    exit_code = 9


def lack_behind(error: BaseException) -> str | None:
    """What this process or machine lacked (files, memory, room) when `error` was raised, in the system's words; None for any other.

    Such an error says nothing of what was to be read, though a reader may have made one of its own of it.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError):
            return "no memory is left"
        if isinstance(seen, OSError) and (seen.errno in _LACKS or NO_PLACE in str(seen).lower()):
            return seen.strerror or str(seen)
        seen = seen.__cause__ or seen.__context__
    return None
