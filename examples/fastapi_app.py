"""Web service with FastAPI: uvicorn --app-dir examples fastapi_app:app.

    curl -F image=@cat.jpg localhost:8000/classify

Needs fastapi, python-multipart and uvicorn. RESNET50_SERVER names the model server.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, UploadFile
from fastapi.responses import JSONResponse

from resnet50_client import (
    AsyncClient,
    DeadlineExceededError,
    InvalidImageError,
    OverloadedError,
    UnavailableError,
)


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


@app.exception_handler(InvalidImageError)
def refuse(request: Request, error: InvalidImageError) -> JSONResponse:
    """Answer 422: another image is needed."""
    return JSONResponse({"detail": error.message, "field": error.field}, 422)


@app.exception_handler(OverloadedError)
@app.exception_handler(UnavailableError)
@app.exception_handler(DeadlineExceededError)
def postpone(request: Request, error: Exception) -> JSONResponse:
    """Answer 503: the same image may succeed later."""
    delay_s = getattr(error, "retry_after_s", None) or 1.0
    headers = {"Retry-After": str(math.ceil(delay_s))}
    return JSONResponse({"detail": str(error)}, 503, headers)
