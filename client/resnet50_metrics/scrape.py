"""Scrape of a server's metrics over HTTP, in Prometheus's text format."""

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

METRICS = "RESNET50_METRICS"  # environment variable
DEFAULT_METRICS = "http://127.0.0.1:9464/metrics"
# A server exports about 100 KB; a much longer response is not metrics.
MOST_BYTES = 16 * 2**20
_CHUNK_BYTES = 2**16
_PREFIXES = ("resnet50_", "process_")
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}


class ScrapeError(Exception):
    """A server is unreachable, or its response is not metrics."""


@dataclass(frozen=True)
class Endpoint:
    """Address of a server's metrics.

    Attributes:
        name: Display name: the URL without default scheme and path.
        url: The URL.
    """

    name: str
    url: str

    @classmethod
    def of(cls, text: str) -> Endpoint:
        """Parse HOST:PORT or a URL; the default path is /metrics.

        Raises:
            ValueError: The text is neither.
        """
        wrong = ValueError(f"--metrics: {text!r} is neither HOST:PORT nor an http(s) URL")
        try:
            url = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
            port = url.port
        except ValueError as error:
            raise wrong from error
        if url.username is not None or url.password is not None:
            raise ValueError("--metrics: a URL must not contain a user name or password")
        if url.scheme not in ("http", "https") or not url.hostname:
            raise wrong
        if "://" not in text and port is None:
            raise ValueError(f"--metrics: {text!r} lacks a port: HOST:PORT, as in 127.0.0.1:9464")
        url = url._replace(path=url.path if url.path.strip("/") else "/metrics", fragment="")
        name = url.geturl().removeprefix("http://")
        return cls(name if url.query else name.removesuffix("/metrics"), url.geturl())


@dataclass(frozen=True)
class Scrape:
    """All series of the server and its process, by name and labels.

    Attributes:
        time_s: Time of the scrape, in seconds of the monotonic clock.
        series: Values; families without series are present and empty.
    """

    time_s: float
    series: Series


def fetch(endpoint: Endpoint, timeout_s: float) -> Scrape:
    """Fetch a server's metrics; blocks up to `timeout_s` seconds, plus DNS resolution.

    Raises:
        ScrapeError: It is unreachable, or its response is not a ResNet50 server's metrics.
    """
    began_s = time.monotonic()
    try:
        text = _get(endpoint.url, began_s + timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        raise ScrapeError(f"HTTP status {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise ScrapeError(_reason(error.reason, timeout_s)) from error
    except (http.client.HTTPException, ConnectionResetError) as error:
        # For example the gRPC port, which uses HTTP/2.
        raise ScrapeError("no HTTP/1.1 response; is it the metrics port?") from error
    except (OSError, ValueError) as error:
        raise ScrapeError(_reason(error, timeout_s)) from error
    # The server read its counters between request and response.
    time_s = (began_s + time.monotonic()) / 2
    try:
        series = parse(text)
    except (ValueError, KeyError, IndexError) as error:
        raise ScrapeError("the response is not in Prometheus's text format") from error
    if not any(name.startswith("resnet50_") for name in series):
        raise ScrapeError("exports no resnet50_ metrics; is it another program?")
    return Scrape(time_s, series)


def parse(text: str) -> Series:
    """Parse Prometheus's text format.

    Raises:
        ValueError, KeyError, IndexError: The text is invalid; the parser raises any of these.
    """
    from prometheus_client.parser import text_string_to_metric_families

    series: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith(_PREFIXES):
            for suffix in _SUFFIXES.get(family.type, ("",)):
                series.setdefault(family.name + suffix, {})
            for sample in family.samples:
                # NaN means no value, and is not valid JSON.
                if math.isfinite(sample.value):
                    labels = frozenset(sample.labels.items())
                    series.setdefault(sample.name, {})[labels] = float(sample.value)
    return series


def _get(url: str, until_s: float) -> str:
    """Return the body of a URL; the deadline also bounds a peer that sends slowly."""
    request = urllib.request.Request(url, headers={"Accept": "text/plain; version=0.0.4"})
    # Proxies of the environment are ignored, as by gRPC.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    body = bytearray()
    with opener.open(request, timeout=max(0.001, until_s - time.monotonic())) as response:
        while chunk := response.read1(_CHUNK_BYTES):
            body += chunk
            if time.monotonic() > until_s:
                raise TimeoutError
            if len(body) > MOST_BYTES:
                raise ValueError(f"the response is larger than {MOST_BYTES // 2**20} MiB")
    return body.decode()


def _reason(error: object, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no response within {timeout_s:g} s"
    if isinstance(error, UnicodeDecodeError):
        return "the response is not text"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
