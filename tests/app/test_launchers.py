"""Jobs of a multirun that a launcher starts, each in a process of its own."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
from hydra import compose, initialize_config_dir

from dpn.common.files import read_json
from dpn.config.compose import CONFIG_DIR


def test_a_slurm_job_has_a_task_for_every_gpu():
    overrides = ["hydra/launcher=slurm", "trainer.num_nodes=2", "hydra.launcher.gpus_per_node=4"]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("train", overrides, return_hydra_config=True)
    assert config.hydra.launcher._target_.endswith("SlurmLauncher")
    assert config.hydra.launcher.nodes == 2
    assert config.hydra.launcher.gpus_per_node == config.hydra.launcher.tasks_per_node == 4
    assert config.hydra.launcher.max_num_timeout > 0  # or nothing would be queued again


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "package"), [("submitit_local", "submitit"), ("ray", "ray")])
def test_every_job_of_a_sweep_is_a_run(launcher, package, tiny, tmp_path):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    sweep = [f"hydra/launcher={launcher}", f"hydra.sweep.dir={tmp_path}/sweep", "seed=0,1"]
    command = [sys.executable, "-m", "dpn.train", "-m", *tiny, "trainer.max_steps=1", *sweep]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    runs = [read_json(path) for path in (tmp_path / "outputs").rglob("status.json")]
    assert [run["status"] for run in runs] == ["finished", "finished"]
    assert len({run["identity"] for run in runs}) == 2
