"""The examples for web frameworks and task queues, against a real server."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from fastapi.testclient import TestClient

from resnet50_client import Client
from tests.support.examples import EXAMPLES, load_example
from tests.support.pictures import encode, photo_like

JPEG = encode(photo_like(64, 48), "JPEG")


@pytest.fixture
def environment(null_address, monkeypatch):
    monkeypatch.setenv("RESNET50_SERVER", null_address)


def check_answer(body: dict) -> None:
    """Check the JSON of a classification."""
    assert len(body["categories"]) == 3
    assert set(body["categories"][0]) >= {"label", "probability"}
    assert body["variant"]["name"] == "IMAGENET1K_V2"
    assert body["request_id"]


def test_fastapi_answers_uploads_with_json(environment):
    with TestClient(load_example("fastapi_app").app) as web:
        answer = web.post("/classify", files={"image": ("a.jpg", JPEG, "image/jpeg")})
        assert answer.status_code == 200, answer.text
        check_answer(answer.json())
        refused = web.post("/classify", files={"image": ("a.txt", b"text", "text/plain")})
        assert (refused.status_code, refused.json()["field"]) == (422, "image.encoded")
        assert "image" in refused.json()["detail"]


def test_fastapi_hides_errors_that_no_user_can_cure(environment, caplog):
    app = load_example("fastapi_app")
    with TestClient(app.app) as web:
        app.app.state.client = app.app.state.client.with_options(variant="none")
        answer = web.post("/classify", files={"image": ("a.jpg", JPEG)})
    assert answer.status_code == 500
    body = answer.json()
    assert set(body) == {"detail", "request_id"} and body["detail"] == "server error"
    assert f"request {body['request_id']} failed" in caplog.text


def test_fastapi_says_when_to_retry_without_a_server(monkeypatch):
    monkeypatch.setenv("RESNET50_SERVER", "127.0.0.1:1")
    app = load_example("fastapi_app")
    with TestClient(app.app) as web:
        app.app.state.client = app.app.state.client.with_options(timeout_s=0.3)
        answer = web.post("/classify", files={"image": ("a.jpg", JPEG)})
    assert answer.status_code == 503, answer.text
    assert answer.headers["retry-after"] == "1"


DJANGO = """
import concurrent.futures, json
from io import BytesIO
import django_view
from django.test import Client
from django.core.files.uploadedfile import SimpleUploadedFile

def post(content):
    answer = Client().post("/classify", {"image": SimpleUploadedFile("a.jpg", content)})
    return answer.status_code, answer.json()

with open("a.jpg", "rb") as file:
    jpeg = file.read()
with concurrent.futures.ThreadPoolExecutor(8) as threads:
    answers = list(threads.map(post, [jpeg] * 32))
large = post(jpeg + bytes(3 * 2**20))  # over the size that Django keeps in memory
print(json.dumps([*answers, large, post(b"text"), (Client().post("/classify").status_code, {})]))
"""


def test_django_view_serves_threads(environment, tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    ended = subprocess.run(
        [sys.executable, "-c", DJANGO],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    *answers, refused, missing = json.loads(ended.stdout)
    assert [status for status, _ in answers] == [200] * 33
    for _, body in answers:
        check_answer(body)
    assert refused[0] == 422 and refused[1]["field"] == "image.encoded"
    assert missing[0] == 400


# The queue is a folder, so that no broker is needed. The client is used before workers are forked.
QUEUE = """
    import os
    import celery_worker
    from celery_worker import app, classify

    os.makedirs("queue", exist_ok=True)
    app.conf.update(
        broker_url="filesystem://",
        broker_transport_options={"data_folder_in": "queue", "data_folder_out": "queue"},
        result_backend="file://" + os.path.abspath("."),
    )
    celery_worker.client.classify("a.jpg")
"""
TASKS = """
    import json
    from queued import classify

    tasks = [classify.delay("a.jpg") for _ in range(8)]
    wrong = classify.delay("wrong.jpg")
    results = [task.get(timeout=200) for task in tasks]
    error = wrong.get(timeout=200, propagate=False)
    print(json.dumps([results, type(error).__name__, str(error)]))
"""


def test_celery_prefork_workers_share_a_used_client(environment, tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    (tmp_path / "wrong.jpg").write_bytes(b"text")
    (tmp_path / "queued.py").write_text(textwrap.dedent(QUEUE))
    variables = os.environ | {"PYTHONPATH": f"{EXAMPLES}{os.pathsep}{tmp_path}"}
    command = ["-m", "celery", "-A", "queued", "worker", "--pool", "prefork", "--concurrency", "2"]
    with open(tmp_path / "log", "w") as log:
        worker = subprocess.Popen(
            [sys.executable, *command, "--without-gossip", "--without-mingle"],
            cwd=tmp_path,
            env=variables,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        ended = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(TASKS)],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            timeout=240,
        )
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait(timeout=60)
    assert ended.returncode == 0, ended.stderr + (tmp_path / "log").read_text()
    results, kind, text = json.loads(ended.stdout)
    for body in results:
        check_answer(body)
    assert kind == "InvalidImageError" and "image" in text


def test_threads_share_one_client(null_address):
    with Client(null_address) as client, concurrent.futures.ThreadPoolExecutor(16) as threads:
        results = list(threads.map(lambda k: client.classify(JPEG, top_k=k), range(1, 65)))
    assert [len(result) for result in results] == list(range(1, 65))
