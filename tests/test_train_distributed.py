"""Two processes train as one does: gloo on the CPU, forked, so that nothing is imported again."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.training import RANDOM, SMALL_DATA, TINY, callback, fit, last, write_images
from train.command import main
from train.launch import run

if sys.platform != "linux":
    pytest.skip("needs fork", allow_module_level=True)

TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp_fork", "--data.batch_size", "4"]
# mixup and drop path depend on the process; augmentation does not
EXACT = [
    *("--model.ema_decay", "0.9", "--data.auto_augment", "rand-m9-mstd0.5-inc1", "--model.lr", "1e-3"),
    *("--trainer.max_epochs", "2", "--model.repulsive_from_epoch", "0"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), classes=3, train=16, val=7)


def close(one, other):
    assert one["global_step"] == other["global_step"]
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for key, value in one["state_dict"].items():
        torch.testing.assert_close(
            value, other["state_dict"][key], rtol=1e-4, atol=2e-5, msg=lambda m, key=key: f"{key}: {m}"
        )


def evaluations(run):
    rows = list(csv.DictReader((run / "summary.csv").open()))
    return [(r["eval_top1"], r["eval_top5_ema"]) for r in rows], [float(r["eval_loss"]) for r in rows]


def test_two_processes_train_as_one(images, tmp_path):
    fit(images, tmp_path / "one", *EXACT)
    fit(images, tmp_path / "two", *EXACT, *TWO)
    close(last(tmp_path / "one"), last(tmp_path / "two"))
    one, two = (evaluations(tmp_path / run) for run in ("one", "two"))
    assert one[0] == two[0], "21 images over two processes, each counted once"
    assert one[1] == pytest.approx(two[1], rel=1e-4)


def test_batch_norm_and_uneven_shares(images, tmp_path):
    """Its statistics are sent around in each forward pass: one batch more on one side would hang."""
    model = ["--model.name", "test_resnet_dcls", "--model.model_kwargs", "{}", "--trainer.max_epochs", "1"]
    fit(images, tmp_path, *model, *TWO, "--data.batch_size", "3")
    assert last(tmp_path)["global_step"] == 8


def test_two_processes_stop_together_and_go_on(images, tmp_path):
    more = [*RANDOM, *TWO]
    fit(images, tmp_path / "whole", *more)
    where = ["--data.root", str(images), "--trainer.default_root_dir", str(tmp_path / "stopped")]
    with pytest.raises(SystemExit) as exited:
        run(["fit", *TINY, *SMALL_DATA, *where, *more, *callback("SignalAt", epoch=1, batch=1)], command=main)
    assert exited.value.code == 128 + signal.SIGTERM
    assert last(tmp_path / "stopped")["global_step"] == 8
    fit(images, tmp_path / "stopped", *more, "--ckpt_path", "last")
    whole, stopped = last(tmp_path / "whole"), last(tmp_path / "stopped")
    assert all(torch.equal(v, stopped["state_dict"][k]) for k, v in whole["state_dict"].items())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_that_are_killed_go_on(images, tmp_path):
    """Both at once, as a machine does that goes down."""
    more = [*RANDOM, *TWO, "--trainer.max_epochs", "4", "--keep_last.every_n_updates", "1"]
    fit(images, tmp_path / "whole", *more)
    where = ["--data.root", str(images), "--trainer.default_root_dir", str(tmp_path / "killed")]
    command = [sys.executable, "-m", "train", "fit", *TINY, *SMALL_DATA, *where, *more]
    for resume in ([], ["--ckpt_path", "last"]):
        process = subprocess.Popen([*command, *resume], start_new_session=True, stdout=subprocess.DEVNULL)
        checkpoint = tmp_path / "killed" / "checkpoints" / "last.ckpt"
        before = checkpoint.stat().st_mtime_ns if resume else 0
        while process.poll() is None and not (
            checkpoint.is_file() and checkpoint.stat().st_mtime_ns > before
        ):
            time.sleep(0.01)
        assert process.poll() is None, "it is not over yet"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert last(tmp_path / "killed")["global_step"] < last(tmp_path / "whole")["global_step"]
    fit(images, tmp_path / "killed", *more, "--ckpt_path", "last")
    whole, killed = last(tmp_path / "whole"), last(tmp_path / "killed")
    assert whole["global_step"] == killed["global_step"]
    assert all(torch.equal(v, killed["state_dict"][k]) for k, v in whole["state_dict"].items())


def torchrun(processes):
    """The command that starts ``python -m train`` so many times."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*start, f"--nproc_per_node={processes}", "-m", "train"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_torchrun_starts_four(images, tmp_path):
    fit(images, tmp_path / "one", *EXACT)
    where = ["--data.root", str(images), "--trainer.default_root_dir", str(tmp_path / "four")]
    four = ["--trainer.devices", "4", "--trainer.strategy", "ddp", "--data.batch_size", "2"]
    command = [*torchrun(4), "fit", *TINY, *SMALL_DATA, *where, *EXACT, *four]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env={**os.environ})
    assert done.returncode == 0, done.stderr[-2000:]
    close(last(tmp_path / "one"), last(tmp_path / "four"))
    one, many = (evaluations(tmp_path / r) for r in ("one", "four"))
    assert one[0] == many[0]


@pytest.fixture
def two_machines():
    """The beginnings of two commands: network namespaces that see nothing but each other."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs root and iproute2's ip")
    names = [f"dcls{i}_{os.getpid()}" for i in range(2)]
    inside = [["ip", "netns", "exec", name] for name in names]
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
        ends = ["eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1]]
        subprocess.run(["ip", "link", "add", *ends], check=True)
        for i, enter in enumerate(inside):
            subprocess.run([*enter, "ip", "address", "add", f"10.0.0.{i + 1}/24", "dev", "eth0"], check=True)
            for device in ("eth0", "lo"):
                subprocess.run([*enter, "ip", "link", "set", device, "up"], check=True)
        yield inside
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_machines_train_as_one(images, tmp_path, two_machines):
    fit(images, tmp_path / "one", *EXACT)
    where = ["--data.root", str(images), "--trainer.default_root_dir", str(tmp_path / "two")]
    scale = ["--trainer.num_nodes", "2", "--trainer.devices", "1", "--trainer.strategy", "ddp"]
    nodes = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "10.0.0.1", "--master_port", "29500"]
    running = []
    for i, enter in enumerate(two_machines):
        start = [sys.executable, "-m", "torch.distributed.run", *nodes, "--node_rank", str(i), "-m", "train"]
        command = [
            *enter,
            *start,
            "fit",
            *TINY,
            *SMALL_DATA,
            *where,
            *EXACT,
            *scale,
            "--data.batch_size",
            "4",
        ]
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0"}
        running.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
    said = [process.communicate(timeout=500)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    close(last(tmp_path / "one"), last(tmp_path / "two"))


FSDP2 = [
    *("--trainer.devices", "2", "--trainer.strategy", "pytorch_lightning.strategies.ModelParallelStrategy"),
    *("--trainer.strategy.data_parallel_size", "2", "--trainer.strategy.tensor_parallel_size", "1"),
    *("--trainer.strategy.save_distributed_checkpoint", "false", "--data.batch_size", "4"),
]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sharded_training_is_the_same_and_goes_on(images, tmp_path):
    fit(images, tmp_path / "one", *EXACT)
    where = ["--data.root", str(images), "--trainer.default_root_dir", str(tmp_path / "two")]
    command = [*torchrun(2), "fit", *TINY, *SMALL_DATA, *where, *EXACT, *FSDP2]
    stop = callback("SignalAt", epoch=1, batch=1)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}  # noqa: PTH109
    for flags, ends in ((stop, False), (["--ckpt_path", "last"], True)):
        done = subprocess.run(
            [*command, *flags], capture_output=True, text=True, timeout=280, env=environment
        )
        assert (done.returncode == 0) == ends, done.stderr[-2000:]
        assert last(tmp_path / "two")["global_step"] == (12 if ends else 8)
    close(last(tmp_path / "one"), last(tmp_path / "two"))
