"""What a server exports at one moment: fetched over HTTP, in Prometheus's text format."""

from __future__ import annotations

import http.client
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

Labels = frozenset[tuple[str, str]]
Series = Mapping[str, Mapping[Labels, float]]

METRICS = "RESNET50_METRICS"  # of the environment
DEFAULT_METRICS = "http://127.0.0.1:9464/metrics"
# A server exports some 100 KB; whatever is longer is something else.
MOST_BYTES = 16 * 2**20
_CHUNK_BYTES = 2**16
_OURS = ("resnet50_", "process_")
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}


class ScrapeError(Exception):
    """A server did not answer, or with something else than metrics; says which."""


@dataclass(frozen=True)
class Endpoint:
    """Where a server exports its metrics.

    Attributes:
        name: What the view calls it: the URL without what all have in common.
        url: Where to ask.
    """

    name: str
    url: str

    @classmethod
    def of(cls, text: str) -> Endpoint:
        """Read HOST:PORT or a URL; without a path it is /metrics.

        Raises:
            ValueError: It is neither.
        """
        wrong = ValueError(f"--metrics: {text!r} is neither HOST:PORT nor an http(s) URL")
        try:
            url = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
            port = url.port
        except ValueError as error:
            raise wrong from error
        if url.username is not None or url.password is not None:
            raise ValueError("--metrics: a URL must not hold a user or a password")
        if url.scheme not in ("http", "https") or not url.hostname:
            raise wrong
        if "://" not in text and port is None:
            raise ValueError(f"--metrics: {text!r} lacks a port: HOST:PORT, as in 127.0.0.1:9464")
        url = url._replace(path=url.path if url.path.strip("/") else "/metrics", fragment="")
        name = url.geturl().removeprefix("http://")
        return cls(name if url.query else name.removesuffix("/metrics"), url.geturl())


@dataclass(frozen=True)
class Scrape:
    """All series of ours and of the process, by name and labels.

    Attributes:
        time_s: When it was taken, on the monotonic clock, in seconds.
        series: Values; a family without series yet is there, and empty.
    """

    time_s: float
    series: Series


def fetch(endpoint: Endpoint, timeout_s: float) -> Scrape:
    """Ask a server for its metrics; blocks for `timeout_s` seconds at most, but for DNS.

    Raises:
        ScrapeError: It does not answer, or not with metrics of this project.
    """
    began_s = time.monotonic()
    try:
        text = _get(endpoint.url, began_s + timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        raise ScrapeError(f"answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise ScrapeError(_reason(error.reason, timeout_s)) from error
    except (http.client.HTTPException, ConnectionResetError) as error:
        # Where HTTP/2 is spoken, say: the port of gRPC.
        raise ScrapeError("does not answer in HTTP/1.1; is it the port of metrics?") from error
    except (OSError, ValueError) as error:
        raise ScrapeError(_reason(error, timeout_s)) from error
    # The server counted somewhere between the question and its answer.
    time_s = (began_s + time.monotonic()) / 2
    try:
        series = parse(text)
    except (ValueError, KeyError, IndexError) as error:
        raise ScrapeError("answers, but not with Prometheus's text format") from error
    if not any(name.startswith("resnet50_") for name in series):
        raise ScrapeError("answers, but exports no resnet50_ metrics; is it another program?")
    return Scrape(time_s, series)


def parse(text: str) -> Series:
    """Read Prometheus's text format.

    Raises:
        ValueError: It is none; so are KeyError and IndexError, which the parser lets through.
    """
    from prometheus_client.parser import text_string_to_metric_families

    series: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith(_OURS):
            for suffix in _SUFFIXES.get(family.type, ("",)):
                series.setdefault(family.name + suffix, {})
            for sample in family.samples:
                # NaN says that there is no value; JSON has no word for it.
                if math.isfinite(sample.value):
                    labels = frozenset(sample.labels.items())
                    series.setdefault(sample.name, {})[labels] = float(sample.value)
    return series


def _get(url: str, until_s: float) -> str:
    """Return the body of a URL; a peer that sends slowly is given up in time as well."""
    request = urllib.request.Request(url, headers={"Accept": "text/plain; version=0.0.4"})
    # As for gRPC, proxies of the environment are not meant.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    body = bytearray()
    with opener.open(request, timeout=max(0.001, until_s - time.monotonic())) as response:
        while chunk := response.read1(_CHUNK_BYTES):
            body += chunk
            if time.monotonic() > until_s:
                raise TimeoutError
            if len(body) > MOST_BYTES:
                raise ValueError(f"answers with more than {MOST_BYTES // 2**20} MiB")
    return body.decode()


def _reason(error: object, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:g} s"
    if isinstance(error, UnicodeDecodeError):
        return "answers, but not with text"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
