"""Contents of the log, and secrets that it never has."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import random
import re

import grpc
import pytest

from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc
from resnet50_client import Client, InvalidImageError
from resnet50_server.api.grpc_logs import is_not_late_response, on_loop_exception
from resnet50_server.telemetry import logs
from tests.support.pictures import encode, picture
from tests.support.scrape import Scrape, fetch
from tests.support.serving import connected, engines_of, server_processes, serving

PNG = encode(picture())
NULL = ("--variants", "IMAGENET1K_V2", "--engine", "null")
REQUEST = inference_pb2.ClassifyRequest(image=image_pb2.Image(encoded=PNG))
SECRETS = {
    "authorization": "Bearer s3cr3t-token",
    "cookie": "s3cr3t-cookie",
    "x-token-bin": b"s3cr3t-x",
}


def test_debug_has_a_line_for_each_request_and_no_secret():
    with server_processes() as start:
        server = start(*NULL, "--log-format", "json", "--log-level", "debug")
        address = server.wait_until_listening()
        with grpc.insecure_channel(address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            metadata = [("x-request-id", "mine-1"), *SECRETS.items()]
            stub.Classify(REQUEST, metadata=metadata)
            with pytest.raises(grpc.RpcError):
                stub.Classify(
                    inference_pb2.ClassifyRequest(image=image_pb2.Image(encoded=b"none")),
                    metadata=[("x-request-id", "mine-2"), *SECRETS.items()],
                )
        status, written = server.terminate()
    assert status == 0
    assert "s3cr3t" not in written
    records = [json.loads(line) for line in written.splitlines()]
    for record in records:
        assert {"time", "level", "logger", "message"} <= record.keys()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["time"])
    ended = [record for record in records if "code" in record]
    assert [
        (one["level"], one["request_id"], one["method"], one["variant"], one["caller"], one["code"])
        for one in ended
    ] == [
        ("DEBUG", "mine-1", "Classify", "IMAGENET1K_V2", "address:127.0.0.1", "OK"),
        ("DEBUG", "mine-2", "Classify", ANY, "address:127.0.0.1", "INVALID_ARGUMENT"),
    ]
    assert all(0 < one["duration_s"] < 60 for one in ended)
    assert not [record for record in records if record["logger"].startswith("PIL")]
    # But for gRPC, which says when it was cancelled, nothing else is said of a request.
    assert {one["logger"] for one in records if "request_id" in one} == {
        "resnet50_server.telemetry.logs"
    }


class _Any:
    def __eq__(self, _: object) -> bool:
        return True


ANY = _Any()


async def test_failed_requests_log_nothing_at_info():
    """Not even by gRPC, whose reply may meet a deadline that has passed in that very moment."""
    with server_processes() as start:
        server = start(*NULL, "--metrics-listen", "127.0.0.1:0")
        address = server.wait_until_listening()
        metrics = server.process.stdout.readline().split()[-1] + "/metrics"
        loop, draw = asyncio.get_running_loop(), random.Random(0)
        async with grpc.aio.insecure_channel(address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            started = loop.time()
            for _ in range(20):
                await stub.Classify(REQUEST)
            typical_s = (loop.time() - started) / 20

            async def call() -> None:
                for _ in range(100):
                    # Around the time that an answer takes.
                    try:
                        await stub.Classify(REQUEST, timeout=typical_s * draw.uniform(0.3, 8))
                    except grpc.RpcError as error:
                        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED

            await asyncio.gather(*(call() for _ in range(8)))
        with Client(address) as client, pytest.raises(InvalidImageError):
            client.classify(b"no image")
        counted = Scrape(fetch(metrics)[1]).of("resnet50_requests_total", "code")
        status, written = server.terminate()
    assert status == 0
    assert counted["OK"] >= 20
    lines = [line.split(" ", 2)[2] for line in written.splitlines()]
    assert {line.split(" ")[0] for line in lines} == {"INFO"}, written
    assert len(lines) < 10, written  # of the start and the stop


async def test_task_errors_are_logged_except_late_replies(caplog):
    caplog.set_level("DEBUG")
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(on_loop_exception)
    for error in (grpc.aio.InternalError('Failed "execute_batch"'), ValueError("a server error")):
        loop.call_exception_handler(
            {"message": "Task exception was never retrieved", "exception": error}
        )
    late, fault = caplog.records
    assert (late.levelname, late.exc_info) == ("DEBUG", None)
    assert "execute_batch" in late.message
    assert fault.levelname == "ERROR"
    assert "Task exception was never retrieved" in fault.message
    assert "a server error" in str(fault.exc_info[1])


def test_late_reply_is_kept_out_of_the_grpc_log():
    error, fault = grpc.aio.InternalError('Failed "execute_batch"'), ValueError("a server error")
    told = []
    for one in (error, fault):
        record = logging.LogRecord("x", logging.ERROR, "", 0, "m", (), (type(one), one, None))
        told.append(is_not_late_response(record))
    assert told == [False, True]


async def test_engines_fault_is_logged_for_the_frame_that_met_it(caplog):
    async with serving() as server, connected(server) as channel:
        (engine,) = engines_of(server)

        def fail(*_):
            raise RuntimeError("out of order")

        engine.run = fail
        request = inference_pb2.ClassifyStreamRequest
        frames = [
            request(config=inference_pb2.ClassifyStreamConfig()),
            request(frame=inference_pb2.Frame(frame_id=7, image=REQUEST.image)),
        ]
        stream = inference_pb2_grpc.InferenceServiceStub(channel).ClassifyStream(
            iter(frames), metadata=[("x-request-id", "mine")]
        )
        (reply,) = [reply async for reply in stream]
    assert "log has the reason under request id mine" in reply.error.message
    (fault,) = [record for record in caplog.records if "stream mine" in record.getMessage()]
    assert (fault.levelname, fault.getMessage()) == ("ERROR", "frame 7 of stream mine failed")
    assert "EngineFailed" in caplog.text
    assert "RuntimeError: out of order" in str(fault.exc_text)


async def test_fault_is_logged_with_the_call_that_met_it():
    written = io.StringIO()
    handler = logs.handler("json", written)
    async with serving() as server, connected(server) as channel:
        (engine,) = engines_of(server)

        def fail(*_):
            raise RuntimeError("out of order")

        engine.run = fail
        logging.getLogger().addHandler(handler)
        try:
            with pytest.raises(grpc.RpcError):
                await inference_pb2_grpc.InferenceServiceStub(channel).Classify(
                    REQUEST, metadata=[("x-request-id", "mine")]
                )
        finally:
            logging.getLogger().removeHandler(handler)
            handler.close()
    records = [json.loads(line) for line in written.getvalue().splitlines()]
    (fault,) = [record for record in records if "request_id" in record]
    assert fault["message"] == "request mine failed"
    assert fault["level"] == "ERROR"
    fields = ("request_id", "method", "variant", "caller")
    assert [fault[name] for name in fields] == [
        *("mine", "Classify", "IMAGENET1K_V2", "address:127.0.0.1")
    ]
    assert "RuntimeError: out of order" in fault["exc_info"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_line_with_a_very_long_text_is_cut_and_says_so(form):
    written = io.StringIO()
    handler = logs.handler(form, written)
    record = logging.LogRecord(
        "test", logging.WARNING, "here", 1, "%s is wrong", ("é" * 10**6,), None
    )
    handler.handle(record)
    handler.close()
    (line,) = written.getvalue().splitlines()
    assert len(line) < 50_000
    assert "(1000009 characters in all)" in line
