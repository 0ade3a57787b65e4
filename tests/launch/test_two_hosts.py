"""launch/torchrun.sh on two hosts: network namespaces, which share nothing but a wire and the file system."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import hashes, load_case, overrides, write_source
from tests.processes.jobs import run, single

TORCHRUN = Path(__file__).parents[2] / "launch" / "torchrun.sh"
HOSTS = ("unshare", "--user", "--map-root-user", "--net", "bash", str(Path(__file__).with_name("two_hosts.sh")))


@pytest.fixture
def hosts() -> tuple[str, ...]:
    """What stands before a command that both hosts run."""
    try:
        end = subprocess.run([*HOSTS, "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        pytest.skip(f"no network namespaces: {error}")
    if end.returncode:
        pytest.skip(f"no network namespaces: {end.stderr}")
    return HOSTS


def test_the_hosts_are_apart(hosts):
    """Without a wire they would all be one, and the next test would show nothing."""
    script = "ip -oneline -4 address show dev wire; [[ $NODE == 0 ]] || ! ip address show | grep --quiet 10.77.0.1/"
    end = subprocess.run([*hosts, "bash", "-c", script], capture_output=True, text=True, check=True)

    assert sorted(line.split()[3] for line in end.stdout.splitlines()) == ["10.77.0.1/24", "10.77.0.2/24"]


def test_a_job_on_two_hosts(hosts, tmp_path):
    case = load_case("qwen2vl__tp2_pp2")
    words = [*overrides(case), f"source={write_source(tmp_path / 'hf', case)}"]
    one = run(single(*words, "target=one"), tmp_path)
    assert one.status == 0, one.err

    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PROCESSES": "2"}
    two = run([*hosts, str(TORCHRUN), *words, "target=two"], tmp_path, environment)

    assert two.status == 0, two.err
    assert "on 4 processes" in two.out
    assert hashes(tmp_path / "two") == hashes(tmp_path / "one")
