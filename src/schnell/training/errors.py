"""What can go wrong while training."""

from schnell.errors import SchnellError


class TrainingError(SchnellError):
    """Training cannot start or go on."""

    code = "TRAINING_FAILED"
    status = 500


class TrainingDataError(TrainingError):
    """Training data is missing, or not what was pinned."""

    code = "TRAINING_DATA_INVALID"
    status = 500
