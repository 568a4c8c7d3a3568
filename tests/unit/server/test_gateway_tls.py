"""The gateway's certificate, whose files are replaced."""

from __future__ import annotations

import logging
import ssl

from resnet50_gateway.settings import Settings
from resnet50_gateway.tls import TlsContext
from tests.support import certs


def test_certificate_that_its_disk_failed_to_read_is_tried_again_and_logged_once(
    tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    ca = certs.authority()
    files = certs.Files(tmp_path, certs.issue(ca))
    tls = TlsContext(Settings(**files.settings))
    files.put(certs.issue(ca, days=500))

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as disk:
        disk.setattr(ssl.SSLContext, "load_cert_chain", fail)
        tls.reload_changed()
        tls.reload_changed()
    assert caplog.text.count("Input/output error; continuing with the previous one") == 1
    tls.reload_changed()
    assert f"{files.cert} is reloaded" in caplog.text
