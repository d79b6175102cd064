"""Every failure that is expected, as one class a cause: those that callers meet, operators, and users of the command.

Lower layers raise these and know no HTTP; `schnell.web.errors` alone turns them into responses. docs/errors.md lists
the codes with their causes and fixes.
"""

from dataclasses import dataclass
from typing import ClassVar, Final

#: What is said of a text that PostgreSQL could not store.
NO_NUL: Final = r"must not hold the character NUL (\u0000), which cannot be stored: leave it out"


class SchnellError(Exception):
    """A failure with a cause that its reader can act on.

    `code` is part of the API and does not change, `status` is the HTTP status, `retry_helps` whether the same request
    may succeed later, `message` names the cause and, where there is one, the fix. `is_wrong_value` is whether a value
    that was typed or set is at fault, which the command tells by its exit code.
    """

    code: ClassVar[str] = "UNKNOWN_ERROR"
    status: ClassVar[int] = 500
    retry_helps: ClassVar[bool] = False
    is_wrong_value: ClassVar[bool] = False

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
    is_wrong_value = True

    def __init__(self, *problems: FieldProblem) -> None:
        super().__init__("; ".join(f"{problem.field}: {problem.message}" for problem in problems))
        self.problems = problems


# Met by callers: the request is not accepted.


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

    # the code that the reference API gives for it
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
    """The request has no API key, or one that is unknown, deleted, expired or inactive."""

    # the code that the reference API gives for it
    code = "HTTP_EXCEPTION"
    status = 401


class SignInError(SchnellError):
    """A sign-in with the OpenID provider did not succeed: it does not answer, refused, or took too long."""

    code = "SIGN_IN_FAILED"
    status = 400
    retry_helps = True


class ForbiddenError(SchnellError):
    """The key is valid, but lacks the scope or the team the permission; or a link's signature is wrong or expired."""

    code = "FORBIDDEN"
    status = 403


class NotFoundError(SchnellError):
    """What the request names does not exist, or belongs to another team: the two look alike on purpose."""

    code = "NOT_FOUND"
    status = 404
    is_wrong_value = True


class ConflictError(SchnellError):
    """The request contradicts what is stored, such as a name that is taken."""

    code = "CONFLICT"
    status = 409


class IdempotencyConflictError(ConflictError):
    """The same `Idempotency-Key` came with another body."""

    code = "IDEMPOTENCY_CONFLICT"


class InsufficientCreditsError(SchnellError):
    """The team, or its member, has fewer credits left than the request costs."""

    code = "INSUFFICIENT_CREDITS"
    status = 402


class RateLimitedError(SchnellError):
    """The key has used up its `limit` of requests for now; the next is accepted in `retry_after` seconds."""

    code = "RATE_LIMITED"
    status = 429
    retry_helps = True

    def __init__(self, message: str, limit: int, retry_after: float) -> None:
        super().__init__(message)
        self.limit = limit
        self.retry_after = retry_after


class ServerBusyError(SchnellError):
    """The server's queue is full, or the server is stopping. `retry_after` is a guess in seconds."""

    code = "QUEUE_FULL"
    status = 503
    retry_helps = True

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TeamBusyError(ServerBusyError):
    """The team has as many generations under way as it may have."""

    code = "TEAM_QUEUE_FULL"
    status = 429


class ModelBusyError(ServerBusyError):
    """An accepted picture found no memory beside those drawn with it, or the device that drew it failed."""

    code = "MODEL_BUSY"


class PictureTooLargeError(SchnellError):
    """A picture of this size, with these LoRAs, needs more memory than the device has, even alone."""

    code = "PICTURE_TOO_LARGE"
    status = 400


# Met by callers: a LoRA that they name.


class AdapterError(SchnellError):
    """A LoRA file is not understood, or does not fit the model."""

    code = "INVALID_LORA"
    status = 400


class LoraSourceError(SchnellError):
    """This server may not fetch from where a LoRA lies: the host or address is refused, or the server is offline."""

    code = "LORA_SOURCE_REFUSED"
    status = 400


class LoraDownloadError(SchnellError):
    """A LoRA could not be fetched: its address is wrong, or does not answer."""

    code = "LORA_DOWNLOAD_FAILED"
    status = 400
    retry_helps = True


# Met by callers: an accepted generation ends without a picture.


class UnsafeContentError(SchnellError):
    """Every picture of the generation was flagged by the safety checker."""

    code = "NSFW_CONTENT"
    status = 400


class GenerationCancelledError(SchnellError):
    """The generation was cancelled before it ended."""

    code = "CANCELLED"
    status = 409


class GenerationFailedError(SchnellError):
    """The engine could not draw this picture: a kernel failed, or its latents are not finite."""

    code = "GENERATION_FAILED"
    status = 500
    retry_helps = True


class InterruptedServerError(SchnellError):
    """The server stopped while the generation ran."""

    code = "SERVER_STOPPED"
    status = 503
    retry_helps = True


class ClosingError(SchnellError):
    """A generation has ended, but its end could not be written yet. It will be: the server goes on trying."""

    code = "CLOSING"
    status = 503
    retry_helps = True
    retry_after: ClassVar[float] = 2.0


class ClientGoneError(SchnellError):
    """The client closed the connection before the answer; seen in logs only."""

    code = "CLIENT_CLOSED_REQUEST"
    status = 499

    def __init__(self, message: str = "the client closed the connection") -> None:
        super().__init__(message)


# Met by operators: the server cannot start, or cannot reach what it needs.


class ConfigurationError(SchnellError):
    """A setting has a value that cannot be used."""

    code = "INVALID_SETTING"
    is_wrong_value = True


class StartError(ConfigurationError):
    """A server cannot start, or go on, for what is around it: its port or its data are in use, its cluster is away."""

    is_wrong_value = False


class BackupError(SchnellError):
    """A backup cannot be made, read or put back."""

    code = "BACKUP_FAILED"


class CredentialsError(SchnellError):
    """The key or the certificates that sign pictures cannot be used: expired, unreadable, or not a pair."""

    code = "CREDENTIALS_UNUSABLE"
    status = 503


class ModelFolderError(SchnellError):
    """A model folder is missing, incomplete or not a FLUX model."""

    code = "MODEL_UNAVAILABLE"
    status = 503


class ModelChoiceError(ModelFolderError):
    """The model or the device that was named is none that there is."""

    is_wrong_value = True


class ModelTooLargeError(SchnellError):
    """A model does not fit into the memory of the device that it was to run on."""

    code = "MODEL_TOO_LARGE"
    status = 503


class SafetyUnavailableError(SchnellError):
    """The safety checker could not be loaded."""

    code = "SAFETY_UNAVAILABLE"
    status = 503


class AssetError(SchnellError):
    """The store of pictures (a folder or an S3 bucket) could not be read or written."""

    code = "STORAGE_FAILED"
    status = 503
    retry_helps = True
    retry_after: ClassVar[float] = 5.0


class DiskError(SchnellError):
    """The disk of the data folder is full, or cannot be read or written."""

    code = "DISK_UNAVAILABLE"
    status = 503
    retry_helps = True
    retry_after: ClassVar[float] = 30.0


class DatabaseUnavailableError(SchnellError):
    """The database could not be reached, or took no write: locked, restarting, full. Nothing of it holds."""

    code = "DATABASE_UNAVAILABLE"
    status = 503
    retry_helps = True
    retry_after: ClassVar[float] = 2.0


class CommitUnknownError(DatabaseUnavailableError):
    """The database was lost while it committed: the transaction holds or does not, which only the database knows."""


# Met on the command line alone.


class ModelDownloadError(SchnellError):
    """A model could not be fetched from the hub."""

    code = "MODEL_DOWNLOAD_FAILED"
    status = 502


class ImageMetadataError(SchnellError):
    """A picture carries no receipt that this version can repeat."""

    code = "NO_RECEIPT"
    status = 400


class UnreadablePictureError(ImageMetadataError):
    """The file that is to be checked is no picture of a known kind, is damaged, or takes too much memory or time."""

    code = "UNREADABLE_PICTURE"


class TrainingError(SchnellError):
    """A training cannot start or go on: its pictures, options or saved state are not usable."""

    code = "TRAINING_FAILED"


class TrainingOptionError(TrainingError):
    """An option of a training has a value that cannot be used."""

    is_wrong_value = True


class TrainingDataError(TrainingError):
    """Data of the embedded model's training cannot be fetched, or its SHA-256 is not the pinned one."""

    code = "TRAINING_DATA_INVALID"


class BenchmarkError(SchnellError):
    """What a benchmark measures, or its peer, could not be run."""

    code = "BENCHMARK_FAILED"
