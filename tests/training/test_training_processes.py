"""What only whole processes show: being killed, and working together."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_program import CASES, killed
from training_toys import same

from sfumato.storage import load_state

PROGRAM = Path(__file__).with_name("training_program.py")


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    kept = {
        key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH") if key in os.environ
    }
    return subprocess.Popen(
        [sys.executable, "-W", "error", PROGRAM, *map(str, arguments)],
        env=kept | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONHASHSEED": "0"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 120) -> None:
    try:
        said, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        raise AssertionError(f"hangs: {said}") from None
    assert process.returncode == 0, said


@pytest.mark.slow
def test_killed_and_called_again(tmp_path: Path) -> None:
    killed(tmp_path / "whole")
    whole = load_state(tmp_path / "whole" / "outcome")
    folder, moments, kills = tmp_path / "killed", random.Random(0), 0
    checkpoint = folder / "checkpoint.safetensors"
    for _ in range(2):
        process = start("killed", folder)
        before = checkpoint.stat().st_mtime_ns if checkpoint.is_file() else 0
        while process.poll() is None and (not checkpoint.is_file() or checkpoint.stat().st_mtime_ns == before):
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert checkpoint.is_file()
    assert kills == 2, "it was over before it could be killed"
    finish(start("killed", folder))
    again = load_state(folder / "outcome")
    assert again["fit"] == whole["fit"]
    assert same(again["state"], whole["state"])
    log = "metrics.jsonl"
    assert (folder / log).read_bytes() == (tmp_path / "whole" / log).read_bytes()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left, of every case."""
    folder = tmp_path_factory.mktemp("together")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    finish(start("parallel", folder, 2, **address))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exact", "isotropic", "diagonal", "full"])
def test_two_processes_equal_one(name: str, together: Path) -> None:
    """A loss that is a mean over images, or of what is summed over shares, is the same whoever holds which half."""
    two, one = load_state(together / name / "outcome0"), CASES[name].run()
    for part in ("split", "defense"):
        for name, value in one.state["weights"][part].items():
            torch.testing.assert_close(two["weights"][part][name], value, rtol=0, atol=2e-3, msg=name)
    for row, other in zip(two["fit"]["history"], one.fit.history, strict=True):
        assert row == pytest.approx(other, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_agree(name: str, together: Path) -> None:
    """Batch norm, noise, a mixture, a learning rate that follows the validation: both end with the same."""
    first, second = (load_state(together / name / f"outcome{rank}") for rank in (0, 1))
    assert same(first, second)
    if name == "random":
        assert first["rate"] < 0.05


@pytest.mark.slow
def test_two_processes_leave_their_group(together: Path) -> None:
    """The threads of a group that is still there while C++ is torn down can abort a process that has done its work."""
    assert [(together / f"left{rank}").read_text() for rank in (0, 1)] == ["False", "False"]


@pytest.mark.slow
def test_two_processes_attack_together(together: Path) -> None:
    first, second = (load_state(together / "attacked" / f"outcome{rank}") for rank in (0, 1))
    assert same(first, second)


@pytest.mark.slow
def test_two_processes_keep_the_same_epoch(together: Path) -> None:
    assert [load_state(together / "judged" / f"outcome{rank}")["kept"] for rank in (0, 1)] == [1, 1]


@pytest.mark.slow
def test_two_processes_stop_together_and_resume(together: Path) -> None:
    whole = load_state(together / "random" / "outcome0")["fit"]
    for rank in (0, 1):
        assert load_state(together / "stopped" / f"outcome{rank}")["fit"] == whole
