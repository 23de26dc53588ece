"""Clusters that a report starts accept nobody without their certificate, and their dashboards listen on localhost."""

import os
import shlex
import socket
import ssl
import stat
import urllib.request
from types import SimpleNamespace

import dask
import dask_jobqueue
import distributed
import psutil
import pytest
import torch
from dask_jobqueue import local
from tornado.process import Subprocess

from hw1lib.cluster import workers
from hw1lib.errors import UserError


def listening():
    """Return (address, port) of each socket on which this process or its children listen."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    sockets = [one for member in family for one in member.net_connections("inet")]
    return {one.laddr[:2] for one in sockets if one.status == psutil.CONN_LISTEN}


def answers_in_plain_text(address, port):
    """Return whether a socket answers HTTP without TLS."""
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    with socket.create_connection((address, port), timeout=5) as plain:
        plain.sendall(b"GET /status HTTP/1.0\r\n\r\n")
        try:
            return b"HTTP" in plain.recv(1000)
        except OSError:
            return False


def refuses_strangers(address):
    """Return whether a server closes a TLS connection that presents no certificate."""
    host, _, port = address.partition("://")[2].rpartition(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((host, int(port)), timeout=5) as plain, context.wrap_socket(plain) as stranger:
            stranger.sendall(b"hello")
            return stranger.recv(1) == b""
    except ssl.SSLError:
        return True


class Shell(Subprocess):
    """Run a job's command without splitting it at quoted spaces, as dask-jobqueue's LocalCluster does."""

    def __init__(self, words, **streams):
        super().__init__(shlex.split(" ".join(words)), **streams)


OPEN = "scheduler_options: {dashboard_address: ':0', protocol: 'tcp://'}, protocol: 'tcp://', security: false"
OPEN += ", worker_extra_args: [--dashboard, --resources, GPU=1]"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["local:1", "jobs"])
def test_a_started_cluster_accepts_only_its_certificate(name, tmp_path, capsys, monkeypatch):
    """Local workers and batch jobs, whatever the file says."""
    monkeypatch.setattr(dask_jobqueue, "LocalCluster", local.LocalCluster, raising=False)  # jobs without a batch system
    monkeypatch.setattr(local, "Subprocess", Shell)
    monkeypatch.setattr(workers, "CONNECT_TIMEOUT", "3s")
    before, cluster = listening(), name
    book = SimpleNamespace(out=tmp_path / "out", device=torch.device("cpu"))
    if name == "jobs":
        cluster = tmp_path / "cluster.yaml"
        cluster.write_text(f"kind: Local\njobs: 1\noptions: {{cores: 1, memory: 1GB, {OPEN}}}\n")
    with workers.connect(str(cluster), book) as client:
        client.wait_for_workers(1, timeout=60)
        assert client.submit(os.getpid).result() != os.getpid()
        address = client.scheduler.address
        assert address.startswith("tls://") and refuses_strangers(address)
        with pytest.raises((OSError, TypeError, RuntimeError)):
            distributed.Client(address.replace("tls", "tcp"), timeout="3s")
        with pytest.raises(UserError, match="CLIENT__CERT"), workers.connect(address, book):
            pass
        for worker in client.scheduler_info(n_workers=-1)["workers"]:
            assert worker.startswith("tls://") and refuses_strangers(worker)
        opened = listening() - before
        assert [one for one in opened if one[0] != "127.0.0.1" and answers_in_plain_text(*one)] == []
        watch = capsys.readouterr().out.split("Watch")[1].split()
        assert urllib.request.urlopen(watch[0]).status == 200 and watch[0].startswith("http://127.0.0.1:")
        assert watch[5:8] == ["ssh", "-L", f"{watch[0].split(':')[2].split('/')[0]}:{watch[0][7:].split('/')[0]}"]
        if name == "jobs":
            (folder,) = book.out.glob(".tls-*")
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            files = {part: next(folder.glob(f"*.{part}.*")) for part in ("ca_file", "cert", "key")}
            assert {stat.S_IMODE(file.stat().st_mode) for file in files.values()} == {0o600}
            check_running_scheduler(address, files, book)
    assert list(book.out.glob("*")) + list(book.out.glob(".*")) == [] if book.out.exists() else True


def check_running_scheduler(address, files, book):
    """Check that a running TLS scheduler is reached with the certificates that Dask's configuration names."""
    tls = {"ca-file": files["ca_file"], "client.cert": files["cert"], "client.key": files["key"]}
    names = {f"distributed.comm.tls.{name}": str(file) for name, file in tls.items()}
    with dask.config.set(names), workers.connect(address, book) as client:
        assert client.submit(int, 7).result() == 7
