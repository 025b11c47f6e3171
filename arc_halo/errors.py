"""The whole error tree: what went wrong, where, and how to put it right.

    ArcHaloError
    ├── ConfigurationError (ValueError)         a setting or URL that cannot be used
    │   └── BlobStoreNotConfigured              payloads are in an object store, and none is named
    ├── DatabaseError                           the server said no, or nothing at all
    │   ├── DatabaseUnavailable (ConnectionError)
    │   │   └── CommitUnanswered                whether the work is stored could not be found out
    │   ├── EmbeddedServerError (RuntimeError)  the server on this machine does not start
    │   ├── PoolExhausted (TimeoutError)        every pooled connection is in use
    │   ├── LockTimeout (TimeoutError)          somebody holds what we wait for
    │   ├── StatementTimeout (TimeoutError)
    │   ├── TransactionConflict                 serialization failure or deadlock: run the unit again
    │   ├── ReadOnlyDatabase (PermissionError)
    │   ├── PermissionDenied (PermissionError)  the role lacks a privilege
    │   ├── DiskFull (OSError)
    │   ├── ConstraintViolation (ValueError)    a named constraint refused a row
    │   └── SchemaNotAtHead                     code and database are at different revisions
    │       └── DataLossRefused                 a downgrade that would drop rows
    ├── BlobStoreError (OSError)                the object store does not answer, or refuses
    ├── HubError (OSError)                      a model hub, or its cache on this disk, does not do what it was asked
    │   ├── HubModelNotFound (LookupError)
    │   ├── HubAccessDenied (PermissionError)   gated, private, or a token that may not
    │   └── HubUnavailable (ConnectionError)    nobody answers, or the download was cut
    ├── FileNotWritten (OSError)                no space for a file on this machine, or no right to write it
    ├── FormatError (ValueError)                a file is not what it says
    │   ├── SafetensorsError
    │   ├── GGUFError
    │   ├── ModelFolderError                    a model folder's parts do not fit together
    │   ├── PickleRefused                       a format that runs code when read
    │   └── SpoolError                          a file of points on this machine's disk that makes no sense
    ├── InvalidName (ValueError)                a name that could not be referred to
    ├── CodecError (ValueError)                 bytes that a codec cannot take or give
    ├── CorruptionError                         stored bytes are not the bytes once written
    │   ├── CorruptChunk
    │   ├── DigestMismatch
    │   └── MissingChunk (LookupError)
    ├── TensorError (ValueError)                an array that cannot be stored as it is
    │   └── SliceError (IndexError)             rows outside the tensor
    ├── NotFound (LookupError)
    │   ├── CheckpointNotFound
    │   ├── ModelNotFound
    │   ├── TensorNotFound
    │   ├── TokenNotFound
    │   ├── RunNotFound
    │   ├── SessionNotFound
    │   ├── MetricNotFound
    │   ├── ReactorNotFound
    │   └── OperationNotFound
    ├── ModelExists (ValueError)                name and version are taken
    ├── MetricError (ValueError)                a metric, step or point that cannot be recorded
    ├── MetricsLost (RuntimeError)              figures of requests that could not be stored
    ├── RunInUse (RuntimeError)                 somebody trains it
    ├── AttemptLost (RuntimeError)              somebody else has taken the run over, or it has ended
    ├── CheckpointError (ValueError)            a state that cannot be saved or loaded as it is
    │   ├── CheckpointExists                    its attempt has one of that step and type
    │   ├── RanksMissing                        not every rank has brought its part
    │   └── StateMismatch                       its parameters are not those of the module or optimizer
    ├── CacheError (ValueError)                 something that cannot be cached, or not so
    │   ├── WeightsNotFinal                     a model without a digest of its weights
    │   └── UnknownCacheLayer (TypeError)       a layer of another library's cache that cannot be stored or restored
    ├── QuantizationError (ValueError)          a model that is quantised already, or is not
    ├── LineageError (ValueError)               a model that would be its own origin
    ├── MergeError (ValueError)                 models that cannot be merged so
    │   └── RecipeError                         a recipe that says something else than how to merge
    └── FusionError (ValueError)                a reactor, strategy or member that cannot be used as it is
        ├── MemberError (RuntimeError)          a member was asked, and gave no answer
        │   └── MemberTimeout (TimeoutError)
        ├── OperationFailed (RuntimeError)      an operation without an answer; it is stored nevertheless
        └── StateConflict (RuntimeError)        somebody else continued the same version of a state

A builtin in parentheses is a base, too: ``except LookupError`` catches what is not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uuid


class ArcHaloError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigurationError(ArcHaloError, ValueError):
    """A setting or URL that cannot be used."""


class BlobStoreNotConfigured(ConfigurationError):
    """Payloads are in an object store, and no URL says where that is."""


class DatabaseError(ArcHaloError):
    """The database refused or failed; ``sqlstate`` is PostgreSQL's five-character code where there is one."""

    def __init__(self, message: str, *, sqlstate: str | None = None, constraint: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.constraint = constraint


class DatabaseUnavailable(DatabaseError, ConnectionError):
    """No connection could be made, or the one in use was lost."""


class CommitUnanswered(DatabaseUnavailable):
    """The connection was lost during COMMIT, and nobody could be asked whether the work is stored."""


class EmbeddedServerError(DatabaseError, RuntimeError):
    """The PostgreSQL server on this machine does not start."""


class PoolExhausted(DatabaseError, TimeoutError):
    """Every pooled connection stayed in use for the whole pool timeout."""


class LockTimeout(DatabaseError, TimeoutError):
    """A lock was not granted within ``lock_timeout``."""


class StatementTimeout(DatabaseError, TimeoutError):
    """A statement was cancelled, by ``statement_timeout`` or by somebody."""


class TransactionConflict(DatabaseError):
    """Serialization failure or deadlock: the whole unit may be run again."""


class ReadOnlyDatabase(DatabaseError, PermissionError):
    """A write was sent to a read-only replica or transaction."""


class PermissionDenied(DatabaseError, PermissionError):
    """The connected role lacks a privilege."""


class DiskFull(DatabaseError, OSError):
    """The server has no space left."""


class ConstraintViolation(DatabaseError, ValueError):
    """A named constraint refused a row; ``constraint`` is its name."""

    @property
    def is_duplicate(self) -> bool:
        """A row with that key is there."""
        return self.sqlstate == "23505"

    @property
    def is_dangling(self) -> bool:
        """A foreign key leads, or would lead, to a row that is not there."""
        return self.sqlstate == "23503"


class SchemaNotAtHead(DatabaseError):
    """Code and database are at different schema revisions."""


class DataLossRefused(SchemaNotAtHead):
    """A downgrade would drop rows and nobody said that it may."""


class BlobStoreError(ArcHaloError, OSError):
    """The object store that payloads are in does not answer, or refuses."""


class HubError(ArcHaloError, OSError):
    """A model hub, or its cache on this disk, does not do what it was asked."""


class HubModelNotFound(HubError, LookupError):
    """The hub has no such repository, revision or file, or does not show it."""


class HubAccessDenied(HubError, PermissionError):
    """The repository is gated or private, or the token may not do this."""


class HubUnavailable(HubError, ConnectionError):
    """The hub does not answer, or the transfer was cut."""


class FileNotWritten(ArcHaloError, OSError):
    """A file on this machine could not be written: ``errno`` tells a full disk from a missing right."""

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class FormatError(ArcHaloError, ValueError):
    """A file is not what it says it is."""


class SafetensorsError(FormatError):
    """A safetensors file breaks the format."""


class GGUFError(FormatError):
    """A GGUF file breaks the format."""


class ModelFolderError(FormatError):
    """The parts of a model folder do not fit together."""


class PickleRefused(FormatError):
    """The file is a pickle, which runs code when it is read."""


class SpoolError(FormatError):
    """A file of points that waited for the database is not one, or was written by a newer version."""


class InvalidName(ArcHaloError, ValueError):
    """A name, version or alias that could not be referred to."""


class CodecError(ArcHaloError, ValueError):
    """Bytes that a codec cannot take or give."""


class CorruptionError(ArcHaloError):
    """Stored bytes are not the bytes that were written."""


class CorruptChunk(CorruptionError):
    """A chunk's payload, checksum or length was changed."""


class DigestMismatch(CorruptionError):
    """Bytes decode, but to something other than their digest names."""


class MissingChunk(CorruptionError, LookupError):
    """A tensor refers to a chunk that is not there."""


class TensorError(ArcHaloError, ValueError):
    """An array that cannot be stored as it is."""


class SliceError(TensorError, IndexError):
    """Rows outside the tensor, or a selection that is no slice."""


class NotFound(ArcHaloError, LookupError):
    """Nothing has that name."""


class CheckpointNotFound(NotFound):
    """There is no such checkpoint, or it was not published."""


class ModelNotFound(NotFound):
    """No model has that name, version or alias."""


class TensorNotFound(NotFound):
    """The model has no tensor of that name."""


class TokenNotFound(NotFound):
    """The model's vocabulary has no such token."""


class RunNotFound(NotFound):
    """No training run has that name or id."""


class SessionNotFound(NotFound):
    """No inference session has that name or id."""


class MetricNotFound(NotFound):
    """The run has recorded no metric of that name, scope and context."""


class ModelExists(ArcHaloError, ValueError):
    """A model of that name and version is already there."""


class MetricError(ArcHaloError, ValueError):
    """A metric's name, scope or context, or a point of it, that cannot be recorded."""


class MetricsLost(ArcHaloError, RuntimeError):
    """Figures of inference requests that the database did not take before their session ended."""


class RunInUse(ArcHaloError, RuntimeError):
    """A training run whose newest attempt is alive."""


class AttemptLost(ArcHaloError, RuntimeError):
    """A training attempt that was taken over or has ended, and may not write any more."""


class CheckpointError(ArcHaloError, ValueError):
    """A training state that cannot be saved, or a checkpoint that cannot be loaded, as it is."""


class CheckpointExists(CheckpointError):
    """The attempt has a checkpoint of that step and type."""


class RanksMissing(CheckpointError):
    """A checkpoint whose ranks have not all brought their part, or whose parts leave holes."""


class StateMismatch(CheckpointError):
    """A checkpoint whose parameters are not those of the module or optimizer it is to be restored into."""


class CacheError(ArcHaloError, ValueError):
    """Something that cannot be cached, or not in this way."""


class WeightsNotFinal(CacheError):
    """A model whose weights have no digest: nothing computed with them could be found again."""


class UnknownCacheLayer(CacheError, TypeError):
    """A layer of another library's cache whose state is not just keys and values of all tokens."""


class QuantizationError(ArcHaloError, ValueError):
    """A model that is quantised already, or one that is not."""


class LineageError(ArcHaloError, ValueError):
    """A model that would be made from itself."""


class MergeError(ArcHaloError, ValueError):
    """Models that cannot be merged as a recipe says; the message names tensors or parameters."""


class RecipeError(MergeError):
    """A recipe that says something else than how to merge; the message says where."""


class ReactorNotFound(NotFound):
    """No reactor has that name."""


class OperationNotFound(NotFound):
    """No operation has that id."""


class FusionError(ArcHaloError, ValueError):
    """A reactor, strategy or member that cannot be used as it is."""


class MemberError(FusionError, RuntimeError):
    """A member was asked, and gave no answer that could be used."""


class MemberTimeout(MemberError, TimeoutError):
    """A member did not answer in time."""


class OperationFailed(FusionError, RuntimeError):
    """An operation that came to no answer; ``operation_id`` is where it is stored nevertheless."""

    def __init__(self, message: str, operation_id: uuid.UUID | None = None, status: str = "failed") -> None:
        super().__init__(message)
        self.operation_id = operation_id
        self.status = status


class StateConflict(FusionError, RuntimeError):
    """Somebody else continued the same version of a reactor's state: read it again, and decide anew."""
