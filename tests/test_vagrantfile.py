"""The lab as virtual machines, as far as it shows without a box to boot."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loader.client import Vip
from loader.configfile import Sources
from tools.topology import cables

ROOT = Path(__file__).parents[1]

# Stands in for Vagrant, and prints what the file asks of it.
RECORDER = """
require "json"
class Recorder
  attr_reader :made
  def initialize; @made = Hash.new { |all, name| all[name] = { networks: [], scripts: {} } }; end
  def vm; self; end
  def define(name); @name = name; yield self; end
  def network(kind, **options); @made[@name][:networks] << options.merge(kind: kind); end
  def provision(name, inline:, **_); @made[@name][:scripts][name] = inline; end
  def method_missing(*); end
  def respond_to_missing?(*) = true
end
module Vagrant
  def self.configure(_)
    recorder = Recorder.new
    yield recorder
    puts JSON.generate(recorder.made)
  end
end
ARGV.replace(["validate"])
load "Vagrantfile"
"""


@pytest.fixture(scope="module")
def machines() -> dict[str, Any]:
    """By name: networks and provisioning scripts."""
    ruby = _program("ruby")
    made = subprocess.check_output([ruby, "-e", RECORDER], cwd=ROOT, text=True)
    machines: dict[str, Any] = json.loads(made)
    return machines


def _program(name: str) -> str:
    """Ubuntu 24.04 has no package of Vagrant, and so the suite brings no Ruby there either."""
    found = shutil.which(name)
    if found:
        return found
    if "ID=ubuntu" in Path("/etc/os-release").read_text().splitlines():
        pytest.skip(f"no {name} here, and Ubuntu has no package of Vagrant")
    pytest.fail(f"no {name}: run ./provision.sh test")


def test_vagrant_finds_the_file_valid(tmp_path: Path) -> None:
    homes = {"VAGRANT_HOME": str(tmp_path / "home"), "VAGRANT_DOTFILE_PATH": str(tmp_path / "dot")}
    done = subprocess.run(
        [_program("vagrant"), "validate", "--ignore-provider"],
        cwd=ROOT,
        env={**os.environ, **homes},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_machines_have_the_addresses_of_the_namespace_lab(machines: dict[str, Any]) -> None:
    laid = {
        (cable.namespace.removeprefix("shunt-"), cable.bridge, cable.addresses[0])
        for cable in cables(transceivers=2, host=False)
        if cable.namespace
    }
    assert laid == {
        (name, network["virtualbox__intnet"].removeprefix("shunt-"), f"{network['ip']}/24")
        for name, machine in machines.items()
        for network in machine["networks"]
    }


def test_every_machine_runs_the_one_provisioning_script(machines: dict[str, Any]) -> None:
    packages = {machine["scripts"]["packages"] for machine in machines.values()}
    assert packages == {"/opt/shunt/provision.sh run"}


def test_the_machines_scripts_are_sound_shell(machines: dict[str, Any]) -> None:
    for machine in machines.values():
        for script in machine["scripts"].values():
            subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_the_relays_configuration_is_one(machines: dict[str, Any], tmp_path: Path) -> None:
    script = machines["relay"]["scripts"]["services"]
    text = script.split("<<TOML\n")[1].split("TOML\n")[0]
    file = tmp_path / "agent.toml"
    file.write_text(re.sub(r"\$\(interface_of ([0-9.]+)\)", r"if\1", text))

    config = Sources(file=file).read().config

    assert config.interfaces == ["if198.18.0.1", "if198.18.1.1"]
    assert config.vips == (Vip("198.18.0.1", 3478),)


def test_the_relays_agent_is_the_packaged_one(machines: dict[str, Any]) -> None:
    lines = machines["relay"]["scripts"]["services"].splitlines()

    assert "/opt/shunt/packaging/install.sh >/dev/null" in lines
    assert lines[-1] == "systemctl restart shunt-agent"


def test_the_command_of_the_transceivers_unit_is_of_the_cli(machines: dict[str, Any]) -> None:
    [command] = [
        line.removeprefix("ExecStart=/opt/shunt/shunt ").split()
        for line in machines["x1"]["scripts"]["services"].splitlines()
        if line.startswith("ExecStart=/opt/shunt/shunt")
    ]
    flags = [word for word in command if word.startswith("--")]
    known = subprocess.check_output(
        [sys.executable, "-P", "-m", "tools", *command[:2], "--help"], text=True
    )
    assert [flag for flag in flags if flag not in known.replace(",", " ").split()] == []
