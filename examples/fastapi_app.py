"""Web service with FastAPI: uvicorn --app-dir examples fastapi_app:app.

    curl -F image=@cat.jpg localhost:8000/classify

Needs fastapi, python-multipart and uvicorn. RESNET50_SERVER names the model server.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, UploadFile
from fastapi.responses import JSONResponse

from resnet50_client import (
    AsyncClient,
    DeadlineExceededError,
    InvalidRequestError,
    OverloadedError,
    Resnet50Error,
    UnavailableError,
)

log = logging.getLogger(__name__)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    """Open one client for all requests, on the event loop that serves them."""
    async with AsyncClient.from_environment(timeout_s=10.0) as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/classify")
async def classify(request: Request, image: UploadFile) -> dict[str, Any]:
    """Classify the form's file `image`; a client that disconnects cancels nothing else."""
    client: AsyncClient = request.app.state.client
    result = await client.classify(image, top_k=3)
    return result.to_dict()


# HTTP statuses of errors that another image or another time may cure; all others are 500.
STATUSES: dict[type[Resnet50Error], int] = {
    InvalidRequestError: 422,  # InvalidImageError is one
    OverloadedError: 503,
    UnavailableError: 503,
    DeadlineExceededError: 503,
}


@app.exception_handler(Resnet50Error)
def respond(request: Request, error: Resnet50Error) -> JSONResponse:
    """Answer with JSON; users see the errors of their images only, the log has all others."""
    status = next((STATUSES[kind] for kind in STATUSES if isinstance(error, kind)), 500)
    if isinstance(error, InvalidRequestError):
        return JSONResponse({"detail": error.message, "field": error.field}, status)
    log.warning("request %s failed: %s", error.request_id, error)
    content = {"detail": "retry later" if status == 503 else "server error"}
    delay_s = getattr(error, "retry_after_s", None) or 1.0
    headers = {"Retry-After": str(math.ceil(delay_s))} if status == 503 else None
    return JSONResponse(content | {"request_id": error.request_id}, status, headers)
