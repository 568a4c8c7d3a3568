from __future__ import annotations

import logging

from resnet50_cli.output import showing_log


def test_warnings_of_the_sdk_are_shown(capfd):
    log = logging.getLogger("resnet50_client.video.reader")
    with showing_log():
        log.warning("the camera is \x1b[2Jgone")
        log.info("not shown")
    log.warning("not shown either")
    assert capfd.readouterr().err.splitlines()[:1] == ["resnet50: the camera is \\x1b[2Jgone"]
