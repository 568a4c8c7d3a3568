"""Celery tasks in prefork workers: celery --workdir examples -A celery_worker worker.

    >>> from celery_worker import classify
    >>> classify.delay("/data/cat.jpg").get()["categories"][0]["label"]

Needs celery. RESNET50_SERVER names the model server, CELERY_BROKER_URL and CELERY_RESULT_BACKEND
the queue; workers read the paths, so they need the same disk.
"""

from __future__ import annotations

from typing import Any

from celery import Celery

from resnet50_client import Client, OverloadedError, UnavailableError

app = Celery("photos")

# Shared by all tasks of a process. Worker processes are forks of this one: each makes connections
# of its own, even if the client was used before the fork.
client = Client.from_environment(priority="bulk", timeout_s=30.0)


@app.task(
    autoretry_for=(OverloadedError, UnavailableError, TimeoutError),
    retry_backoff=True,
    max_retries=5,
)
def classify(path: str) -> dict[str, Any]:
    """Classify an image file; an invalid one fails the task at once, with InvalidImageError."""
    return client.classify(path, top_k=3).to_dict()
