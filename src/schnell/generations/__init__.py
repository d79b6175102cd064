"""From an accepted request to a finished record."""

from schnell.generations.closing import Closings
from schnell.generations.history import History
from schnell.generations.records import Record, RecordPage, StoredImage
from schnell.generations.request import FEATURE, GenerationRequest
from schnell.generations.running import Admission, Runner, Running
from schnell.generations.service import Generations, Quote

__all__ = [
    "FEATURE",
    "Admission",
    "Closings",
    "GenerationRequest",
    "Generations",
    "History",
    "Quote",
    "Record",
    "RecordPage",
    "Runner",
    "Running",
    "StoredImage",
]
