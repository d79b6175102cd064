"""Replicate's predictions API, with its webhooks.

The wire format is that of https://replicate.com/docs/reference/http. A prediction is a generation that goes on without
its client; its id is the record's.
"""

from schnell.web.dialects.replicate.errors import ERRORS, STATUSES, describe_error
from schnell.web.dialects.replicate.routes import router
from schnell.web.dialects.replicate.webhooks import resume_webhooks

__all__ = ["ERRORS", "STATUSES", "describe_error", "resume_webhooks", "router"]
