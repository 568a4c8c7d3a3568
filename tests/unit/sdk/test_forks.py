"""A process that forks while another of its threads holds a lock: the child has no such thread."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.certs import authority

HELD = """
import os, signal, socket, sys, threading

def forked(owner, use):
    '''Fork while a thread holds the lock; end as the child does, which uses the owner.'''
    held, end = threading.Event(), threading.Event()

    def hold():
        with owner._lock:
            held.set()
            end.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            use()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    end.set()
    holder.join()
    sys.exit(code)
"""
FILE = """
from resnet50_client._watched_file import WatchedFile
file = WatchedFile(sys.argv[1], "ca")
forked(file, lambda: file.content() or sys.exit(1))
"""
CERTIFICATES = """
from resnet50_client._tls import CertificateSources
sources = CertificateSources(sys.argv[1])
forked(sources, lambda: sources.current().ca or sys.exit(1))
"""
FILE_OF_CERTIFICATES = """
from resnet50_client._tls import CertificateSources
sources = CertificateSources(sys.argv[1])
forked(sources._sources["ca"], lambda: sources.current().ca or sys.exit(1))
"""
CHANNELS = """
import grpc
from resnet50_client._channels import Channels
from resnet50_client._config import Connection
from resnet50_client._resolver import Resolver
connection = Connection.to("localhost:1", 1.0, None)
channels = Channels(connection, Resolver(connection.addresses), grpc)
forked(channels, lambda: channels.stubs())
"""
NAMES = """
from resnet50_client._resolver import Resolver

asked = threading.Event()

def never(*arguments, **options):
    asked.set()
    threading.Event().wait()

def at_once(host, port, **options):
    return [(socket.AF_INET, 1, 6, "", ("10.0.0.1", port))]

socket.getaddrinfo = never
resolver = Resolver(["a:1", "b:2"])
threading.Thread(target=resolver.wait, args=[1e6], daemon=True).start()
asked.wait()

def use():
    socket.getaddrinfo = at_once
    resolver.wait()
    assert resolver.target == "ipv4:10.0.0.1:1,10.0.0.1:2", resolver.target

def end():
    try:
        forked(resolver, use)
    except SystemExit as code:
        os._exit(code.code)

end()
"""


@pytest.mark.parametrize(
    "script",
    [FILE, CERTIFICATES, FILE_OF_CERTIFICATES, CHANNELS, NAMES],
    ids=["file", "certificates", "file of certificates", "channels", "names"],
)
def test_child_uses_what_a_thread_of_its_parent_held(script, tmp_path):
    path = tmp_path / "ca.pem"
    path.write_bytes(authority().cert_pem.bytes())
    command = [sys.executable, "-c", HELD + script, path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


IDS = """
import os, sys
from resnet50_client._randomness import random_id

reading, writing = os.pipe()
if os.fork() == 0:
    os.write(writing, random_id().encode())
    os._exit(0)
os.wait()
sys.exit(os.read(reading, 100).decode() == random_id())
"""


def test_child_has_other_ids_of_calls():
    assert subprocess.run([sys.executable, "-c", IDS], timeout=60).returncode == 0
