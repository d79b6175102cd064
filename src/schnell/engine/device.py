import torch

from schnell.errors import ModelFolderError


def choose_device(wanted: str = "auto") -> torch.device:
    """The device to draw on: `auto` takes a GPU if torch sees one; or a torch device name such as `cuda:1`.

    Raises:
        ModelFolderError: the device is unknown, or not on this machine.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ModelFolderError(f"device must be auto, cpu, cuda or cuda:N, got {wanted!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelFolderError(f"device {wanted} was asked for, but torch sees no GPU")
    return device
