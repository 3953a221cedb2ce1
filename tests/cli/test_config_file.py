# SPDX-License-Identifier: Apache-2.0
"""The configuration file: Accelerate's is read, a wrong one is named with its place."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.commands import config_file
from paceline.commands.config_file import ConfigFileError, default_path, load

# As Accelerate's questionnaire writes it, without what asks for GPUs.
ACCELERATES = """\
compute_environment: LOCAL_MACHINE
debug: false
deepspeed_config: {}
fsdp_config: {}
distributed_type: MULTI_CPU
downcast_bf16: 'no'
enable_cpu_affinity: false
gpu_ids: "4,5"
machine_rank: 0
main_process_ip: null
main_process_port: null
main_training_function: main
mixed_precision: bf16
num_machines: 1
num_processes: 2
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
tpu_use_sudo: false
use_cpu: false
"""


def read(tmp_path: Path, text: str, name: str = "config.yaml") -> dict[str, object]:
    path = tmp_path / name
    path.write_text(text)
    return dict(load(str(path)).values)


def test_accelerates_file(tmp_path: Path) -> None:
    values = read(tmp_path, ACCELERATES)
    assert values["num_processes"] == 2
    assert values["mixed_precision"] == "bf16"
    assert values["use_cpu"] is False
    assert values["distributed_type"] == "MULTI_CPU"
    assert "main_process_port" not in values  # null says nothing


def test_json_also_under_a_yaml_name(tmp_path: Path) -> None:
    text = json.dumps({"num_processes": 3, "mixed_precision": "no", "use_cpu": True})
    for name in ("config.json", "default_config.yaml"):
        values = read(tmp_path, text, name)
        assert values == {"num_processes": 3, "mixed_precision": "no", "use_cpu": True}


@pytest.mark.parametrize("text", ["mixed_precision: no", "mixed_precision: 'no'"])
def test_a_bare_no_is_the_precision_no(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == {"mixed_precision": "no"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"the file is empty"),
        ("# nothing\n", r"the file is empty"),
        ("- 1\n- 2\n", r":1:1: expected lines of the form `key: value`"),
        ("just words", r":1:1: expected lines of the form `key: value`"),
        ("num_proceses: 2", r":1:1: unknown key 'num_proceses': did you mean num_processes\?"),
        ("use_cpu: true\nzzz: 1", r":2:1: unknown key 'zzz': remove the line"),
        ('num_processes: "2"', r":1:16: num_processes is wrong: got '2', expected an integer"),
        ("num_processes: true", r"got True, expected an integer"),
        ("num_processes: 0", r"got 0, expected at least 1"),
        ("num_processes: -3", r"got -3, expected at least 1"),
        ("num_processes: 2.5", r"got 2.5, expected an integer"),
        ("num_processes: [2]", r"got \[2\], expected an integer"),
        ("num_processes: 2\nnum_processes: 3", r":2:1: num_processes stands here and in line 1"),
        ("use_cpu: maybe", r"got 'maybe', expected true or false"),
        ("mixed_precision: bf61", r"got 'bf61', expected one of no, fp16, bf16"),
        ("mixed_precision: fp8", r"expected one of no, fp16, bf16 \(fp8: later\)"),
        ("main_process_port: 99999", r"got 99999, expected an integer from 0 to 65535"),
        ("num_machines: 0", r"got 0, expected at least 1"),
        ("compute_environment: AMAZON_SAGEMAKER", r"expected LOCAL_MACHINE"),
        ("distributed_type: DEEPSPEED", r"DEEPSPEED needs sharded optimizers, which this version"),
        ("distributed_type: FSDP", r"FSDP needs sharded parameters"),
        ("distributed_type: XLA", r"got 'XLA', expected one of NO, MULTI_CPU, MULTI_GPU"),
        ("deepspeed_config: {zero_stage: 2}", r"got \{'zero_stage': 2\}, expected nothing"),
        ("num_processes: [1", r":\d+:\d+: not valid YAML"),
        ("num_processes: {1", r":\d+:\d+: not valid YAML"),
        ("a: b: c", r":1:\d+: not valid YAML"),
        ("num_processes: 2\n\tuse_cpu: true", r":2:1: not valid YAML"),
        ("debug: !!python/object/apply:os.system ['true']", r":1:8: tags are not allowed"),
        ("debug: &a true\nuse_cpu: *a", r":1:8: anchors and aliases are not allowed"),
        ("tpu_env: " + "[" * 40 + "]" * 40, r":1:\d+: nested deeper than 32 levels"),
        ("? [a]\n: 1", r":1:3: a key must be a word"),
        ("debug: 2026-99-99", r"config.yaml:1:8: "),
        ("\x00", r"not valid YAML"),
    ],
)
def test_wrong_files_are_named_with_their_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigFileError) as caught:
        read(tmp_path, text)
    error = str(caught.value)
    assert error.startswith(str(tmp_path / "config.yaml"))
    assert re.search(message, error), error
    assert len(error.splitlines()) == 1


def test_not_text_and_too_large(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"debug: true\nuse_cpu: \xff\xfe")
    with pytest.raises(ConfigFileError, match=r":2: not UTF-8 text"):
        load(str(path))
    path.write_bytes(b"# " + b"x" * (1 << 20))
    with pytest.raises(ConfigFileError, match=r"larger than 1 MiB"):
        load(str(path))
    with pytest.raises(ConfigFileError, match=r"cannot be read: Is a directory"):
        load(str(tmp_path))


@given(st.data())
def test_a_mutated_file_gives_values_or_one_sentence(data: st.DataObject) -> None:
    import tempfile

    text = list(ACCELERATES)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(text) - 1))
        piece = data.draw(st.sampled_from(["", "\n", "\t", ": ", "- ", "{", "]", '"', "&a ", "*a"]))
        text[at] = data.draw(st.one_of(st.just(piece), st.characters(codec="utf-8")))
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write("".join(text))
        file.flush()
        said = "used"
        try:
            load(file.name)
        except ConfigFileError as error:
            said = str(error)
        assert 1 <= len(said.splitlines()) <= 5


def test_where_the_default_file_is() -> None:
    tail = "accelerate/default_config.yaml"
    both = {"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}
    assert default_path(both) == f"/h/{tail}"
    assert default_path({"XDG_CACHE_HOME": "/x"}) == f"/x/huggingface/{tail}"
    assert default_path({}) == str(Path.home() / ".cache" / "huggingface" / tail)


def test_every_key_is_explained() -> None:
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    explained = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert explained == set(config_file._KEYS)
