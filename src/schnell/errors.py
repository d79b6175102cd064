"""What can go wrong, in the domain's words. `schnell.web.errors` alone turns these into HTTP answers."""

from dataclasses import dataclass
from typing import ClassVar


class SchnellError(Exception):
    """A failure that the caller can understand: a stable code, an HTTP status, and a message that names the fix."""

    code: ClassVar[str] = "UNKNOWN_ERROR"
    status: ClassVar[int] = 500
    retry_helps: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One field of a request and what is wrong with its value."""

    field: str
    message: str


class FieldError(SchnellError):
    """One or more fields of a request are wrong or missing."""

    status = 400

    def __init__(self, *problems: FieldProblem) -> None:
        super().__init__("; ".join(f"{problem.field}: {problem.message}" for problem in problems))
        self.problems = problems


class InvalidFieldError(FieldError):
    """A field's value has the wrong type or lies outside its range."""

    code = "INVALID_FIELD"


class MissingFieldError(FieldError):
    """A required field is absent, null or empty."""

    code = "MISSING_REQUIRED_FIELDS"


class UnsupportedModelError(SchnellError):
    """The request names a model that this server does not serve."""

    code = "UNSUPPORTED_MODEL"
    status = 400


class UnsupportedFeatureError(SchnellError):
    """The request's `type` is not one that this server offers."""

    code = "UNKNOWN_ERROR"
    status = 400


class UnreadableBodyError(SchnellError):
    """The body is not JSON, or not a JSON object."""

    code = "INVALID_BODY"
    status = 400


class BodyTooLargeError(SchnellError):
    """The body is larger than this server accepts."""

    code = "BODY_TOO_LARGE"
    status = 413


class UnauthorizedError(SchnellError):
    """No API key came with the request, or none that is known and active."""

    code = "HTTP_EXCEPTION"
    status = 401


class NotFoundError(SchnellError):
    """What the request names does not exist, or is not this caller's to see."""

    code = "NOT_FOUND"
    status = 404


class InsufficientCreditsError(SchnellError):
    """The team, or its member, has fewer credits left than the request costs."""

    code = "INSUFFICIENT_CREDITS"
    status = 402


class ForbiddenError(SchnellError):
    """The key is known, but may not do this."""

    code = "FORBIDDEN"
    status = 403


class ConflictError(SchnellError):
    """What the request asks for contradicts what is already there."""

    code = "CONFLICT"
    status = 409


class IdempotencyConflictError(ConflictError):
    """The same `Idempotency-Key` came with another body."""

    code = "IDEMPOTENCY_CONFLICT"


class UnsafeContentError(SchnellError):
    """Every picture of the generation was flagged by the safety checker."""

    code = "NSFW_CONTENT"
    status = 400


class RateLimitedError(SchnellError):
    """The key has used up its `limit` requests for now. `retry_after` is in seconds."""

    code = "RATE_LIMITED"
    status = 429
    retry_helps = True

    def __init__(self, message: str, limit: int, retry_after: float) -> None:
        super().__init__(message)
        self.limit = limit
        self.retry_after = retry_after


class InterruptedServerError(SchnellError):
    """The server stopped while the generation ran."""

    code = "SERVER_STOPPED"
    status = 503
    retry_helps = True


class SafetyUnavailableError(SchnellError):
    """The safety checker could not be loaded."""

    code = "SAFETY_UNAVAILABLE"
    status = 503


class AssetError(SchnellError):
    """The store of pictures could not be read or written."""

    code = "STORAGE_FAILED"
    status = 503
    retry_helps = True


class DatabaseUnavailableError(SchnellError):
    """The database could not be reached, or took no write: locked, restarting, full. Nothing of it holds."""

    code = "DATABASE_UNAVAILABLE"
    status = 503
    retry_helps = True
    retry_after: ClassVar[float] = 2.0


class CommitUnknownError(DatabaseUnavailableError):
    """The database was lost while it committed: the transaction holds or does not, which only the database knows."""


class ClosingError(SchnellError):
    """A generation has ended, but its end could not be written yet. It will be: the server goes on trying."""

    code = "CLOSING"
    status = 503
    retry_helps = True
    retry_after: ClassVar[float] = 2.0


class ConfigurationError(SchnellError):
    """A setting has a value that cannot be used."""

    code = "INVALID_SETTING"


class GenerationCancelledError(SchnellError):
    """The generation was cancelled before it ended."""

    code = "CANCELLED"
    status = 409


class GenerationFailedError(SchnellError):
    """The engine could not draw this picture (out of memory, or values that are not numbers)."""

    code = "GENERATION_FAILED"
    status = 500
    retry_helps = True


class ServerBusyError(SchnellError):
    """The server's queue is full. `retry_after` is in seconds."""

    code = "QUEUE_FULL"
    status = 503
    retry_helps = True

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TeamBusyError(ServerBusyError):
    """The team has as many generations waiting as it may have."""

    code = "TEAM_QUEUE_FULL"
    status = 429


class ModelFolderError(SchnellError):
    """A model folder is missing, incomplete or not a FLUX model."""

    code = "MODEL_UNAVAILABLE"
    status = 503


class ModelDownloadError(SchnellError):
    """A model could not be fetched from the hub."""

    code = "MODEL_DOWNLOAD_FAILED"
    status = 502


class AdapterError(SchnellError):
    """A LoRA file is not understood, or does not fit the model."""

    code = "INVALID_LORA"
    status = 400


class TrainingError(SchnellError):
    """A training cannot start or go on: its pictures, options or saved state are not usable."""

    code = "TRAINING_FAILED"
    status = 400


class LoraSourceError(SchnellError):
    """A LoRA's source is not one that this server may fetch from: a refused host or address, or offline mode."""

    code = "LORA_SOURCE_REFUSED"
    status = 400


class LoraDownloadError(SchnellError):
    """A LoRA could not be fetched from where it lies: its address is wrong, or out of reach."""

    code = "LORA_DOWNLOAD_FAILED"
    status = 400
    retry_helps = True


class ImageMetadataError(SchnellError):
    """A picture carries no receipt that this version can repeat."""

    code = "NO_RECEIPT"
    status = 400


class BenchmarkError(SchnellError):
    """A benchmark's peer could not be run."""

    code = "BENCHMARK_FAILED"


class ClientGoneError(SchnellError):
    """The client closed the connection; nobody reads this answer."""

    code = "CLIENT_CLOSED_REQUEST"
    status = 499


class TrainingDataError(TrainingError):
    """Training data is missing, or not what was pinned."""

    code = "TRAINING_DATA_INVALID"
